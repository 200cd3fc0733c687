"""print(parse(text)) == text for every kind of line; what symbols, sizes and ranks stand for."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import nn

from compiler.ir import access
from compiler.ir.text import parse, parse_graph, print_graph

HEADERS = """\
mesh <dp = 2, "t p" = 4>
group "0" = <"t p">
group "world" = <dp, "t p">
group "odd" = [[0, 2, 4, 6], [1, 3, 5, 7]]
sym s0 in [2, 8192]
sym s1 in [0, inf]
sym s2 in [-inf, 4]
sym s3 in [-inf, inf]
func @main(
  %0 "x": f32[s0, 8] {dp: S(0), "t p": P},
  %1 "n": sym(3*s1 + 1) {dp: R, "t p": R},
  %2 "y": bf16[8, s1]@cuda:0 strides [1, 8] {dp: R, "t p": P(max)},
  %3 "k": int(-4) {dp: R, "t p": R},
  %4 "scale": float(1e-06) {dp: R, "t p": R},
  %5 "flag": bool(true) {dp: R, "t p": R},
  %6 "mode": str("a \\"b\\" // c") {dp: R, "t p": R},
  %7 "mask": none {dp: R, "t p": R},
  %8 "shift": sym(s2) {dp: R, "t p": R},
  %9 "offset": sym(s3 + 1) {dp: R, "t p": R}
) {
  return %0, %1, %2
}
"""

COLLECTIVES = """\
mesh <tp = 8>
group "0" = <tp>
group "1" = [[0, 7, 1, 6, 2, 5, 3, 4]]
sym s0 in [8, 8192]
func @main(%0 "x": bf16[s0, 4] {tp: P}) {
  %1: bf16[s0, 4] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
  %2: bf16[s0, 4] = comm.all_reduce(%1) {group = "0", op = max}
  %3: bf16[s0 floordiv 8, 4] {tp: S(0)} = comm.reduce_scatter(%0) {axis = tp, op = avg}
  %4: bf16[8*(s0 floordiv 8), 4] {tp: R} = comm.all_gather(%3) {group = "1"}
  %5: bf16[2*(s0 floordiv 8), 4] = comm.all_gather(%3) {axis = tp, group_size = 2}
  %6: bf16[s0, 4] = comm.broadcast(%0) {axis = tp, src = 3}
  %7: bf16[s0, 4] = aten.relu(%0)
  %8: sym(s0) = aten.sym_size.int(%0, 0)
  %9: sym(s0 - 7) = py.sub(%8, 7)
  %10: bf16[s0, 4] = comm.all_to_all(%0) {axis = tp, output_splits = [%9, 1, 1, 1, 1, 1, 1, 1], \
input_splits = [1, 1, 1, 1, 1, 1, 1, %9]}
  %11: bf16[s0, 4] = comm.all_reduce_start(%0) {axis = tp, op = sum}
  %12: bf16[s0, 4] = aten.relu(%7)
  %13: bf16[s0, 4] = comm.wait(%11)
  %14: bf16[s0, 4] = comm.wait(%13)
  return %1, %2, %4, %5, %6, %7, %10, %12, %14
}
"""

VALUES = """\
mesh <tp = 2>
sym s0 in [2, 64]
sym u0 in [0, 512]
sym u7 in [-inf, inf]
func @main(%0 "x": f32[s0, 8] {tp: R}, %1 "ids": i64[s0] {tp: V}) {
  %2: f32[8, 4] {tp: S(1)} = attr "layers.0.weight"
  %3: f32[4, 8] strides [1, 4] {tp: V} = attr "layers.0.transposed"
  %4: (f32[s0, 2], i64[s0, 2]) = aten.topk(%0, 2, -1, true, false)
  %5: i64[s0, 2] = %4[1]
  %6: f32[s0, 2] = %4[-2]
  %7: (f32[s0, 4], f32[s0, 4]) = aten.split.Tensor(%0, 4, 1)
  %8: (f32[s0, 4],) = py.getitem(%7, slice(0, 1, none))
  %9: sym(s0) = aten.sym_size.int(%0, 0)
  %10: sym(2*s0) = py.mul(%9, 2)
  %11: sym(2*s0 - 1) = py.add(%10, -1)
  %12: sym(s0 floordiv 4) = py.floordiv(%9, 4)
  %13: sym(Max(7, s0)) = py.sym_max(%9, 7)
  %14: symfloat = py.truediv(%9, 2)
  %15: symbool = py.ge(%9, 9)
  %16: f32[2*s0 - 1, 4] = aten.full([%11, 4], -inf, dtype = f32, layout = strided, \
device = @cpu, pin_memory = false)
  %17: f32[s0, 8] = aten.clone(%0, memory_format = contiguous_format)
  %18: f64[s0, 8] = aten._to_copy(%0, dtype = f64)
  %19: f32[s0, 8] = aten.div.Tensor_mode(%0, 3.5, rounding_mode = "trunc")
  %20: f32[s0, 8] = aten.clamp(%0, none, nan)
  %21: i64[s0] = aten.sub.Tensor(%1, rank(0, 16112))
  %22: f32[s0, 8] = aten.mul.Tensor(%0, rank(0.5, 1.0))
  %23: f32[s0, 16] = aten.cat([%0, %17], 1)
  %24: f32[s0, s0] = aten.index.Tensor(%0, [none, %1])
  %25: i64[u0, 2] = aten.nonzero(%0)
  %26: i64[] = aten.sum(%1)
  %27: sym(u7) = aten._local_scalar_dense(%26)
  %28: f32[2, 3]@cuda:0 = aten.zeros([2, 3], device = @cuda:0)
  return %4, (%5, [%11, none, true]), {"loss": %6, "count": 3}, %14
}
"""


@pytest.mark.parametrize("text", [HEADERS, COLLECTIVES, VALUES])
def test_text_is_canonical(text: str) -> None:
    parsed = parse(text)
    assert print_graph(parsed.graph, facts=parsed.facts) == text


@pytest.mark.parametrize(
    "returned", ["%0", "none", "()", "(%0,)", "[%0]", "%0, %0", "[]", "[%0, [%0]], ({},)"]
)
def test_outputs(returned: str) -> None:
    text = f'mesh <tp = 2>\nfunc @main(%0 "x": f32[] {{tp: R}}) {{\n  return {returned}\n}}\n'
    graph = parse_graph(text)
    assert print_graph(graph) == text
    x = torch.tensor(1.0)
    expected = eval(returned.replace("%0", "x").replace("none", "None"))
    assert graph.module(x) == expected


def test_forms_that_are_read_and_not_written() -> None:
    canonical = """\
