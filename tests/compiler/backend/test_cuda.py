"""The backend on a CUDA device: two ranks share it, and talk over gloo."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

import compiler
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from tests.support.one_gpu import on_one_gpu


def compiled(group: dist.ProcessGroup, inner: str, kernels: str) -> Any:
    model = Step3p5ForCausalLM(
        Step3p5Config.small(), dtype=torch.float32, group=group, device="cuda"
    ).model
    positions = torch.arange(48, device="cuda")[None]
    options = {"inner": inner, "kernels": kernels}
    run = torch.compile(model, backend="commplan", options=options, fullgraph=True)
    results = [f(positions, positions) for f in (model, run)]
    (report,) = compiler.reports()
    return (
        float((results[0] - results[1]).abs().max() / results[0].abs().max()),
        (report.before.all_reduces, report.after.all_reduces, str(report.verdict)),
        [remark.reason for remark in report.remarks],
    )


@pytest.mark.gpu
@pytest.mark.parametrize("inner", ["eager", "inductor"])
@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_fused_kernels_behind_the_backend(inner: str, kernels: str) -> None:
    for difference, counts, reasons in on_one_gpu(compiled, inner, kernels):
        assert difference < 1e-4
        assert counts == (14, 11, "EQUIVALENT")
        fused = [reason for reason in reasons if reason.startswith("fused ops of group")]
        assert bool(fused) == (kernels == "auto"), reasons
