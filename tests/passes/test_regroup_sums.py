"""Regrouped sums of random trees: the same function, and never a plan of more bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import fx

from compiler.analysis.addition_trees import ADDITIONS
from compiler.analysis.statistics import Statistics
from compiler.check import Verdict, check
from compiler.cost import Launch
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.remark import RemarkKind
from compiler.ir.text import print_graph
from compiler.optimize import optimize
from compiler.optimize.validation import machine_of
from compiler.pipeline import Pipeline
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from passes import RegroupSums
from tests.support.graphs import Builder, agree, aten
from tests.support.random_graphs import anyhow, seeded
from tests.support.seeds import share

SHAPE = (4, 8)
LEAVES: dict[str, Callable[[Builder, fx.Node], fx.Node | float]] = {
    "sum": lambda b, x: b.all_reduce(x),
    "average": lambda b, x: b.all_reduce(x, op="avg"),
    "maximum": lambda b, x: b.all_reduce(x, op="max"),
    "other group": lambda b, x: b.all_reduce(x, "dp"),
    "both groups": lambda b, x: b.all_reduce(b.all_reduce(x), "dp"),
    "scale": lambda b, x: b.call(aten.mul.Tensor, b.all_reduce(x), 0.5),
    "view": lambda b, x: b.call(
        aten.view.default, b.all_reduce(b.call(aten.view.default, x, [32])), SHAPE
    ),
    "transposed": lambda b, x: b.call(
        aten.permute.default,
        b.all_reduce(
            b.call(aten.clone.default, b.call(aten.permute.default, x, [1, 0]),
                   memory_format=torch.contiguous_format)
        ),
        [1, 0],
    ),
    "expanded": lambda b, x: b.call(
        aten.repeat.default, b.all_reduce(b.call(aten.sum.dim_IntList, x, [0], True)), [4, 1]
    ),
    "row": lambda b, x: b.all_reduce(b.call(aten.sum.dim_IntList, x, [0])),
    "with a bias": lambda b, x: b.all_reduce(
        b.call(aten.add.Tensor, x, b.call(aten.sum.dim_IntList, x, [0]))
    ),
    "partial": lambda b, x: x,
    "number": lambda b, x: 1.5,
}  # fmt: skip


def random_tree(seed: int) -> SpmdGraph:
    """A sum of leaves in random order and grouping; some values are returned as well."""
    chosen = random.Random(seed)
    build = Builder(Mesh({"dp": 2, "tp": 2}))
    whole = build.input("r", *SHAPE)
    kinds = chosen.choices([*LEAVES, *["sum"] * 6], k=chosen.randrange(3, 8))
    inputs = [build.input(f"x{i}", *SHAPE, varies=("tp", "dp")) for i in range(len(kinds))]
    terms: list[fx.Node | float] = [LEAVES[k](build, x) for k, x in zip(kinds, inputs, strict=True)]
    terms += [whole] * chosen.randrange(3)
    seen: list[fx.Node] = []
    while len(terms) > 1:
        left, right = (terms.pop(chosen.randrange(len(terms))) for _ in range(2))
        if not isinstance(left, fx.Node):
            left, right = right, left
        if not isinstance(left, fx.Node):
            left = whole
        op = chosen.choice((*[aten.add.Tensor] * 4, aten.sub.Tensor))
        alpha = chosen.choice((1, 1, 1, 1, 1, 1, 2, 0.25, 0.3))
        terms.append(build.call(op, left, right, alpha=alpha))
        seen.append(left)
    (root,) = terms
    assert isinstance(root, fx.Node)
    return build.finish(root, *(x for x in seen if chosen.random() < 0.1))


def regrouped(graph: SpmdGraph) -> bool:
    """Whether the graph changes; what must hold then is asserted here."""
    before = print_graph(graph)
    result = RegroupSums().apply(graph)
    assert print_graph(graph) == before
    assert result.changed == (print_graph(result.graph) != before)
    assert result.changed == any(r.kind is RemarkKind.PASSED for r in result.remarks)
    expected = Verdict.EQUIVALENT if result.changed else Verdict.IDENTICAL
    assert check(graph, result.graph).verdict is expected
    assert not RegroupSums().apply(result.graph).changed
    assert additions(graph) == additions(result.graph)
    return result.changed


def additions(graph: SpmdGraph) -> int:
    return sum(node.target in ADDITIONS for node in graph.graph.nodes)


def test_random_trees() -> None:
    changed = 0
    for seed in range(share(150)):
        graph = random_tree(seed)
        if regrouped(graph):
            changed += 1
            assert agree(graph, RegroupSums().apply(graph).graph, seeds=(seed,)), seed
    assert changed > share(50)


def test_random_graphs() -> None:
    kinds = ("add", "tree", "tree", "all_reduce", "all_reduce", "all_reduce", "mm")
    assert any([regrouped(seeded(seed, 30, kinds, plain=True)) for seed in range(share(60))])
    for seed in range(share(60)):
        regrouped(anyhow(seed))


def planned(graph: SpmdGraph, policy: str) -> Statistics:
    planner = Planner(graph, PlannerOptions(policy), pipeline=Pipeline(check_each=True))
    return optimize(planner, planner.decide(None), verify=False).after


@pytest.mark.parametrize("policy", ["cost", "merge"])
def test_plans_never_have_more_collectives_or_bytes(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = [random_tree(seed) for seed in range(share(100))]
    after = [planned(graph, policy) for graph in graphs]
    monkeypatch.setattr("passes.regroup_sums.may_have_trees", lambda _: False)
    before = [planned(graph, policy) for graph in graphs]
    fewer = 0
    for seed, (old, new) in enumerate(zip(before, after, strict=True)):
        assert new.payload_bytes <= old.payload_bytes, seed
        assert len(new.collectives) <= len(old.collectives), seed
        fewer += len(new.collectives) < len(old.collectives)
    assert fewer > share(30)


def normed_sum(seed: int) -> SpmdGraph:
    """Sums and residuals in random order, with a norm behind that a kernel may do with them."""
    chosen = random.Random(seed)
    build = Builder(Mesh({"tp": 8}))

    def given(name: str, *shape: int, varies: Sequence[str] = ()) -> fx.Node:
        return build.input(name, *shape, varies=varies, dtype=torch.bfloat16)

    terms = [given(f"r{i}", 4096, 1024) for i in range(chosen.randrange(1, 3))]
    expansion, weight = given("e", 16, 1024), given("w", 1024)
    for i in range(chosen.randrange(2, 4)):
        x = given(f"x{i}", 4096, 16 if (low := chosen.random() < 0.3) else 1024, varies=("tp",))
        terms.append(build.all_reduce(build.call(aten.mm.default, x, expansion) if low else x))
    while len(terms) > 1:
        left, right = (terms.pop(chosen.randrange(len(terms))) for _ in range(2))
        terms.append(build.call(aten.add.Tensor, left, right))
    normed = build.call(aten.rms_norm.default, terms[0], [1024], weight, 1e-6)
    columns = given("m", 1024, 4, varies=("tp",))
    return build.finish(build.call(aten.mm.default, normed, columns))


def time_ps(graph: SpmdGraph, launch: Launch) -> int:
    planner = Planner(graph, PlannerOptions(machine=machine_of("h100x8"), launch=launch), ())
    return planner.time_ps(planner.decide(None), None)


@pytest.mark.parametrize("launch", Launch)
def test_plans_never_take_longer(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = [make(seed) for make in (random_tree, normed_sum) for seed in range(share(40))]
    after = [time_ps(graph, launch) for graph in graphs]
    monkeypatch.setattr("passes.regroup_sums.may_have_trees", lambda _: False)
    before = [time_ps(graph, launch) for graph in graphs]
    assert all(new <= old for old, new in zip(before, after, strict=True))
    assert sum(new < old for old, new in zip(before, after, strict=True)) > share(20)


def test_additions_keep_layer_and_source() -> None:
    build = Builder(Mesh({"tp": 2}))
    x, y = (build.input(name, *SHAPE, varies=("tp",)) for name in "xy")
    whole = build.input("r", *SHAPE)
    inner = build.call(aten.add.Tensor, whole, build.all_reduce(x))
    root = build.call(aten.add.Tensor, inner, build.all_reduce(y))
    for index, node in enumerate((inner, root)):
        node.meta["nn_module_stack"] = {"": (f"L['self'].layers.{index}", torch.nn.Module)}
        node.meta["stack_trace"] = f'File "model.py", line {index}, in forward'
    result = RegroupSums().apply(build.finish(root))
    made = [n for n in result.graph.graph.nodes if n.target in ADDITIONS]
    assert [access.layer_path(n) for n in made] == ["layers.0", "layers.1"]
    assert [access.source_location(n) for n in made] == [("model.py", 0), ("model.py", 1)]
    (remark,) = result.remarks
    assert remark.layer == "layers.1"


def test_factors_of_whole_numbers_are_whole() -> None:
    for first, second, regroups in ((2, 4, True), (2, 3, False)):
        build = Builder(Mesh({"tp": 2}))
        x, y = (build.input(n, *SHAPE, varies=("tp",), dtype=torch.int64) for n in "xy")
        whole = build.input("r", *SHAPE, dtype=torch.int64)
        inner = build.call(aten.add.Tensor, whole, build.all_reduce(x), alpha=first)
        root = build.call(aten.sub.Tensor, inner, build.all_reduce(y), alpha=second)
        graph = build.finish(root)
        assert regrouped(graph) is regroups
        assert agree(graph, RegroupSums().apply(graph).graph)


def test_long_sums_take_time_in_proportion() -> None:
    build = Builder(Mesh({"tp": 2}))
    total = build.input("r", *SHAPE)
    for i in range(1200):
        total = build.call(aten.add.Tensor, total, build.input(f"x{i}", *SHAPE))
    graph = build.finish(total)
    assert not RegroupSums().apply(graph).changed