mesh <tp = 2>
sym s0 in [2, 64]
func @main(%0 "x": f32[s0, 4] {tp: R}) {
  %1: f32[4] {tp: V} = attr "w"
  %2: sym(s0) = aten.sym_size.int(%0, 0)
  %3: f32[s0, 4] = aten.view(%0, [%2, 4])
  return %3
}
"""
    written = """
    mesh<tp=2,>sym s0 in [ 2, 64 ]   // no line breaks needed, sym without expression, any numbers
    func @other(%7 "x": f32[s0 + 0, 2*2,]) { %3: f32[4] = attr "w" %9: sym = aten.sym_size.int
    (%7, 0,) %1: f32[s0, 4] {tp: R} = aten.view(%7, [%9, 4]) return %1 }
    """
    assert print_graph(parse_graph(written)) == canonical


def test_a_size_may_be_written_in_another_form() -> None:
    text = """\
mesh <tp = 2>
sym s0 in [2, 64]
func @main(%0 "x": f32[s0, 4] {tp: R}) {
  %1: f32[(8*s0) floordiv 2] = aten.view(%0, [-1])
  %2: f32[4*s0] = aten.relu(%1)
  return %2
}
"""
    assert "f32[4*s0] = aten.view" in print_graph(parse_graph(text))


def test_symbols_compare_equal_between_parses_and_with_torch() -> None:
    first, second = (access.node_of(parse_graph(VALUES).graph, "placeholder")[0] for _ in "12")
    size = access.shape(first)[0].node.expr
    assert (
        size == access.shape(second)[0].node.expr == sympy.Symbol("s0", integer=True, positive=True)
    )
    program = torch.export.export(
        nn.Identity(), (torch.zeros(4, 2),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)
    )
    (held,) = (n.meta["val"] for n in program.graph.nodes if n.op == "placeholder")
    assert held.shape[0].node.expr.assumptions0 == size.assumptions0


def test_a_symbol_keeps_its_range_although_an_op_narrows_it() -> None:
    text = COLLECTIVES.replace("[8, 8192]", "[2, inf]")
    assert print_graph(parse_graph(text)).startswith(text.split("func")[0])


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_constants_take_the_entry_of_the_rank(rank: int) -> None:
    graph = parse_graph(VALUES, rank=rank)
    found = [c for node in graph.graph.nodes for c in access.rank_constants(node)]
    assert [type(c) for c in found] == [access.RankInt, access.RankFloat]
    assert found == [(0, 16112)[rank], (0.5, 1.0)[rank]]
    assert print_graph(graph) == print_graph(parse_graph(VALUES))


def test_real_sizes_allocate_nothing() -> None:
    text = """\
mesh <tp = 8>
func @main(%0 "x": bf16[1048576, 1048576] {tp: R}) {
  %1: bf16[1048576, 1048576] {tp: V} = attr "w"
  %2: bf16[1048576, 1048576] = aten.mm(%0, %1)
  return %2
}
"""
    graph = parse_graph(text)
    assert print_graph(graph) == text
    assert graph.module.w.device.type == "meta"
