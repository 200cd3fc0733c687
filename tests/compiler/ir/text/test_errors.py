"""Every error of the parser, in full. « marks where the error must point."""

from __future__ import annotations

import pytest

from compiler.errors import GraphError
from compiler.ir.text import parse_graph
from compiler.ir.text.reader import SIZE_FUNCTIONS
from compiler.ir.text.spelling import DTYPES

HEADER = "mesh <tp = 2>\nsym s0 in [2, 64]\n"
START = HEADER + 'func @main(%0 "x": f32[4, 4] {tp: R}) {\n'
END = "\n  return %0\n}\n"

TEXTS = [
    (START + "  «returnnone\n}\n", "expected value or 'return'\n  found: 'returnnone'"),
    ("mesh <tp = 2>\n«syms0 in [2, 64]\n", "expected 'sym', 'func' or 'group'\n  found: 'syms0'"),
    ("«", "expected 'mesh'\n  found: the end of the text"),
    ("«func @main() {\n  return none\n}\n", "expected 'mesh'\n  found: 'func'"),
    ("mesh <tp = 8«\n", "expected ',' or '>'\n  found: the end of the text"),
    ("mesh <tp = «x>\n", "expected axis size\n  found: 'x'"),
    (START + "  %1: f32[4] = aten.relu(%0) «; \n}\n", "unexpected character ';'"),
    (
        START + '  %1: f32[4] = attr «"abc\n\n}\n',
        "the string is not closed\n  remedy: end it on its line",
    ),
    (START + '  %1: f32[4] = attr «"a\\qc"' + END, "not a string: Invalid \\escape"),
    (
        "mesh <tp = 2>\nsym s0 in [2, 64]\n«fun @main() {}",
        "expected 'sym' or 'func'\n  found: 'fun'",
    ),
    (
        "mesh <tp = 2>\nsym s0 in [2, 64]\nfunc «main() {}",
        "expected @ and the name of the function\n  found: 'main'",
    ),
    (
        "mesh <tp = 2>\n"
        "sym s0 in [2, 64]\n"
        'func @main(%0 "x": f32[4] {tp: R}) {\n'
        "  %1: f32[4] = aten.relu(%0)«\n",
        "expected value or 'return'\n  found: the end of the text",
    ),
    (
        'mesh <tp = 2>\nsym s0 in [2, 64]\nfunc @main(%0 "x": f32[4] {tp: R}) {\n  return %0«\n',
        "expected ',' or '}'\n  found: the end of the text",
    ),
    (START + "  return %0\n}\n«func @other() {}", "expected the end of the text\n  found: 'func'"),
    (START + "  %1: f32[4, 4] = aten.relu(%0)\n«}\n", "expected value or 'return'\n  found: '}'"),
    (START + "  return «%7\n}\n", "unknown value '%7'\n  remedy: define it before its use"),
    (
        "mesh <tp = 2>\n"
        "sym s0 in [2, 64]\n"
        'func @main(%0 "x": f32[4, s0]) {\n'
        "  %1: sym(s0 + 1) = «aten.sym_size.int(%0, 1)\n"
        "  return %0\n"
        "}\n",
        "aten.sym_size.int gives sym(s0), its value is printed as sym(s0 + 1)",
    ),
    (
        START + "  %1: f32[8, 4] = comm.all_gather(%0)\n  «return %0\n}\n",
        "expected '{'\n  found: 'return'",
    ),
    (START + "  return (%0«)\n}\n", "parentheses around one item\n  remedy: write a tuple as (x,)"),
    (
        START + '  %1: f32[4] = attr "w"\n  %2: f32[4] = attr "w.x"\n  «return %0\n}\n',
        "one module cannot have the attributes w, w.x",
    ),
    (
        "mesh <tp = 2>\n"
        "sym s0 in [2, 64]\n"
        "sym u1 in [0, 4]\n"
        'func @main(%0 "x": f32[4, 4] {tp: R}) {\n'
        "  %1: i64[u1, 2] = «aten.relu(%0)\n"
        "  return %0\n"
        "}\n",
        "aten.relu gives f32[4, 4], its value is printed as i64[u1, 2]",
    ),
]
"""Whole texts."""

