"""Prove tensor-parallel models against one device, and seed mistakes: verdicts, seconds, counts.

    scripts/bench_verify step3p5 --layers 45,180 --tp 8
    scripts/bench_verify families Llama Mixtral --tp 2,4,8 --mistakes 200

Prints a line per model and exits with 1 where a right model was refused or a wrong one accepted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.distributed as dist

from compiler.capture import Capture, capture_ranks
from compiler.check.single_device import check_single_device
from compiler.check.single_device.compare import layouts_of
from models.step3p5 import Step3p5ForCausalLM
from models.step3p5.entry import real_config
from scripts.parallel_mistakes import drawn, mistakes

COLUMNS = ("model", "ranks", "values", "verdict", "s (CPU)", "mistakes", "accepted", "s each")


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        verdict: on the right model.
        values: nodes of both graphs.
        seconds: wall, and CPU of this process.
        tried: mistakes by kind.
        accepted: those that were taken for right.
        each: CPU seconds of a mistake.
    """

    verdict: str
    values: int
    seconds: tuple[float, float]
    tried: Counter[str]
    accepted: tuple[str, ...]
    each: float

    @property
    def wrong(self) -> bool:
        """Whether the right model was refused, or a wrong one accepted."""
        return self.verdict != "EQUIVALENT" or bool(self.accepted)


def measured(single: Capture, parallel: Capture, count: int) -> Outcome:
    """Prove ``parallel``, and seed up to ``count`` mistakes into it."""
    constants = single.constants, parallel.constants
    wall, cpu = time.perf_counter(), time.process_time()
    report = check_single_device(single.graph, parallel.graph, None, constants)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    tried, accepted, start = Counter[str](), list[str](), time.process_time()
    layouts = layouts_of(single.graph, parallel.graph) if count else {}
    for one in drawn(mistakes(parallel.graph, layouts), 0) if count else ():
        graph = one.graph()
        if graph is None:
            continue
        wrong = check_single_device(single.graph, graph, one.layouts, constants, simulates=False)
        tried[one.kind] += 1
        if wrong.verdict.runs:
            accepted.append(f"{one.kind} at {one.where}")
        if tried.total() == count:
            break
    each = (time.process_time() - start) / max(tried.total(), 1)
    return Outcome(str(report.verdict), report.values, seconds, tried, tuple(accepted), each)


def step3p5(ranks: int, layers: int, experts: str, dtype: torch.dtype) -> Capture:
    """Step-3.5 at its real size, of so many layers, as ``ranks`` ranks have it."""

    def model() -> torch.nn.Module:
        return Step3p5ForCausalLM(
            real_config(layers), group=dist.group.WORLD, experts=experts, device="meta", dtype=dtype
        )

    ids = torch.zeros(1, 64, dtype=torch.int64, device="meta")
    return capture_ranks(model, lambda: ((ids, torch.zeros_like(ids)), {}), ranks)


@lru_cache(maxsize=2)
def family(name: str, ranks: int, heads: int = 4) -> Capture:
    """A family of transformers, small, as ``ranks`` ranks have it, with so many key heads."""
    from tests.families.families import FAMILIES
    from tests.families.sharding import Decoder, sharded

    own = FAMILIES[name]
    own = replace(own, options={"num_key_value_heads": heads, **own.options})
    ids = torch.randint(3, 64, (1, 8), generator=torch.Generator().manual_seed(1))
    alone = partial(own.full, torch.float32, "batched_mm")
    split = partial(sharded, own, torch.float32, "batched_mm")
    factory = split if ranks > 1 else lambda: Decoder(alone())
    return capture_ranks(factory, lambda: ((ids,), {}), ranks, capture="record")


def row(model: str, ranks: int, outcome: Outcome) -> list[str]:
    """A line of the table."""
    wall, cpu = outcome.seconds
    tried, accepted = outcome.tried.total(), len(outcome.accepted)
    return [
        model, str(ranks), str(outcome.values), outcome.verdict, f"{wall:.1f} ({cpu:.1f})",
        str(tried), str(accepted), f"{outcome.each:.2f}",
    ]  # fmt: skip


def line(cells: Sequence[str]) -> str:
    """Cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("step3p5", "families"))
    parser.add_argument("names", nargs="*", help="families; all if left out")
    parser.add_argument("--tp", default="8", help="numbers of ranks, such as 2,4,8")
    parser.add_argument("--layers", default="45", help="of Step-3.5, such as 45,180")
    parser.add_argument("--experts", default="tp,ep")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--mistakes", type=int, default=0, metavar="N", help="seeded per model")
    options = parser.parse_args(arguments)
    counts = [int(n) for n in options.tp.split(",")]
    failed, kinds = False, Counter[str]()
    print(line(COLUMNS), line(["---"] * len(COLUMNS)), sep="\n", flush=True)

    def show(name: str, ranks: int, single: Capture, parallel: Capture) -> None:
        nonlocal failed
        outcome = measured(single, parallel, options.mistakes)
        print(line(row(name, ranks, outcome)), flush=True)
        for text in outcome.accepted:
            print(f"accepted: {text}", flush=True)
        failed |= outcome.wrong
        kinds.update(outcome.tried)

    if options.what == "step3p5":
        dtype = getattr(torch, options.dtype)
        for layers in map(int, options.layers.split(",")):
            single = step3p5(1, layers, "tp", dtype)
            for experts in options.experts.split(","):
                for ranks in counts:
                    name = f"step3p5, {layers} layers, {experts}"
                    show(name, ranks, single, step3p5(ranks, layers, experts, dtype))
    else:
        from tests.families.families import FAMILIES

        for name in options.names or FAMILIES:
            for ranks in counts:
                heads = max(4, ranks)
                show(name, ranks, family(name, 1, heads), family(name, ranks, heads))
    if kinds:
        print("mistakes:", ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
