from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from compiler.errors import GraphError
from compiler.ir import access, collectives
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Partial, Replicate, Shard
from compiler.ir.text import (
    describe,
    numbers,
    parse,
    parse_graph,
    print_graph,
    to_json,
    value_count,
)

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
MESH = Mesh({"tp": 2}, groups={"0": [[0, 1]]})


def made(build: Any, mesh: Mesh = MESH, **attributes: torch.Tensor) -> SpmdGraph:
    """``build(graph, x)`` on an input x of 4 x 4; it returns what the graph returns."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(build(graph, x))
    module = fx.GraphModule(attributes, graph)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for node in graph.nodes:
            if node.op == "placeholder":
                node.meta["val"] = torch.empty(4, 4)
            elif node.op == "get_attr":
                node.meta["val"] = attributes[node.target]
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg(access.call(node), lambda n: n.meta["val"])
                node.meta["val"] = node.target(*args, **kwargs)
    return spmd_graph(module, mesh)


def all_reduced(graph: fx.Graph, x: fx.Node, group: Any = "tp") -> fx.Node:
    reduced = graph.call_function(c10d.all_reduce.default, (x, "sum", group))
    return graph.call_function(collectives.WAIT, (reduced,))


def test_inputs_come_first_wherever_the_graph_has_them() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        weight = graph.get_attr("w")
        y = graph.placeholder("y")
        product = graph.call_function(aten.mm.default, (x, y))
        return graph.call_function(aten.add.Tensor, (weight, product))

    text = print_graph(made(build, w=torch.ones(4, 4)))
    assert (
        text
        == """\
