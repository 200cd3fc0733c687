"""What nodes state about their results is what their ops give, or the graph is INVALID."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from compiler.check import Verdict, check, metadata
from compiler.errors import GraphError
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, aten, c10d, function

SIZES = "mesh <tp = 4>\nsym s0 in [2, 64]\nsym s1 in [2, 64]"


def sized(i: int, mesh: str = SIZES) -> SpmdGraph:
    """Ones, as many as the rows of input ``i``."""
    return function(
        '%0 "x": f64[s0, 4], %1 "y": f64[s1, 4]',
        f"%2: sym(s{i}) = aten.sym_size.int(%{i}, 0)",
        f"%3: f64[s{i}, 2] = aten.full([%2, 2], 1.0, dtype = f64)",
        "return %3",
        mesh=mesh,
    )


def product(dtype: torch.dtype = torch.float64) -> SpmdGraph:
    """``relu(x y)`` of square matrices, the first of them summed over the ranks."""
    build = Builder(Mesh({"tp": 4}))
    x, y = build.input("x", 4, 4, varies=("tp",), dtype=dtype), build.input("y", 4, 4, dtype=dtype)
    total = build.all_reduce(x)
    return build.finish(build.call(aten.relu.default, build.call(aten.mm.default, total, y)))


def node_of(graph: SpmdGraph, target: Any) -> fx.Node:
    return next(n for n in graph.graph.nodes if n.target is target)


def misread(graph: SpmdGraph) -> None:
    node = node_of(graph, aten.sym_size.int)
    node.args = (list(graph.graph.nodes)[1], 0)


def restated(target: Any, held: torch.Tensor) -> Callable[[SpmdGraph], None]:
    def change(graph: SpmdGraph) -> None:
        node_of(graph, target).meta["val"] = held

    return change


def scattered(graph: SpmdGraph) -> None:
    """An all_reduce made a reduce_scatter by a pass that states nothing anew."""
    node = node_of(graph, c10d.all_reduce.default)
    node.target, node.args = c10d.reduce_scatter_tensor.default, (node.args[0], "sum", 4, "tp")


def transposed(graph: SpmdGraph) -> None:
    """Another op, which cannot take what it is given."""
    node = node_of(graph, aten.mm.default)
    node.target, node.args = aten.bmm.default, tuple(node.args)


def metas(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("source", "change", "found"),
    [
        (sized(0), misread, "stated: 8; given by aten.sym_size.int: 16"),
        (product(), restated(aten.mm.default, metas(4, 2)),
         "stated: float64[4, 2]; given by aten.mm.default: float64[4, 4]"),
        (product(), restated(aten.relu.default, metas(4, 4, dtype=torch.float32)),
         "stated: float32[4, 4]; given by aten.relu.default: float64[4, 4]"),
        (product(), scattered, "stated: float64[4, 4]; given by "
         "_c10d_functional.reduce_scatter_tensor.default: float64[1, 4]"),
        (product(), transposed, "stated: float64[4, 4]; given by aten.bmm.default: an error: "
         "batch1 must be a 3D tensor"),
    ],
)  # fmt: skip
def test_what_is_not_stated_anew_is_found(
    source: SpmdGraph, change: Callable[[SpmdGraph], None], found: str
) -> None:
    target = source.own_copy()
    change(target)
    with pytest.raises(GraphError) as caught:
        metadata.check_metadata(source, target)
    assert f"\n  found: {found}\n  remedy: " in str(caught.value)


@pytest.mark.parametrize(("source", "change"), [(sized(0), misread), (product(), scattered)])
def test_a_false_statement_makes_a_graph_invalid(
    source: SpmdGraph, change: Callable[[SpmdGraph], None]
) -> None:
    target = source.own_copy()
    change(target)
    report = check(source, target)
    assert report.verdict is Verdict.INVALID
    assert " in the target is not what its op gives\n  where: " in report.explanation


def test_a_source_must_tell_the_truth_too() -> None:
    source, target = product(), product()
    restated(aten.mm.default, metas(4, 2))(source)
    with pytest.raises(GraphError, match="in the source is not what its op gives"):
        metadata.check_metadata(source, target)


def test_sizes_of_other_names() -> None:
    other = (
        '%0 "x": f64[s8, 4], %1 "y": f64[s9, 4]',
        "%2: sym(s8) = aten.sym_size.int(%0, 0)",
        "%3: f64[s8, 2] = aten.full([%2, 2], 1.0, dtype = f64)",
        "return %3",
    )
    target = function(*other, mesh="mesh <tp = 4>\nsym s8 in [2, 64]\nsym s9 in [2, 64]")
    metadata.check_metadata(sized(0), target)
    misread(target)
    with pytest.raises(GraphError, match=r"stated: 8; given by .*: 16"):
        metadata.check_metadata(sized(0), target)


def test_the_whole_message() -> None:
    source = product()
    target = source.own_copy()
    restated(aten.mm.default, metas(4, 2))(target)
    with pytest.raises(GraphError) as caught:
        metadata.check_metadata(source, target)
    assert str(caught.value) == (
        "the metadata of %mm_default in the target is not what its op gives\n"
        "  where: %mm_default : [num_users=1] = call_function[target=torch.ops.aten.mm.default]"
        "(args = (%wait_tensor_default, %y), kwargs = {})\n"
        "  found: stated: float64[4, 2]; given by aten.mm.default: float64[4, 4]\n"
        "  remedy: set meta['val'] anew where arguments change, for example with "
        "torch.fx.passes.fake_tensor_prop.FakeTensorProp"
    )


@pytest.mark.parametrize("bounds", ["[2, 8]", "[2, 3]", "[3, 3]", "[2, inf]"])
def test_sizes_within_their_bounds(bounds: str) -> None:
    mesh = f"mesh <tp = 4>\nsym s0 in {bounds}\nsym s1 in {bounds}"
    metadata.check_metadata(sized(0, mesh), sized(0, mesh))
    target = sized(0, mesh)
    misread(target)
    if bounds == "[3, 3]":  # there is one size, so that both read the same
        metadata.check_metadata(sized(0, mesh), target)
        return
    with pytest.raises(GraphError, match="is not what its op gives"):
        metadata.check_metadata(sized(0, mesh), target)


@pytest.mark.parametrize("most", [9, int_oo])
def test_numbers_without_a_least_value_take_the_other_sizes(most: Any) -> None:
    graph = sized(0)
    size = graph.graph.find_nodes(op="placeholder")[0].meta["val"].shape[0]
    size.node.shape_env.var_to_range[size.node.expr] = ValueRanges(-int_oo, most)
    symbol = metadata._symbols(graph)[size.node.expr]
    assert [symbol.near(n) for n in (-3, 2, 9)] == [-3, 2, 9]


def test_other_sizes_are_others_than_the_hints() -> None:
    graph = sized(0, "mesh <tp = 4>\nsym s0 in [4, 8]\nsym s1 in [4, 8]")
    symbols = metadata._symbols(graph)
    first, *_ = metadata._other_sizes(symbols)
    assert all(size != symbols[symbol].hint for symbol, size in first.items())


def test_other_sizes_are_such_as_the_source_can_run_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of four are not eight rows: the target is run at the next size."""
    monkeypatch.setattr(metadata, "OTHER_SIZES", (3, 16))
    real, tried = metadata._results, []

    def results(nodes: Any, sizes: metadata.Sizes) -> Any:
        tried.append(list(sizes.values()))
        return real(nodes, sizes)

    monkeypatch.setattr(metadata, "_results", results)
    source = function(
        '%0 "x": f64[s0, 4]',
        "%1: f64[8, 4*(s0 floordiv 8)] = aten.view(%0, [8, -1])",
        "return %1",
        mesh="mesh <tp = 4>\nsym s0 in [2, inf]",
    )
    metadata.check_metadata(source, source.own_copy())
    (hint,) = tried[0]
    assert tried == [[hint], [3], [16], [hint], [16]]


