"""Prove tensor-parallel models against one device, and seed mistakes: verdicts, seconds, counts.

    scripts/bench_verify step3p5 --layers 45,180 --tp 8
    scripts/bench_verify families Llama Mixtral --tp 2,4,8 --mistakes 200

Families are captured for a prompt that fills a cache, and for one token behind a cache; mistakes
are seeded into the last of the calls. Prints a line per model and exits with 1 where a right model
was refused or a wrong one accepted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.distributed as dist

from compiler.capture import Capture, capture_ranks
from compiler.check import Verdict
from compiler.check.single_device import check_single_device
from compiler.check.single_device.compare import layouts_of
from models.step3p5 import Step3p5ForCausalLM
from models.step3p5.entry import real_config
from scripts.parallel_mistakes import Mistake, drawn, mistakes, rewrites

COLUMNS = (
    "model", "ranks", "values", "verdict", "CPU s", "rewritten", "proved", "mistakes", "refuted",
    "unproved", "accepted", "CPU s each",
)  # fmt: skip

Pair = tuple[Capture, Capture]
"""The model on one device, and as each rank has it."""


@dataclass
class Outcome:
    """What became of one call of a model.

    Attributes:
        verdict: on the right model.
        values: nodes of both graphs.
        seconds: CPU.
        rewritten: verdicts on models that are written otherwise, and right.
        tried: mistakes by kind.
        verdicts: on mistakes.
        wrong: right models that were refused, mistakes that were accepted.
        open: mistakes that were neither accepted nor refuted.
        each: CPU seconds of a mistake.
    """

    verdict: str
    values: int
    seconds: float
    rewritten: Counter[Verdict] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    each: float = 0.0


def proved(pair: Pair) -> Outcome:
    """Prove the right model."""
    single, parallel = pair
    constants = single.constants, parallel.constants
    cpu = time.process_time()
    report = check_single_device(single.graph, parallel.graph, None, constants)
    own = Outcome(str(report.verdict), report.values, time.process_time() - cpu)
    if not report.verdict.runs:
        own.wrong.append(f"refused: {report.explanation}")
    return own


def seed(pair: Pair, count: int, simulates: bool, own: Outcome) -> None:
    """Rewrite the parallel model rightly, then make up to ``count`` mistakes, one at a time."""
    single, parallel = pair
    for one in drawn(rewrites(parallel.graph), 0)[:count]:
        if (result := verdict(pair, one, simulates=False)) is not None:
            own.rewritten[result] += 1
            own.wrong += [f"refused: {one.kind} at {one.where}"] * (not result.runs)
    start = time.process_time()
    layouts = layouts_of(single.graph, parallel.graph, constants=parallel.constants)
    for one in drawn(mistakes(parallel.graph, layouts), 0):
        if own.tried.total() == count:
            break
        if (result := verdict(pair, one, simulates=simulates)) is None:
            continue
        own.tried[one.kind] += 1
        own.verdicts[result] += 1
        own.wrong += [f"accepted: {one.kind} at {one.where}"] * result.runs
        if result is Verdict.UNPROVED and simulates:
            own.open.append(f"no counterexample: {one.kind} at {one.where}")
    own.each = (time.process_time() - start) / max(own.tried.total(), 1)


def verdict(pair: Pair, one: Mistake, *, simulates: bool) -> Verdict | None:
    """Return the verdict on a model that was edited; None where the edit cannot be made."""
    single, parallel = pair
    if (graph := one.graph()) is None:
        return None
    constants = single.constants, parallel.constants
    return check_single_device(
        single.graph, graph, one.layouts, constants, simulates=simulates
    ).verdict


def step3p5(ranks: int, layers: int, experts: str, dtype: torch.dtype) -> Capture:
    """Step-3.5 at its real size, of so many layers, as ``ranks`` ranks have it."""

    def model() -> torch.nn.Module:
        return Step3p5ForCausalLM(
            real_config(layers), group=dist.group.WORLD, experts=experts, device="meta", dtype=dtype
        )

    ids = torch.zeros(1, 64, dtype=torch.int64, device="meta")
    return capture_ranks(model, lambda: ((ids, torch.zeros_like(ids)), {}), ranks)


class Cached(torch.nn.Module):
    """A language model over a cache, which it returns."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Wrap ``model``."""
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Return logits and cache."""
        result = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return result.logits, result.past_key_values


@lru_cache(maxsize=4)
def family(name: str, ranks: int, heads: int, call: str) -> Capture:
    """Capture a family of transformers, small, on ``ranks`` ranks, with so many key heads.

    Args:
        name: of the family.
        ranks: one for the model on one device.
        heads: key heads, where the family leaves their number open.
        call: "prompt", of two sequences into an empty cache, or "token": the next of each.
    """
    from transformers import DynamicCache

    from tests.families.families import FAMILIES
    from tests.families.sharding import sharded

    own = FAMILIES[name]
    own = replace(own, options={"num_key_value_heads": heads, **own.options})
    ids = torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(1))
    built: list[Any] = []

    def factory() -> torch.nn.Module:
        split = ranks > 1
        model: Any = (sharded if split else type(own).full)(own, torch.float32, "batched_mm")
        built[:] = [model.model if split else model]
        return Cached(built[0])

    def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
        (model,) = built
        cache = DynamicCache(config=model.config)
        if call == "prompt":
            return (ids, cache), {}
        with torch.no_grad():  # what the cache contains is of no account, but its shapes
            model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        return (ids[:, -1:], cache), {}

    return capture_ranks(factory, inputs, ranks, capture="record")


def row(model: str, ranks: int, outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line of the table."""
    last = outcomes[-1]
    verdicts = dict.fromkeys(own.verdict for own in outcomes)
    counts = [last.verdicts[v] for v in (Verdict.NOT_EQUIVALENT, Verdict.UNPROVED)]
    accepted = sum(n for verdict, n in last.verdicts.items() if verdict.runs)
    return [
        model, str(ranks), ", ".join(str(own.values) for own in outcomes), ", ".join(verdicts),
        ", ".join(f"{own.seconds:.1f}" for own in outcomes), str(last.rewritten.total()),
        str(sum(n for verdict, n in last.rewritten.items() if verdict.runs)),
        str(last.tried.total()), *map(str, counts), str(accepted), f"{last.each:.2f}",
    ]  # fmt: skip


