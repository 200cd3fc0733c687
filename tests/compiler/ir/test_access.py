"""Reading nodes: operands, static arguments, sizes, origins."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch
from torch import fx

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.access import Operand, RankFloat, RankInt
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, aten, function
from tests.support.random_graphs import rank_int


def nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    return {n.name: n for n in graph.nodes}


def test_numbers_that_differ_between_ranks() -> None:
    start = RankInt(16, (0, 16))
    assert (start, start + 1, start.values, isinstance(start, int)) == (16, 17, (0, 16), True)
    share = RankFloat(0.5, (0.25, 0.5))
    assert (share, share.values) == (0.5, (0.25, 0.5))
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    node = build.call(aten.narrow.default, x, 0, rank_int(0, 2), length=rank_int(2, 1))
    assert [c.values for c in access.rank_constants(node)] == [(0, 2), (2, 1)]
    assert access.rank_constants(x) == ()
    held = (start, share, 3, "x")
    assert [access.on_rank(item, 0) for item in held] == [0, 0.25, 3, "x"]
    assert [access.on_rank(item, 1) for item in held] == [16, 0.5, 3, "x"]


def test_operands_and_arguments() -> None:
    build = Builder(Mesh({"tp": 2}))
    x, y = build.input("x", 4), build.input("y", 4)
    cat = build.call(aten.cat.default, [x, y, x])
    assert access.operands(cat) == (x, y, x)
    assert access.arguments(cat) == {"tensors": (Operand(0), Operand(1), Operand(2)), "dim": 0}
    add = build.call(aten.add.Tensor, x, other=y)
    assert access.arguments(add) == {"self": Operand(0), "other": Operand(1), "alpha": 1}
    assert access.written_arguments(add) == {"self": x, "other": y, "alpha": 1}
    assert access.call(add) == ((x,), {"other": y})
    picked = build.graph.call_function(operator.getitem, (cat, 1))
    assert access.arguments(picked) == {"0": Operand(0), "1": 1}
    assert (access.projection(picked), access.projection(cat)) == (1, None)
    ranged = build.graph.call_function(operator.getitem, (cat, slice(0, None, 2)))
    assert access.arguments(ranged)["1"] == ("slice", 0, None, 2)
    assert access.projection(ranged) is None
    assert access.map_operands(add, lambda n: y if n is x else x) == ((y,), {"other": x})


def test_sizes_are_static_arguments_but_numbers_from_data_are_operands() -> None:
    mesh = "mesh <tp = 2>\nsym s0 in [2, 64]\nsym u0 in [0, 64]"
    graph = function(
        '%0 "x": f64[s0, 4], %1 "n": i64[]',
        "%2: sym(s0) = aten.sym_size.int(%0, 0)",
        "%3: f64[s0, 4] = aten.view(%0, [%2, 4])",
        "%4: sym(u0) = aten._local_scalar_dense(%1)",
        "%5: f64[s0, 4] = aten.mul.Tensor(%3, %4)",
        "return %5, %2",
        mesh=mesh,
    )
    found = nodes(graph.graph)
    assert not access.is_operand(found["v2"])
    assert access.operands(found["v3"]) == (found["x"],)
    assert str(access.arguments(found["v3"])["size"]) == "(s0, 4)"
    assert access.is_operand(found["v4"])
    numbers = (access.value(found["v4"]), access.value(found["v2"]), 3)
    assert [access.unbacked(x) for x in numbers] == [{"u0"}, set(), set()]
    assert access.operands(found["v5"]) == (found["v3"], found["v4"])
    assert access.results(access.output(graph.graph)) == (found["v5"], found["v2"])
    assert access.returned(graph.graph) == (found["v5"], found["v2"])


def test_payload() -> None:
    graph = function('%0 "x": bf16[s0, 8], %1 "y": f32[3, 8]', "return %0, %1",
                     mesh="mesh <tp = 2>\nsym s0 in [2, 64]")  # fmt: skip
    x, y = access.node_of(graph.graph, "placeholder")
    hint = access.concrete(access.shape(x)[0])
    assert 2 <= hint <= 64
    assert (access.payload_bytes(x), access.payload_bytes(x, 5)) == (hint * 16, 80)
    assert (access.payload_bytes(y), access.payload_bytes(y, 5)) == (96, 96)
    assert access.concrete(access.shape(x)[0] * 2 + 1, 5) == 11
    assert (access.dtype(x), access.shape(y)) == (torch.bfloat16, (3, 8))


def test_results_and_values() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    checked = build.graph.call_function(aten._assert_scalar.default, (True, "no"))
    assert not access.has_result(checked)
    assert access.has_result(x)
    assert not access.is_operand(checked)
    bare = build.graph.call_function(aten.neg.default, (x,))
    assert not access.is_tensor(bare)
    with pytest.raises(GraphError, match=r"value %neg_default has no meta\['val'\]"):
        access.value(bare)
    bare.meta["val"] = (x.meta["val"], None)
    with pytest.raises(AssertionError, match="%neg_default is not one tensor"):
        access.tensor(bare)
    output = build.graph.output((x, None, [bare, 3]))
    assert access.results(output) == (x, bare)


def test_origins() -> None:
    node = fx.Graph().placeholder("x")
    assert (access.layer_path(node), access.source_line(node)) == ("", "")
    stack = {"a": ("L['self'].layers.0", object), "b": ("L['self'].layers.0.mlp", object)}
    node.meta["nn_module_stack"] = stack
    node.meta["stack_trace"] = '  File "/b.py", line 3, in f\n    x\n  File "/a/model.py", line 88'
    assert access.layer_path(node) == "layers.0.mlp"
    assert access.source_line(node) == "model.py:88"
    torch_folder = str(Path(torch.__file__).parent)
    node.meta["stack_trace"] = (
        f'  File "/a/model.py", line 88\n  File "{torch_folder}titan/layer.py", line 5\n'
        f'  File "{torch_folder}/nn/modules/linear.py", line 1\n'
        '  File "<eval_with_key>.3 from here", line 2'
    )
    assert access.source_location(node) == (f"{torch_folder}titan/layer.py", 5)
    node.meta["nn_module_stack"] = {"a": ("_empty_nn_module_stack_from_metadata_hook", object)}
    assert access.layer_path(node) == ""


def test_lists_are_tuples_whether_written_or_by_default() -> None:
    x = torch.ones(2, 2)
    graph = fx.Graph()
    read = graph.placeholder("x")
    read.meta["val"] = x
    for written in ((read,), (read, [])):
        node = graph.call_function(aten.amax.default, written)
        assert access.arguments(node)["dim"] == ()
