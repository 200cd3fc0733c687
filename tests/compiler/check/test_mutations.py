"""Optimized models with one mistake each: none is accepted in place of its source."""

from __future__ import annotations

import random
from collections import Counter

import torch

from compiler.check import Verdict, check
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.optimize.graph import optimize_spmd
from compiler.pipeline import Pipeline
from tests.graphs import Builder, agree, aten
from tests.random_graphs import MUTATIONS, mutant, seeded

MESH = Mesh({"dp": 2, "tp": 2}, groups={"both": [[0, 1, 2, 3]]})


def experts(layers: int) -> SpmdGraph:
    """Attention, then routed tokens that are summed up and a shared expert, twice reduced."""
    build = Builder(MESH)
    stream = build.input("x", 4, 4, varies=("dp",))
    index = build.input("index", 8, dtype=torch.int64)
    scale = build.input("scale", 4)
    for layer in range(layers):
        up, down, routed = (
            build.input(f"{name}{layer}", 4, 4, varies=("tp",)) for name in ("up", "down", "routed")
        )
        normed = build.call(aten.mul.Tensor, build.call(aten.tanh.default, stream), scale)
        attended = build.call(aten.mm.default, build.call(aten.mm.default, normed, up), down)
        stream = build.call(aten.add.Tensor, stream, build.all_reduce(attended))
        hidden = build.call(aten.silu.default, build.call(aten.mm.default, stream, up))
        shared = build.all_reduce(build.call(aten.mm.default, hidden, down))
        twice = build.call(aten.cat.default, [hidden, hidden])
        rows = build.all_reduce(build.call(aten.mm.default, twice, routed))
        zeros = build.call(aten.zeros_like.default, stream)
        scattered = build.call(aten.index_add.default, zeros, 0, index, rows)
        weighed = build.call(aten.mul.Tensor, scattered, 2.5)
        stream = build.call(aten.add.Tensor, stream, build.call(aten.add.Tensor, weighed, shared))
    total = build.call(aten.sum.dim_IntList, stream, [0], True)
    return build.finish(stream, build.all_reduce(total, "dp", "avg"))


def optimized(graph: SpmdGraph) -> SpmdGraph:
    return optimize_spmd(graph, policy="cost", verify=True, tokens=None, pipeline=Pipeline()).spmd


def judged(source: SpmdGraph, target: SpmdGraph, mutants: int, seed: int) -> Counter[str]:
    """Verdicts on mutants, apart from those that happen to compute the same."""
    found: Counter[str] = Counter()
    rng = random.Random(seed)
    for mutation in MUTATIONS:
        for _ in range(mutants):
            try:
                wrong = mutant(target, mutation, rng.choice)
            except IndexError:  # nothing to mutate
                continue
            report = check(source, wrong)
            if agree(source, wrong):
                assert report.verdict is not Verdict.NOT_EQUIVALENT, report.explanation
                found["no mistake"] += 1
                continue
            assert not report.verdict.runs, (mutation.__name__, seed)
            found[str(report.verdict)] += 1
    return found


def test_no_mutant_of_an_optimized_model_is_accepted() -> None:
    source = experts(2)
    target = optimized(source)
    found = judged(source, target, 25, 0)
    print(f"\nmutants of a model: {dict(found)}")
    assert found["NOT_EQUIVALENT"] > 180
    assert set(found) <= {"NOT_EQUIVALENT", "no mistake"}


def test_no_mutant_of_an_optimized_random_graph_is_accepted() -> None:
    found: Counter[str] = Counter()
    for seed in range(60):
        source = seeded(seed + 10_000)
        found += judged(source, optimized(source), 1, seed)
    print(f"\nmutants of random graphs: {dict(found)}")
    assert found["NOT_EQUIVALENT"] > 250
    assert set(found) <= {"NOT_EQUIVALENT", "no mistake"}
