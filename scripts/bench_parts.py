"""Shows what the parts of one rank's prefill of Step-3.5-Flash take, beside its matrix products.

One process holds rank 0's slice of eight with random weights under torch's fake process group, so
that collectives cost nothing. A kernel belongs to the innermost part whose module launched it.
Without CUDA operators count instead of kernels, by their own time.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from models.step3p5.attention import Attention
from models.step3p5.layers import MLP, GemmaRMSNorm, MoE
from scripts.bench_rank import RANKS, Device, caller, integers
from scripts.rank_models import config_of_size, prefill_call, random_model

MARK = "part: "
PARTS: dict[type[nn.Module], str] = {
    Attention: "attention", MoE: "experts", GemmaRMSNorm: "norms", MLP: "dense and shared MLPs",
}  # fmt: skip
ROUTER, REST = "router", "rest"
PRODUCTS = ("aten::mm", "aten::_grouped_mm")


class Spent:
    """What a part takes: microseconds, those of matrix products among them, and kernels."""

    def __init__(self) -> None:
        self.us, self.products_us, self.kernels = 0.0, 0.0, 0

    def add(self, us: float, kernels: int, *, is_product: bool) -> None:
        """Counts one operator's kernels."""
        self.us += us
        self.products_us += us * is_product
        self.kernels += kernels


def within(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, marked as a part for the profiler."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK + part):
            return call(*args, **kwargs)

    return run


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Marks the modules of ``model`` as parts as long as it lasts."""
    with ExitStack() as undo:
        for module in model.modules():
            wrapped = {"forward": PARTS[type(module)]} if type(module) in PARTS else {}
            wrapped |= {"route": ROUTER} if isinstance(module, MoE) else {}
            for method, part in wrapped.items():
                setattr(module, method, within(part, getattr(module, method)))
                undo.callback(delattr, module, method)
        yield


def parts(call: Callable[[], object], device: str) -> dict[str, Spent]:
    """What each part of one call takes; ``REST`` is what no marked module launched."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as seen:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    spent: dict[str, Spent] = defaultdict(Spent)
    for event in seen.events() or ():
        if event.device_type != torch.autograd.DeviceType.CPU or event.name.startswith(MARK):
            continue
        ran = [k.duration for k in event.kernels if not k.name.startswith(MARK)]
        us = sum(ran) if device == "cuda" else event.self_cpu_time_total
        spent[part_of(event)].add(us, len(ran), is_product=event.name in PRODUCTS)
    return spent


def part_of(event: Any) -> str:
    """The innermost part around an operator."""
    while (event := event.cpu_parent) is not None:
        if event.name.startswith(MARK):
            return str(event.name.removeprefix(MARK))
    return REST


def table_of(tokens: int, spent: dict[str, Spent], walls_us: dict[str, float]) -> Table:
    """Milliseconds by part, and of whole calls, also as multiples of the matrix products."""
    table = Table(title=f"prefill of {tokens:,} tokens", title_justify="left")
    for column in ("part", "ms", "matrix products ms", "rest ms", "kernels"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in (*PARTS.values(), ROUTER, REST):
        one = spent.get(part, Spent())
        table.add_row(part, *cells(one.us, one.products_us), str(one.kernels))
    us, products_us = (sum(getattr(x, k) for x in spent.values()) for k in ("us", "products_us"))
    kernels = sum(x.kernels for x in spent.values())
    table.add_section()
    table.add_row("all", *cells(us, products_us), str(kernels))
    for name, whole_us in walls_us.items():
        table.add_row(name, f"{whole_us / 1e3:.2f}", f"x {whole_us / products_us:.2f}", "", "")
    return table


def cells(us: float, products_us: float) -> tuple[str, str, str]:
    """Milliseconds: all, of matrix products, of all else."""
    return f"{us / 1e3:.2f}", f"{products_us / 1e3:.2f}", f"{(us - products_us) / 1e3:.2f}"


def main() -> int:
    """Prints one table for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12, help="decoder layers")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a tiny model")
    parser.add_argument("--tokens", type=integers, default=[8192], help="of the prompt")
    parser.add_argument("--repeats", type=int, default=10, help="of the timed call")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: takes a minute")
    arguments = parser.parse_args()
    device = Device(arguments.device)
    dist.init_process_group("fake", rank=0, world_size=RANKS)
    with torch.no_grad():
        config = config_of_size(arguments.layers, small=not device.cuda)
        model = random_model(config, arguments.device, torch.bfloat16)
    for tokens in arguments.tokens:
        run = caller(model, prefill_call(tokens, config.vocab_size, arguments.device))
        run()
        walls_us = {"wall": device.times_us(run, arguments.repeats)[0]}
        with marked(model):
            spent = parts(run, arguments.device)
        if arguments.compile:
            whole = prefill_call(tokens, config.vocab_size, arguments.device)
            compiled = caller(torch.compile(model, dynamic=False), whole)
            compiled()
            walls_us["wall, torch.compile"] = device.times_us(compiled, arguments.repeats)[0]
        Console(width=100).print(table_of(tokens, spent, walls_us))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