def unknown(x: Any) -> Any:
    return x


def opaque(kind: str) -> SpmdGraph:
    """Calls of which nothing can be said, with a statement that no op gives."""
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 4, 4)
    target = {"function": unknown, "data": aten.nonzero.default, "failing": aten.bmm.default}[kind]
    args = (x, x) if kind == "failing" else (x,)
    node = build.graph.call_function(target, args)
    node.meta["val"] = metas(3, 2)
    return build.finish(node)


@pytest.mark.parametrize("kind", ["function", "data", "failing"])
def test_what_cannot_run_without_data_is_taken_as_stated(kind: str) -> None:
    graph = opaque(kind)
    metadata.check_metadata(graph, graph.own_copy())


def test_several_results_and_arithmetic_with_sizes() -> None:
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 4, 6)
    best = build.call(aten.topk.default, x, 2)
    indices = build.call(operator.getitem, best, 1)
    graph = build.finish(indices)
    metadata.check_metadata(graph, graph.own_copy())
    target = graph.own_copy()
    node_of(target, operator.getitem).args = (node_of(target, aten.topk.default), 0)
    with pytest.raises(GraphError, match=r"stated: int64\[4, 2\]; given by .*: float64\[4, 2\]"):
        metadata.check_metadata(graph, target)


def test_truth_values_of_sizes_read_out_of_data_are_not_compared() -> None:
    """A loop over experts, ``torch.where`` in each, asserts one such value per expert."""
    build, sizes = Builder(Mesh({"tp": 4})), ShapeEnv()
    x = build.input("x", 4, 4)
    for _ in range(2):
        rows = build.graph.call_function(unknown, (x,))
        rows.meta["val"] = sizes.create_unbacked_symint()
        known = build.graph.call_function(operator.ge, (rows, 0))
        known.meta["val"] = rows.meta["val"] >= 0
    graph = build.finish(x)
    metadata.check_metadata(graph, graph.own_copy())


