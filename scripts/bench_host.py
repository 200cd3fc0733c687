"""Host time of one compiled decode call of a small Step-3.5, its kernels left out.

What torch.compile and we do on the host around a graph: recognize the call, check guards, bind what
the graph reads, write back. Graphs run once and then give what they gave, so that nothing else is
timed. Forms take turns; one rank of several under torch's fake process group, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from functorch.compile import make_boxed_func
from rich.console import Console
from rich.table import Table
from torch import fx
from torch._dynamo.backends.common import aot_autograd

from models.step3p5 import Step3p5Config
from scripts.rank_models import (
    Call,
    captured,
    decode_call,
    merged_by_hand,
    optimized,
    random_model,
)

RANKS, BATCH, CONTEXT = 8, 8, 64
WARM_UP = 3
BY_HAND = "merged by hand"


def remembered(graph: fx.GraphModule, _: Any) -> Any:
    """Runs a graph at the first call, and gives the same again at others."""
    kept: list[Any] = []

    def run(*inputs: Any) -> Any:
        if not kept:
            kept.append(graph(*inputs))
        return kept[0]

    return make_boxed_func(run)


def compiled(form: Any, call: Call) -> Callable[[], object]:
    """The call of a form, compiled without its kernels, and warm."""
    backend = aot_autograd(
        fw_compiler=remembered, inference_compiler=remembered, keep_inference_input_mutations=True
    )
    compiled_form = torch.compile(form, backend=backend, dynamic=False)

    def run() -> object:
        with torch.no_grad():
            return compiled_form(*call[0], **call[1])

    for _ in range(WARM_UP):
        run()
    return run


def measured(layers: int, rounds: int) -> list[dict[str, Any]]:
    """Median microseconds of each form."""
    with torch.no_grad():
        model = random_model(Step3p5Config.small(layers), "cpu", torch.float32)
    call = decode_call(model, BATCH, CONTEXT, "cpu")
    ours, _, _ = optimized(model, captured(model, call).capture, "merge")
    forms = {"as written": model, BY_HAND: merged_by_hand(model), "optimized, merge": ours}
    runs = {name: compiled(form, call) for name, form in forms.items()}
    taken = dict[str, list[float]]((name, []) for name in runs)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - start) * 1e6)
    times = {name: statistics.median(us) for name, us in taken.items()}
    return [{"form": n, "us": us, "more_than_by_hand_us": us - times[BY_HAND]}
            for n, us in times.items()]  # fmt: skip


def main() -> int:
    """Prints a table on standard error and JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12, help="decoder layers; default: 12")
    parser.add_argument("--rounds", type=int, default=500, help="calls of each form; default: 500")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console(stderr=True)
    dist.init_process_group("fake", rank=0, world_size=RANKS)
    with console.status(f"capturing and compiling {arguments.layers} layers"):
        rows = measured(arguments.layers, arguments.rounds)
    dist.destroy_process_group()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    table = Table(title=f"host time of a compiled call, {versions}", title_justify="left")
    for column in ("form", "us", "more than by hand, us"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["form"], f"{row['us']:.1f}", f"{row['more_than_by_hand_us']:.1f}")
    console.print(table)
    print(json.dumps({"versions": versions, "layers": arguments.layers, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