HEADERS = [
    ("mesh <tp = 2, «tp = 2>\n", "axis 'tp' appears twice"),
    ("«mesh <tp = 0>\n", "axis 'tp' has no ranks\n  found: 0\n  remedy: a size of >= 1"),
    ("«mesh <>\n", 'a mesh needs at least one axis\n  remedy: for example Mesh({"tp": 8})'),
    (
        "mesh <tp = 2>\ngroup «tp = <tp>\n",
        "expected quoted group name\n  found: 'tp'",
    ),
    (
        'mesh <tp = 2>\n«group "g" = [[0]]\n',
        "the replica groups of 'g' do not list every rank exactly once\n"
        "  found: ranks [0] for a mesh of 2\n"
        "  remedy: give groups that partition the ranks 0 .. 1",
    ),
    (
        'mesh <tp = 2>\ngroup "g" = <tp>\ngroup «"g" = [[1, 0]]\n',
        "group 'g' appears twice",
    ),
    (
        'mesh <tp = 2>\n«group "tp" = [[1, 0]]\n',
        "group 'tp' is also an axis and denotes other ranks\n"
        "  found: ((1, 0),), axis ((0, 1),)\n"
        "  remedy: rename the group or the axis",
    ),
    (
        'mesh <tp = 2>\ngroup "g" = [«0, 1]\n',
        "expected '[' or ']'\n  found: '0'",
    ),
    (
        'mesh <tp = 2>\ngroup "g" = «tp\n',
        "expected replica groups, as in <axis, …> or [[rank, …], …]\n  found: 'tp'",
    ),
    ('mesh <tp = 2>\ngroup "g" = <«dp>\n', "unknown axis 'dp'\n  remedy: one of tp"),
    ("mesh <tp = 2>\nsym s0 in [2, 64]\nsym «s0 in [2, 64]\n", "'s0' is declared twice"),
    ("mesh <tp = 2>\nsym «s.a in [2, 64]\n", "'s.a' cannot be a symbol"),
    (
        "mesh <tp = 2>\nsym «s0 in [8, 4]\n",
        "the range of 's0' holds no size\n"
        "  remedy: write least and greatest value, [2, inf] for any size",
    ),
    (
        "mesh <tp = 2>\nsym «s0 in [-inf, -inf]\n",
        "the range of 's0' holds no size\n"
        "  remedy: write least and greatest value, [2, inf] for any size",
    ),
    (
        "mesh <tp = 2>\nsym «u0 in [inf, inf]\n",
        "the range of 'u0' holds no size\n"
        "  remedy: write least and greatest value, [2, inf] for any size",
    ),
    ("mesh <tp = 2>\nsym s0 in [2, «4.5]\n", "expected 'inf', integer or '-'\n  found: '4.5'"),
]
"""What stands before a function."""

INPUTS = [
    ('%0 "x": f32[s0 «floordivs0]', "expected operator, ',', '(' or ']'\n  found: 'floordivs0'"),
    (
        '%0 «"x.y": f32[4]',
        "'x.y' cannot name an input\n"
        "  remedy: names of inputs are Python identifiers, each different",
    ),
    (
        '%0 "x": f32[4], %1 «"x": f32[4]',
        "'x' cannot name an input\n"
        "  remedy: names of inputs are Python identifiers, each different",
    ),
    ("%0«: f32[4]", "expected quoted input name\n  found: ':'"),
    ('«"x": f32[4]', 'expected input, as in %0 "x": f32[4]\n  found: \'"x"\''),
    ('%0 «"x": (f32[4], f32[4])', "an input cannot be of type (f32[4], f32[4])"),
    ('%0 «"x": symfloat', "an input cannot be of type symfloat"),
    (
        '%0 "x": «g32[4]',
        f"unknown element type 'g32'\n  remedy: one of {', '.join(DTYPES)}",
    ),
    (
        '%0 "x": «f32 {tp: R}',
        "unknown type without sizes 'f32'\n"
        "  remedy: write a tensor as f32[4, 8], a number as sym(s0) or int(4)",
    ),
    ('%0 "x": f32[4, «"a"]', "expected size or ']'\n  found: '\"a\"'"),
    ('%0 "x": f32[«4.5]', "expected size or ']'\n  found: '4.5'"),
    (
        '%0 "x": f32[4, «s1]',
        "unknown symbol 's1'\n  remedy: add 'sym s1 in [2, inf]' before the function",
    ),
    (
        '%0 "x": f32[«Foo(s0)]',
        "unknown function 'Foo'\n"
        f"  remedy: one of {', '.join(SIZE_FUNCTIONS)}",  # those of this PyTorch
    ),
    ('%0 "x": «int(4.0)', "not of type int"),
    ('%0 "x": f32[4]«@tpuu', "unknown device 'tpuu'"),
    ('%0 "x": f32[4, 4] «strides [1]', "1 strides of f32[4, 4]"),
    (
        '%0 "x": f32[4] {tp: «Q}',
        "not a placement\n  found: 'Q'\n  remedy: write R, V, P, P(op) or S(dim)",
    ),
    (
        '%0 "x": f32[4] {tp: «S}',
        "not a placement\n  found: 'S'\n  remedy: write R, V, P, P(op) or S(dim)",
    ),
    ('%0 "x": f32[4] {tp: «S(1)}', "placement S(1) of a tensor of 1 dimensions"),
    ('%0 "x": f32[4] {«ep: R}', "unknown axis 'ep'\n  remedy: one of tp"),
    ('%0 "x": f32[4] {tp: R, «tp: R}', "axis 'tp' appears twice"),
    ('%0 "x": f32[4] «strides [-1]', "a negative stride"),
    (
        '%0 "x": f32[«FloorDiv(s0)]',
        "not a size\n  found: FloorDiv takes exactly 2 arguments (1 given)",
    ),
    ('%0 "x": f32[«s0 floordiv 0]', "not a size\n  found: division by zero"),
    ('%0 "x": f32[«1/2]', "not a size\n  found: 1/2"),
    ('%0 «"x": f32[Where(s0, 1, 2)]', "Where(s0, 1, 2) is not a size"),
    (
        '%0 «"def": f32[4]',
        "'def' cannot name an input\n"
        "  remedy: names of inputs are Python identifiers, each different",
    ),
    ('%0 «"n": sym', "an input cannot be of type sym"),
]
"""What stands between the parentheses of a function."""