mesh <tp = 2>
group "0" = <tp>
func @main(%0 "x": f32[4, 4] {tp: R}, %1 "y": f32[4, 4] {tp: R}) {
  %2: f32[4, 4] {tp: V} = attr "w"
  %3: f32[4, 4] = aten.mm(%0, %1)
  %4: f32[4, 4] = aten.add.Tensor(%2, %3)
  return %4
}
"""
    )
    assert print_graph(parse_graph(text)) == text


def test_a_collective_and_its_wait_share_a_number() -> None:
    graph = made(all_reduced).graph
    assert [*numbers(graph).values()] == [0, 1, 1]
    assert [*numbers(graph)] == [node for node in graph.nodes if node.op != "output"]


SPLIT = """\
mesh <tp = 2>
func @main(%0 "x": f32[4, 4] {tp: R}) {
  %1: f32[4, 4] = comm.all_reduce_start(%0) {axis = tp, op = sum}
  %2: f32[4, 4] = aten.relu(%0)
  %3: f32[4, 4] = comm.wait(%1)
  %4: f32[4, 4] = comm.all_reduce_start(%0) {axis = tp, op = sum}
  %5: f32[4, 4] = comm.wait(%4)
  %6: f32[4, 4] = comm.wait(%4)
  %7: f32[4, 4] = comm.all_reduce_start(%0) {axis = tp, op = sum}
  return %2, %3, %5, %6
}
"""


def test_a_collective_without_its_wait_behind_it_prints_apart() -> None:
    graph = parse_graph(SPLIT)
    assert print_graph(graph) == SPLIT
    assert value_count(graph.graph) == len(graph.graph.nodes) - 1


def test_collective_arguments_may_be_named() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        reduced = graph.call_function(
            c10d.all_reduce.default, (x,), {"group_name": "0", "reduce_op": "max"}
        )
        return graph.call_function(collectives.WAIT, (reduced,))

    graph = made(build)
    assert '= comm.all_reduce(%0) {group = "0", op = max}\n' in print_graph(graph)
    assert print_graph(parse_graph(print_graph(graph))) == print_graph(graph)


FACTS = """\
mesh <dp = 2, tp = 2>
func @main(%0 "x": f32[4, 4] {dp: S(0), tp: P}) {
  %1: f32[4, 4] {dp: S(0), tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
  %2: f32[4, 4] {dp: S(0), tp: R} = aten.relu(%1)
  %3: f32[4, 4] = aten.neg(%1)
  return %2, %3
}
"""


def test_facts_print_beside_their_values() -> None:
    parsed = parse(FACTS)
    assert parsed.graph.inputs == {"x": (Shard(0), Partial())}
    assert [*parsed.facts.values()] == [(Shard(0), Replicate())] * 2
    assert print_graph(parsed.graph, facts=parsed.facts) == FACTS
    assert print_graph(parsed.graph).count("dp: ") == 1
    # A fact about the started collective is one about its result.
    (started, _), *_ = collectives.collectives(parsed.graph.graph)
    text = print_graph(parsed.graph, facts={started: (Replicate(), Replicate())})
    assert "%1: f32[4, 4] {dp: R, tp: R} = comm" in text


def placed(graph: SpmdGraph, paths: dict[int, str]) -> SpmdGraph:
    """``graph``, the values of these numbers coming from modules of these paths."""
    number = numbers(graph.graph)
    for node in graph.graph.nodes:
        if path := paths.get(number.get(node, -1)):
            node.meta["nn_module_stack"] = {"": (path, "")}
    return graph


def test_comments_stand_in_one_column_and_are_not_read() -> None:
    text = print_graph(placed(parse_graph(FACTS), {1: "mlp"}), source=True, name="f")
    assert (
        text
        == """\
mesh <dp = 2, tp = 2>
func @f(%0 "x": f32[4, 4] {dp: S(0), tp: P}) {
  %1: f32[4, 4] = comm.all_reduce(%0) {axis = tp, op = sum}  // mlp
  %2: f32[4, 4] = aten.relu(%1)
  %3: f32[4, 4] = aten.neg(%1)
  return %2, %3
}
"""
    )
    assert print_graph(parse_graph(text)) == print_graph(parse_graph(FACTS))
    every = placed(parse_graph(FACTS), {0: "x", 1: "v1", 2: "v2", 3: "v3"})
    assert (
        print_graph(every, source=True)
        == """\
mesh <dp = 2, tp = 2>
func @main(
  %0 "x": f32[4, 4] {dp: S(0), tp: P}                        // x
) {
  %1: f32[4, 4] = comm.all_reduce(%0) {axis = tp, op = sum}  // v1
  %2: f32[4, 4] = aten.relu(%1)                              // v2
  %3: f32[4, 4] = aten.neg(%1)                               // v3
  return %2, %3
}
"""
    )


def test_a_long_line_does_not_move_the_column_of_comments() -> None:
    wide = "x" * 120
    text = FACTS.replace("func", f'group "{wide}" = <tp>\nfunc')
    text = text.replace("axis = tp", f'group = "{wide}"').replace("-", "")
    graph = placed(parse_graph(text), {0: "x", 1: "v1", 2: "v2", 3: "v3"})
    rows = print_graph(graph, source=True).splitlines()
    columns = {row.index("  //") for row in rows if "  //" in row and wide not in row}
    assert columns == {len('  %0 "x": f32[4, 4] {dp: S(0), tp: P}')}
    assert sum(row.endswith("}  // v1") for row in rows) == 1


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()  # the line that the test names


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Inner()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


def test_source_and_layer() -> None:
    program = torch.export.export(Outer(), (torch.ones(4, 4),), strict=False)
    graph = spmd_graph(program.graph_module, MESH)
    code = Inner.forward.__code__
    where = f"loc(test_print.py:{code.co_firstlineno + 1})  layers.0"
    assert f"%1: f32[4, 4] = aten.relu(%0)  // {where}\n" in print_graph(graph, source=True)
    assert "//" not in print_graph(graph)


def test_describe() -> None:
    graph = parse_graph(FACTS)
    x, started, wait, _, _, output = graph.graph.nodes
    assert describe(x) == '%0 "x": f32[4, 4]'
    assert describe(started) == describe(wait)
    assert describe(wait) == '%1: f32[4, 4] = comm.all_reduce(%0) {group = "tp", op = sum}'
    assert describe(wait, mesh=graph.mesh) == (
        "%1: f32[4, 4] = comm.all_reduce(%0) {axis = tp, op = sum}"
    )
    assert describe(output) == "return %2, %3"


def test_describe_what_has_no_text_form() -> None:
    """Messages about broken and unfinished graphs must print."""

    class Odd:
        def __repr__(self) -> str:
            return "Odd()"

    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.relu, (x,))
    method = graph.call_method("neg", (x, None))
    odd = graph.call_function(aten.relu.default, (x,), {"a": torch.strided})
    odd.kwargs = {"a": torch.sparse_csr}
    sparse = graph.call_function(aten.relu.default, (x,))
    sparse.meta["val"] = torch.eye(2).to_sparse()
    assert describe(x) == '%0 "x": ?'
    assert describe(node).startswith("%1: ? = ?<")
    assert describe(method) == "%2: ? = ?neg(%0, none)"
    assert describe(odd) == "%3: ? = aten.relu(%0, a = ?torch.sparse_csr)"
    assert describe(sparse) == "%4: ? = aten.relu(%0)"


def refused(build: Any, **attributes: torch.Tensor) -> str:
    graph = made(build, **attributes)
    with pytest.raises(GraphError) as error:
        print_graph(graph)
    return str(error.value)


@pytest.mark.parametrize("op", [torch.nn.functional.relu, aten.relu])
def test_an_op_without_text_form(op: Any) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_function(op, (x,))

    message = refused(build)
    assert message.startswith(
        "an op has no text form: it is not an ATen or Python op\n"
        f"  where: %1: f32[4, 4] = ?{op}(%0)\n"
        f"  found: call_function of {op}\n"
    )
    assert message.endswith(
        "  remedy: functionalize and flatten the graph: export it and run_decompositions({})"
    )


def test_a_higher_order_op_has_no_text_form() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda y: y.relu(), lambda y: y.neg(), (x,))

    module = torch.export.export(Branches(), (torch.ones(4),), strict=False).graph_module
    for node in module.graph.nodes:
        node.meta.setdefault("val", None)  # of the branches, which are modules
    with pytest.raises(GraphError) as error:
        print_graph(spmd_graph(module, MESH))
    assert error.value.what == "an op has no text form: it is not an ATen or Python op"
    assert error.value.where.startswith("%5: (f32[4],) = ?cond(%2, %3, %4, (%0,)), from ")
    assert error.value.found == "call_function of cond"


def test_an_argument_without_text_form() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_function(aten.mul.Scalar, (x, 1j))

    assert refused(build) == (
        "an argument has no text form\n"
        "  where: %1: c64[4, 4] = aten.mul.Scalar(%0, ?1j)\n"
        "  found: 1j of type complex\n"
        "  remedy: pass values, numbers, strings, lists, dtypes, devices or layouts; a size that "
        "depends on a symbol comes from a value of aten.sym_size.int"
    )


def test_a_value_without_text_form() -> None:
    graph = made(lambda graph, x: graph.call_function(aten.neg.default, (x,)))
    call = next(n for n in graph.graph.nodes if n.op == "call_function")
    call.meta["val"] = call.meta["val"].to_sparse()
    with pytest.raises(GraphError) as error:
        print_graph(graph)
    assert str(error.value) == (
        "a value has no text form\n"
        "  where: %1: ? = aten.neg(%0)\n"
        "  found: torch.float32, torch.sparse_coo\n"
        "  remedy: keep it out of the graph"
    )


def test_a_value_of_no_known_type() -> None:
    graph = made(lambda graph, x: graph.call_function(operator.getitem, (x, 0)))
    next(n for n in graph.graph.nodes if n.op == "call_function").meta["val"] = {"a": 1}
    with pytest.raises(GraphError, match=r"found: \{'a': 1\}"):
        print_graph(graph)


def test_an_op_without_result_needs_no_meta() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        graph.call_function(aten._assert_tensor_metadata.default, (x, None, None, torch.float32))
        return x

    graph = made(build)
    _, check, _ = graph.graph.nodes
    del check.meta["val"]
    text = print_graph(graph)
    assert "  %1: none = aten._assert_tensor_metadata(%0, none, none, f32)\n" in text
    assert print_graph(parse_graph(text)) == text
    assert '"type": "none"' in to_json(graph)


def test_a_value_without_meta() -> None:
    graph = made(all_reduced)
    del next(iter(graph.graph.nodes)).meta["val"]
    with pytest.raises(GraphError, match=r"value %x has no meta\['val'\]"):
        print_graph(graph)
