"""The minimum cut against all labelings, and what it decides on graphs that engines run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from torch import fx

from compiler.analysis.partial_values import Carrier, carriers
from compiler.analysis.reductions import facts, reductions
from compiler.analysis.statistics import statistics
from compiler.ir import access
from compiler.ir.comm_plan import CommPlan, Stage
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.text import numbers, print_graph
from compiler.plan.prices import Bytes
from compiler.plan.reduction_cut import ReductionChoice, place_reductions
from passes import EliminateDeadCode, PlaceReductions
from scripts.mutate.pairs import RandomPrices
from tests.compiler.plan.labelings import forced, known_of, labelings, weight
from tests.support.graphs import Builder, agree, aten, function
from tests.support.random_graphs import KINDS, LINEAR, seeded
from tests.support.seeds import share


def labels_of(graph: SpmdGraph, found: Mapping[fx.Node, Carrier], stage: Stage) -> set[fx.Node]:
    number = numbers(graph.graph)
    return {n for n in found if number[n] in stage.unreduced}


def small(seed: int) -> SpmdGraph:
    """One in three graphs with more than one reduction, and with ops that are not linear."""
    count = random.Random(seed).choice((6, 8, 11))
    kinds = [k for k in KINDS if k != "split"]  # of several results there is no one all_reduce
    return seeded(seed, count, kinds) if seed % 3 == 0 else seeded(seed, count, LINEAR, plain=True)


def test_cut_is_the_least_of_all_labelings() -> None:
    compared = moved = 0
    for seed in range(share(700)):
        graph = small(seed)
        for known, hoist in itertools.product(known_of(graph), (True, False)):
            found = carriers(graph, known)
            if sum(not forced(c, hoist=hoist) for c in found.values()) > 9:
                continue
            chosen = labels_of(graph, found, place_reductions(graph, known, hoist=hoist))
            choice = ReductionChoice(graph, known, hoist=hoist)
            drawn = RandomPrices(seed)
            for prices, picked in ((Bytes(), chosen), (drawn, choice.cheapest(drawn))):
                every = (weight(known, found, u, prices) for u in labelings(found, hoist=hoist))
                assert weight(known, found, picked, prices) == min(every), seed
            kept = {n for n, c in found.items() if c.addend or c.reduces}
            compared += len(found) > 1
            moved += chosen != kept
    print(f"\n{compared} cuts compared, {moved} move a reduction")
    assert compared > share(900)
    assert moved > share(120)


def test_no_labeling_gives_a_graph_with_less_payload() -> None:
    """Weights stand for what the rewritten graph really holds."""
    compared = 0
    for seed in range(share(160)):
        graph = EliminateDeadCode().apply(small(seed)).graph
        for known in known_of(graph):
            found = carriers(graph, known)
            if sum(not forced(c, hoist=True) for c in found.values()) > 6:
                continue
            stage = place_reductions(graph, known)
            least = min(
                measured(graph, stage, labels, found) for labels in labelings(found, hoist=True)
            )
            chosen = labels_of(graph, found, stage)
            assert measured(graph, stage, chosen, found) == least, seed
            compared += 1
    assert compared > share(60)


def measured(
    graph: SpmdGraph, stage: Stage, unreduced: set[fx.Node], found: Mapping[fx.Node, Carrier]
) -> tuple[int, int]:
    """Payload and number of all_reduces of the graph rewritten with these labels."""
    number = numbers(graph.graph)
    labels = tuple(sorted({number[n] for n in unreduced}))
    other = replace(stage, unreduced=labels)
    after = EliminateDeadCode().apply(PlaceReductions(other).apply(graph).graph).graph
    counted = statistics(after.graph)
    return counted.payload_bytes, len(counted.collectives)


def test_every_labeling_computes_the_same() -> None:
    """The rewrite is right for any placement, not only for the cheapest."""
    tried = 0
    for seed in range(share(120)):
        graph = small(seed)
        for known in known_of(graph):
            found = carriers(graph, known)
            if sum(not forced(c, hoist=True) for c in found.values()) > 4:
                continue
            number = numbers(graph.graph)
            for unreduced in labelings(found, hoist=True):
                labels = tuple(sorted({number[n] for n in unreduced}))
                stage = replace(place_reductions(graph, known), unreduced=labels)
                assert agree(graph, PlaceReductions(stage).apply(graph).graph, seeds=(0,)), seed
                tried += 1
    assert tried > share(200)


def test_merging_never_hoists() -> None:
    for seed in range(share(300)):
        graph = small(seed)
        for known in known_of(graph):
            found = carriers(graph, known)
            chosen = labels_of(graph, found, place_reductions(graph, known, hoist=False))
            assert all(n in chosen for n, c in found.items() if c.addend)


def test_equal_graphs_have_equal_plans() -> None:
    for seed in range(share(60)):
        plans = {
            CommPlan("cost", None, tuple(place_reductions(g, k) for k in known_of(g))).digest
            for g in (small(seed), small(seed), small(seed).own_copy())
        }
        assert len(plans) == 1


# What it decides. -------------------------------------------------------------------------------


def planned(graph: SpmdGraph, *, hoist: bool = True) -> SpmdGraph:
    """The graph after every stage of its plan."""
    for reduction in reductions(graph):
        stage = place_reductions(graph, facts(graph, reduction), hoist=hoist)
        after = PlaceReductions(stage).apply(graph).graph
        graph = EliminateDeadCode().apply(after).graph
        counted = [
            c
            for c in statistics(graph.graph).collectives
            if (graph.mesh.group(c.group), c.op, c.kind)
            == (reduction.groups, reduction.kind, stage.collective)
        ]
        payloads = [r.payload_bytes for r in stage.reductions]
        assert sum(payloads) == sum(c.payload_bytes for c in counted)
        assert len(payloads) == len(counted)
    return graph


def body(graph: SpmdGraph) -> list[str]:
    return [x.strip() for x in print_graph(graph).splitlines() if x.startswith(("  %", "  return"))
            and '"' not in x]  # fmt: skip


X = '%0 "x": f64[4, 8] {tp: V}'
AR = "comm.all_reduce(%0) {axis = tp, op = sum}"


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("f64[8]", "aten.sum.dim_IntList({}, [0])"),
        ("f64[4, 2]", "aten.slice.Tensor({}, 1, 2, 4)"),
    ],
)
def test_sinks_below_what_shrinks(kind: str, line: str) -> None:
    line = f"{kind} = {line}"
    graph = function(X, f"%1: f64[4, 8] = {AR}", f"%2: {line.format('%1')}", "return %2")
    assert body(planned(graph)) == [
        f"%1: {line.format('%0')}",
        f"%2: {kind} = comm.all_reduce(%1) {{axis = tp, op = sum}}",
        "return %2",
    ]


def test_sinks_through_what_keeps_the_size_to_what_shrinks() -> None:
    graph = function(
        X + ', %1 "r": f64[8], %2 "w": f64[8, 2]',
        f"%3: f64[4, 8] = {AR}",
        "%4: f64[4, 8] = aten.mul.Tensor(%3, %1)",
        "%5: f64[4, 8] = aten.mul.Tensor(%4, 2.5)",
        "%6: f64[4, 2] = aten.mm(%5, %2)",
        "return %6",
    )
    assert body(planned(graph)) == [
        "%3: f64[4, 8] = aten.mul.Tensor(%0, %1)",
        "%4: f64[4, 8] = aten.mul.Tensor(%3, 2.5)",
        "%5: f64[4, 2] = aten.mm(%4, %2)",
        "%6: f64[4, 2] = comm.all_reduce(%5) {axis = tp, op = sum}",
        "return %6",
    ]


def test_sinks_below_index_add_into_zeros() -> None:
    def graph(rows: int) -> SpmdGraph:
        return function(
            f'%0 "x": f64[8, 2] {{tp: V}}, %1 "i": i64[8], %2 "y": f64[{rows}, 2] {{tp: V}}',
            "%3: f64[8, 2] = comm.all_reduce(%0) {axis = tp, op = sum}",
            f"%4: f64[{rows}, 2] = comm.all_reduce(%2) {{axis = tp, op = sum}}",
            f"%5: f64[{rows}, 2] = aten.full([{rows}, 2], 0.0, dtype = f64)",
            f"%6: f64[{rows}, 2] = aten.index_add(%5, 0, %1, %3)",
            f"%7: f64[{rows}, 2] = aten.add.Tensor(%6, %4)",
            "return %7",
        )

    for rows in (4, 16):  # one sum instead of two, whatever grows
        assert statistics(planned(graph(rows)).graph).all_reduces == 1


def test_hoists_above_what_grows() -> None:
    graph = function(
        '%0 "x": f64[1, 8] {tp: V}',
        "%1: f64[4, 8] = aten.expand(%0, [4, 8])",
        "%2: f64[4, 8] = comm.all_reduce(%1) {axis = tp, op = sum}",
        "return %2",
    )
    assert body(planned(graph)) == [
        "%1: f64[1, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "%2: f64[4, 8] = aten.expand(%1, [4, 8])",
        "return %2",
    ]
    assert body(planned(graph, hoist=False)) == body(graph)


@pytest.mark.parametrize("op", ["neg", "alias"])
def test_ties_keep_the_place_that_the_author_chose(op: str) -> None:
    for before, after in (("", op), (op, "")):
        lines, at = [], 0
        for step in (before, "all_reduce", after):
            if step:
                text = AR.replace("%0", f"%{at}") if step == "all_reduce" else f"aten.{op}(%{at})"
                lines.append(f"%{at + 1}: f64[4, 8] = {text}")
                at += 1
        graph = function(X, *lines, f"return %{at}")
        assert body(planned(graph)) == body(graph)


def test_a_value_with_several_readers_is_reduced_once() -> None:
    graph = function(
        X,
        f"%1: f64[4, 8] = {AR}",
        "%2: f64[4, 8] = aten.neg(%1)",
        "%3: f64[4, 8] = aten.silu(%1)",
        "%4: f64[4, 8] = aten.mul.Tensor(%1, 2)",
        "return %2, %3, %4",
    )
    assert body(planned(graph)) == body(graph)


def test_equal_all_reduces_become_one() -> None:
    graph = function(X, f"%1: f64[4, 8] = {AR}", f"%2: f64[4, 8] = {AR}",
                     "%3: f64[4, 8] = aten.silu(%1)", "%4: f64[4, 8] = aten.tanh(%2)",
                     "return %3, %4")  # fmt: skip
    assert statistics(planned(graph).graph).all_reduces == 1


def test_reading_an_addend_as_it_is_pins_it() -> None:
    graph = function(
        '%0 "x": f64[1, 8] {tp: V}',
        "%1: f64[4, 8] = aten.expand(%0, [4, 8])",
        "%2: f64[4, 8] = comm.all_reduce(%1) {axis = tp, op = sum}",
        "%3: f64[4, 8] = aten.silu(%1)",
        "return %2, %3",
    )
    assert body(planned(graph)) == body(graph)


def residual_stream(layers: int) -> SpmdGraph:
    """Blocks that add a routed and a shared branch, each reduced, to a residual."""
    build = Builder(Mesh({"tp": 4}))
    stream = build.input("x", 2, 4)
    up, down = (build.input(name, 4, 4, varies=("tp",)) for name in ("up", "down"))
    for _ in range(layers):
        held = build.call(aten.silu.default, build.call(aten.mm.default, stream, up))
        branches = [build.all_reduce(build.call(aten.mm.default, held, down)) for _ in "ab"]
        stream = build.call(aten.add.Tensor, stream, build.call(aten.add.Tensor, *branches))
    return build.finish(stream)


def test_residual_stream_of_many_layers() -> None:
    graph = residual_stream(40)
    after = planned(graph)
    assert statistics(graph.graph).all_reduces == 80
    assert statistics(after.graph).all_reduces == 40
    assert agree(residual_stream(3), planned(residual_stream(3)))


def test_stage_tells_what_is_merged_and_counted() -> None:
    graph = residual_stream(2)
    (known,) = known_of(graph)
    stage = place_reductions(graph, known)
    assert (stage.group, stage.kind, stage.before) == ("tp", "sum", 4)
    assert stage.before_payload_bytes == 256
    assert [(r.op, r.merges, r.payload_bytes) for r in stage.reductions] == [
        ("aten.add.Tensor", 2, 64)
    ] * 2


def test_orthogonal_groups_and_other_kinds_never_merge() -> None:
    mesh = "mesh <dp = 2, tp = 2>"
    inputs = '%0 "x": f64[4, 8] {dp: V, tp: V}, %1 "y": f64[4, 8] {dp: V, tp: V}'
    for other in ("axis = dp, op = sum", "axis = tp, op = avg"):
        graph = function(
            inputs,
            "%2: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
            f"%3: f64[4, 8] = comm.all_reduce(%1) {{{other}}}",
            "%4: f64[4, 8] = aten.add.Tensor(%2, %3)",
            "return %4",
            mesh=mesh,
        )
        assert body(planned(graph)) == body(graph)


def test_names_of_one_group_merge() -> None:
    graph = function(
        '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}',
        "%2: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
        '%3: f64[4, 8] = comm.all_reduce(%1) {group = "7", op = sum}',
        "%4: f64[4, 8] = aten.add.Tensor(%2, %3)",
        "return %4",
        mesh='mesh <tp = 4>\ngroup "7" = <tp>',
    )
    assert body(planned(graph)) == [
        "%2: f64[4, 8] = aten.add.Tensor(%0, %1)",
        "%3: f64[4, 8] = comm.all_reduce(%2) {axis = tp, op = sum}",
        "return %3",
    ]


@pytest.mark.parametrize(("tokens", "payload_bytes"), [(1, 64), (64, 4096)])
def test_payloads_are_counted_at_the_given_tokens(tokens: int, payload_bytes: int) -> None:
    graph = function(
        '%0 "x": f64[s0, 8] {tp: V}',
        "%1: f64[s0, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "return %1",
        mesh="mesh <tp = 4>\nsym s0 in [2, 13]",
    )
    (known,) = known_of(graph)
    stage = place_reductions(graph, known, tokens=tokens)
    assert stage.before_payload_bytes == payload_bytes
    hint = access.concrete(access.shape(access.node_of(graph.graph, "placeholder")[0])[0])
    assert place_reductions(graph, known).before_payload_bytes == 64 * hint


def test_which_is_cheaper_may_depend_on_the_tokens() -> None:
    graph = function(
        '%0 "x": f64[s0, 8] {tp: V}, %1 "w": f64[8, s0]',
        "%2: f64[s0, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "%3: f64[8, 8] = aten.mm(%1, %2)",
        "return %3",
        mesh="mesh <tp = 4>\nsym s0 in [2, 64]",
    )
    (known,) = known_of(graph)
    placed = {t: place_reductions(graph, known, tokens=t).reductions[0].op for t in (4, 32)}
    assert placed == {4: "x", 32: "aten.mm.default"}