LINES = [
    (
        "  %1: float(4.0) = «aten.sym_size.int(%0, 0)",
        "aten.sym_size.int gives int(4), its value is printed as float(4.0)",
    ),
    (
        "  %1: f32[4, 4] = «comm.all_reduce.x(%0) {axis = tp, op = sum}",
        "unknown op 'comm.all_reduce.x'\n"
        "  remedy: one of comm.all_reduce, comm.reduce_scatter, comm.all_gather, "
        "comm.all_to_all, comm.broadcast, comm.wait",
    ),
    ("  %1: f32[4, 4] = aten.relu(«%7)", "unknown value '%7'\n  remedy: define it before its use"),
    ("  %1: f32[4, 4] = «%7[0]", "unknown value '%7'\n  remedy: define it before its use"),
    ("  «%0: f32[4, 4] = aten.relu(%0)", "value %0 is defined twice"),
    (
        "  %1: f32[«s1 + 1, 4] = aten.relu(%0)",
        "unknown symbol 's1'\n  remedy: add 'sym s1 in [2, inf]' before the function",
    ),
    ("  %1: f32[4] = aten.full([4], 1, device = «@gpu)", "unknown device 'gpu'"),
    ("  %1: f32[4, 4] strides [1, 4] = «aten.relu(%0)", "only inputs and attributes have strides"),
    ('  %1: f32[s0] = attr «"w"', "an attribute is a tensor of constant sizes, not f32[s0]"),
    ('  %1: f32[4] = attr «"w..x"', "'w..x' cannot name an attribute"),
    ('  %1: f32[4] = attr «"x"', "'x' names an input and an attribute"),
    (
        '  %1: f32[4] = attr "w"\n  %2: f32[5] = attr «"w"',
        "attribute 'w' was declared with another type",
    ),
    (
        '  %1: f32[4] {tp: R} = attr "w"\n  %2: f32[4] {tp: V} = attr «"w"',
        "attribute 'w' was declared with another placement",
    ),
    ("  %1: f32[4] = attr «w", "expected quoted attribute name\n  found: 'w'"),
    (
        "  %1: f32[4, 4] = «relu(%0)",
        "unknown op 'relu'\n"
        "  remedy: write namespace.op, and import the library that registers the op "
        "before parsing",
    ),
    (
        "  %1: f32[4, 4] = «atn.relu(%0)",
        "unknown op 'atn.relu'\n"
        "  remedy: write namespace.op, and import the library that registers the op "
        "before parsing",
    ),
    (
        "  %1: f32[4, 4] = «aten.relou(%0)",
        "unknown op 'aten.relou'\n"
        "  remedy: write namespace.op, and import the library that registers the op "
        "before parsing",
    ),
    (
        "  %1: f32[4, 4] = «aten.relu.default(%0)",
        "unknown op 'aten.relu.default'\n  remedy: one of aten.relu, aten.relu.out",
    ),
    (
        "  %1: f32[4, 4] = «py.foo(%0)",
        "unknown op 'py.foo'\n"
        "  remedy: one of py.add, py.sub, py.mul, py.floordiv, py.truediv, py.mod, "
        "py.pow, py.neg, py.pos, py.getitem, py.eq, py.ne, py.lt, py.le, py.gt, py.ge, "
        "py.and, py.or, py.not, py.lshift, py.rshift, py.sym_float, py.sym_int, "
        "py.sym_max, py.sym_min, py.sym_not, py.sym_ite, py.sym_sum, py.ceil, py.floor, "
        "py.trunc",
    ),
    (
        "  %1: f32[4, 4] = «comm.send(%0) {axis = tp}",
        "unknown op 'comm.send'\n"
        "  remedy: one of comm.all_reduce, comm.reduce_scatter, comm.all_gather, "
        "comm.all_to_all, comm.broadcast, comm.wait",
    ),
    (
        "  %1: bf16[4, 4] = «aten.mm(%0, %0)",
        "aten.mm gives f32[4, 4], its value is printed as bf16[4, 4]",
    ),
    (
        "  %1: (f32[4, 4], f32[4, 4]) = «aten.mm(%0, %0)",
        "aten.mm gives f32[4, 4], its value is printed as (f32[4, 4], f32[4, 4])",
    ),
    (
        "  %1: f32[4, 2] = «aten.topk(%0, 2)",
        "aten.topk gives (f32[4, 2], i64[4, 2]), its value is printed as f32[4, 2]",
    ),
    (
        "  %1: (f32[4, 2], i64[4, 2]) = aten.topk(%0, 2)\n  %2: f32[4, 2] = «%1[1]",
        "py.getitem gives i64[4, 2], its value is printed as f32[4, 2]",
    ),
    (
        "  %1: (f32[4, 2], i64[4, 2]) = aten.topk(%0, 2)\n  %2: f32[4, 2] = «%1[2]",
        "py.getitem refuses its operands\n  found: tuple index out of range",
    ),
    (
        "  %1: f32[4, 4] = aten.softmax.int(dim = 1, «%0)",
        "expected name or ')'\n  found: '%0'",
    ),
    (
        '  %1: f32[4, 4] = comm.all_reduce(%0) {group = «"ep", op = sum}',
        "unknown group 'ep'\n"
        "  remedy: one of tp, or add 'group \"ep\" = [[rank, …], …]' after the mesh",
    ),
    (
        "  %1: f32[4, 4] = comm.all_reduce(%0) {axis = «ep, op = sum}",
        "unknown axis 'ep'\n  remedy: one of tp",
    ),
    (
        "  %1: f32[4, 4] = «comm.all_reduce(%0) {op = sum}",
        "comm.all_reduce needs one axis or one group",
    ),
    (
        '  %1: f32[4, 4] = «comm.all_reduce(%0) {axis = tp, group = "tp", op = sum}',
        "comm.all_reduce needs one axis or one group",
    ),
    (
        "  %1: f32[4, 4] = «comm.all_reduce(%0) {axis = tp}",
        "comm.all_reduce needs the attribute op",
    ),
    (
        "  %1: f32[8, 4] = «comm.all_gather(%0) {axis = tp, op = sum}",
        "comm.all_gather has no attribute op",
    ),
    (
        "  %1: f32[8, 4] = comm.all_gather(%0) {axis = tp, «axis = tp}",
        "attribute 'axis' appears twice",
    ),
    (
        "  %1: f32[4, 4] = «comm.all_gather(%0) {axis = tp}",
        "comm.all_gather gives f32[8, 4], its value is printed as f32[4, 4]",
    ),
    (
        "  %1: f32[4, 4] = aten.add.Tensor(%0, «rank(1, 2, 3))",
        "a rank constant has one number per rank\n  found: 3 items for 2 ranks",
    ),
    (
        "  %1: f32[4, 4] = aten.add.Tensor(%0, «rank(1, true))",
        "a rank constant has one number per rank\n  found: 2 items for 2 ranks",
    ),
    ("  %1: f32[4, 4] = aten.add.Tensor(%0, «slice(1))", "a slice has start, stop and step"),
    (
        "  %1: f32[4, 4] = aten.add.Tensor(%0, «foo)",
        "unknown constant 'foo'\n"
        f"  remedy: one of {', '.join(DTYPES)}, none, true, false, inf, nan, strided, "
        "sparse_coo, contiguous_format, preserve_format, channels_last, channels_last_3d",
    ),
    ("  %1: f32[4, 4] = aten.add.Tensor(%0, -«true)", "expected 'inf' or number\n  found: 'true'"),
    (
        "  %1: f32[4, 4] = aten.add.Tensor(%0, «=)",
        "expected value or constant or ')'\n  found: '='",
    ),
    (
        "  %1: f32[4, 4] = comm.all_reduce(%0) {«7 = tp}",
        "expected 'axis', 'group', name, 'op' or '}'\n  found: '7'",
    ),
    (
        "  %1: f32[4, 4] = «comm.all_to_all(%0) {axis = tp}",
        "comm.all_to_all needs the attribute output_splits",
    ),
    (
        "  %1: f32[4, 4] = «comm.all_reduce(%0) {axis = tp, op = sum, group_size = 2}",
        "comm.all_reduce has no attribute group_size",
    ),
    (
        "  %1: f32[4] = %0[«foo]",
        "unknown constant 'foo'\n"
        f"  remedy: one of {', '.join(DTYPES)}, none, true, false, inf, nan, strided, "
        "sparse_coo, contiguous_format, preserve_format, channels_last, channels_last_3d",
    ),
    (
        "  %1: f32[4, 4] = aten.add.Tensor(%0, %0, alpha = 1, «alpha = 2)",
        "argument 'alpha' appears twice",
    ),
]
"""The first lines of a function."""