def test_equal_numbers_of_other_types_are_other_statements() -> None:
    """``full`` with 1 and True gives other types; neither stands for the other."""
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 2)
    filled = [build.call(aten.full.default, [2], fill, device="meta") for fill in (1, True, 1.0)]
    graph = build.finish(x, *filled)
    metadata.check_metadata(graph, graph.own_copy())
    target = graph.own_copy()
    node = [n for n in target.graph.nodes if n.target is aten.full.default][1]
    node.args = ([2], 1)
    with pytest.raises(GraphError, match=r"stated: bool\[2\]; given by .*: int64\[2\]"):
        metadata.check_metadata(graph, target)


def test_like_calls_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    real = metadata._given

    def counted(op: Any, args: Any, kwargs: Any) -> Any:
        ran.append(op)
        return real(op, args, kwargs)

    monkeypatch.setattr(metadata, "_given", counted)
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 4, 4)
    for _ in range(5):
        x = build.call(aten.relu.default, build.call(aten.mm.default, x, x))
    graph = build.finish(x)
    metadata.check_metadata(graph, graph.own_copy())
    assert ran == [aten.mm.default, aten.relu.default]


def test_a_call_that_its_op_refuses_on_another_rank() -> None:
    """Rank 0 reads rows 0 and 1 in all of them."""

    def graph(start: str) -> SpmdGraph:
        lines = (f"%{i}: f64[2] = aten.narrow(%0, 0, {n}, 2)" for i, n in ((1, "0"), (2, start)))
        return function('%0 "x": f64[4]', *lines, "return %1", mesh="mesh <tp = 2>")

    source = graph("rank(0, 2)")
    assert check(source, graph("rank(0, 1)")).verdict is Verdict.EQUIVALENT
    report = check(source, graph("rank(0, 3)"))
    assert report.verdict is Verdict.INVALID
    assert "start (3) + length (2) exceeds dimension size (4)" in report.explanation
