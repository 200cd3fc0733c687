"""docs/dialects.md: the example declares ops that nobody here has seen, in few lines."""

import re
from pathlib import Path

import pytest
import torch

from compiler import check_op
from compiler.errors import CommPlanError
from tests.support.foreign_ops import define
from tests.support.graphs import function

PAGE = (Path(__file__).parents[4] / "docs" / "dialects.md").read_text()
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    def add_norm(x, residual, weight, eps, world):  # type: ignore[no-untyped-def]
        total = residual + x
        residual.copy_(total)
        x.copy_(total * (total.pow(2).mean(-1, keepdim=True) + eps) ** -0.5 * weight)

    norm = "Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps, int world"
    define("engine::add_norm_", f"({norm}) -> ()", add_norm)
    define("engine::sum_ranks", "(Tensor x, str world) -> Tensor", lambda x, world: x.clone())
    define("engine::route", "(Tensor x, Tensor w) -> Tensor", lambda x, w: x @ w.sin())
    assert len([line for line in EXAMPLE.splitlines() if line]) < 20
    exec(compile(EXAMPLE, "dialects.md", "exec"), {})
    assert capsys.readouterr().out == "(\"blocks of 't'\", 'linear in x')\n"
    graph = function(
        '%0 "x": f64[4, 8] {tp: V}', '%1: f64[4, 8] = engine.sum_ranks(%0, "tp")', "return %1"
    )
    (reduction,) = graph.graph.find_nodes(
        op="call_function", target=torch.ops._c10d_functional.all_reduce.default
    )
    assert reduction.args[1:] == ("sum", "tp")
    x = torch.ones(4, 8)
    (tried,) = check_op("engine::add_norm_", x, x, x[0], 1e-6, 8)
    assert "shapes and types" in tried
    with pytest.raises(CommPlanError, match="is not installed"):
        check_op("engine::unseen", x)