CASES = [
    *TEXTS,
    *((header + START.removeprefix(HEADER) + END, error) for header, error in HEADERS),
    *((f"{HEADER}func @main({inputs}) {{{END}", error) for inputs, error in INPUTS),
    *((START + lines + END, error) for lines, error in LINES),
]


def in_full(marked: str, error: str, file: str = "") -> str:
    """The full message of ``error`` where ``marked`` has its mark."""
    before = marked.split("«")[0]
    line, column = before.count("\n") + 1, len(before.split("\n")[-1])
    source = marked.replace("«", "").split("\n")[line - 1]
    what, *rest = error.split("\n")
    where = f"  where: {file}{line}:{column + 1}\n    {source}\n    {' ' * column}^"
    return "\n".join([what, where, *rest])


@pytest.mark.parametrize(("marked", "error"), CASES, ids=[e.split("\n")[0] for _, e in CASES])
def test_errors(marked: str, error: str) -> None:
    assert marked.count("«") == 1
    with pytest.raises(GraphError) as found:
        parse_graph(marked.replace("«", ""))
    assert str(found.value) == in_full(marked, error)


def test_one_error_as_it_prints() -> None:
    text = START + "\t%1: f32[4, 2] = aten.mm(%0, %0)" + END
    with pytest.raises(GraphError) as found:
        parse_graph(text, file="model.spmd")
    assert (
        str(found.value)
        == """\
aten.mm gives f32[4, 4], its value is printed as f32[4, 2]
  where: model.spmd:4:18
    \t%1: f32[4, 2] = aten.mm(%0, %0)
    \t                ^"""
    )


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        ("aten.mm(%0)", ""),
        ("aten.mm(%0, %0, %0)", ""),
        ("aten.view(%0, [3, 5])", ""),
        ("aten.add(%0, %0)", "the overload for tensors is aten.add.Tensor"),
    ],
)
def test_ops_that_refuse_their_operands(
    call: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What PyTorch found stands in the error, in its own words, and nothing is logged."""
    with pytest.raises(GraphError) as found:
        parse_graph(f"{START}  %1: f32[4, 4] = {call}{END}")
    assert found.value.what == f"{call.split('(')[0]} refuses its operands"
    assert found.value.where.startswith("4:19\n")
    assert found.value.found
    assert "\n" not in found.value.found
    assert found.value.remedy == remedy
    assert not [record for record in caplog.records if record.name.startswith("torch._subc")]


@pytest.mark.parametrize("size", ["-4", "-s0", "99999999999999999999"])
def test_sizes_that_no_tensor_has(size: str) -> None:
    with pytest.raises(GraphError) as found:
        parse_graph(f'{HEADER}func @main(%0 "x": f32[{size}]) {{{END}')
    assert found.value.where.startswith("3:15\n")


def test_rank_out_of_range() -> None:
    with pytest.raises(GraphError) as found:
        parse_graph(START + END, rank=2)
    assert (
        str(found.value)
        == """\
rank= is not a rank of the graph's mesh
  found: 2, the mesh has 2 ranks
  remedy: a rank in 0 .. 1"""
    )