def line(cells: Sequence[str]) -> str:
    """Return cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("step3p5", "families"))
    parser.add_argument("names", nargs="*", help="families; all if left out")
    parser.add_argument("--tp", default="8", help="numbers of ranks, such as 2,4,8")
    parser.add_argument("--layers", default="45", help="of Step-3.5, such as 45,180")
    parser.add_argument("--experts", default="tp,ep")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--calls", default="prompt,token", help="of families")
    parser.add_argument("--key-heads", type=int, metavar="N", help="of families; 4, or a rank each")
    parser.add_argument("--mistakes", type=int, default=0, metavar="N", help="seeded per model")
    return parser.parse_args(arguments)


def models(options: argparse.Namespace) -> Iterator[tuple[str, int, list[Pair]]]:
    """Capture models one after the other: name, number of ranks, and each call of them."""
    counts = [int(n) for n in options.tp.split(",")]
    if options.what == "step3p5":
        dtype = getattr(torch, options.dtype)
        for layers in map(int, options.layers.split(",")):
            single = step3p5(1, layers, "tp", dtype)
            for experts, ranks in product(options.experts.split(","), counts):
                parallel = step3p5(ranks, layers, experts, dtype)
                yield f"step3p5, {layers} layers, {experts}", ranks, [(single, parallel)]
        return
    from tests.families.families import FAMILIES

    for name, ranks in product(options.names or FAMILIES, counts):
        heads = options.key_heads or max(4, ranks)
        calls = options.calls.split(",")
        captures = [[family(name, n, heads, call) for n in (1, ranks)] for call in calls]
        yield name, ranks, [(single, parallel) for single, parallel in captures]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for."""
    options = options_of(arguments)
    failed, kinds = False, Counter[str]()
    print(line(COLUMNS), line(["---"] * len(COLUMNS)), sep="\n", flush=True)
    for name, ranks, pairs in models(options):
        outcomes = [proved(pair) for pair in pairs]
        if options.mistakes:
            seed(pairs[-1], options.mistakes, options.what == "families", outcomes[-1])
        texts = [text for own in outcomes for text in (*own.wrong, *own.open)]
        print(line(row(name, ranks, outcomes)), *texts, sep="\n", flush=True)
        failed |= any(own.wrong for own in outcomes)
        kinds.update(outcomes[-1].tried)
    if kinds:
        print("mistakes:", ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
