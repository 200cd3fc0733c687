"""Nodes that do not fit the schemas of their ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from compiler.errors import GraphError
from compiler.ir.graph import spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.rules import meaning
from tests.support.graphs import Builder, aten, c10d

MESH = Mesh({"tp": 2})
REDUCE = str(c10d.all_reduce.default._schema)


def module_with(target: Any, *args: Any, val: Any = None, **kwargs: Any) -> fx.GraphModule:
    """A graph of one call, on ``%x`` and further arguments."""
    build = Builder(MESH)
    x = build.input("x", 4, 4)
    node = build.graph.call_function(target, (x, *args), kwargs)
    node.meta = {"val": x.meta["val"] if val is None else val[0]}
    node.meta["stack_trace"] = '  File "/m/model.py", line 5, in forward'
    build.graph.output((node,))
    return fx.GraphModule(build.root, build.graph)


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "found", "schema"),
    [
        (aten.mm.default, (), {}, "argument 'mat2' is missing",
         "aten::mm(Tensor self, Tensor mat2) -> Tensor"),
        (c10d.all_reduce.default, ("sum",), {}, "argument 'group_name' is missing", REDUCE),
        (c10d.all_reduce.default, ("sum",), {"group": "tp"},
         "argument 'group' is given and not known, or given twice", REDUCE),
        (c10d.all_reduce.default, ("sum", "tp"), {"group_name": "tp"},
         "argument 'group_name' is given and not known, or given twice", REDUCE),
        (c10d.all_reduce.default, ("sum", "tp", 3), {},
         "4 positional arguments, it takes 3", REDUCE),
    ],
)  # fmt: skip
def test_arguments(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: str, schema: str
) -> None:
    module = module_with(target, *args, **kwargs)
    with pytest.raises(GraphError) as caught:
        spmd_graph(module, MESH)
    name = next(n.name for n in module.graph.nodes if n.op == "call_function")
    assert str(caught.value) == (
        f"value %{name} does not call {target} as it is declared\n"
        "  where: model.py:5\n"
        f"  found: {found}\n"
        f"  remedy: call it as {schema}"
    )


@pytest.mark.parametrize("val", [None, 3, "x", (4, 4), [torch.empty(4, 4)]])
def test_metadata_that_is_no_tensor(val: Any) -> None:
    with pytest.raises(GraphError) as caught:
        spmd_graph(module_with(aten.neg.default, val=(val,)), MESH)
    assert str(caught.value) == (
        "meta['val'] of value %neg_default must be a tensor, as the result of aten.neg.default\n"
        "  where: model.py:5\n"
        f"  found: {type(val).__name__}\n"
        "  remedy: set meta['val'] to a tensor of its shape and dtype on every node, "
        "for example with torch.fx.passes.fake_tensor_prop.FakeTensorProp"
    )


@pytest.mark.parametrize("other", [None, 2.0])
def test_operand_that_is_no_tensor(other: object) -> None:
    module = module_with(aten.mm.default, other)
    with pytest.raises(GraphError) as caught:
        meaning(next(n for n in module.graph.nodes if n.op == "call_function"))
    assert str(caught.value) == (
        "argument 'mat2' of a call of aten.mm.default must be a tensor\n"
        f"  found: {other!r}\n"
        "  remedy: pass a value of the graph"
    )


def test_what_fits() -> None:
    spmd_graph(module_with(aten.add.Tensor, 2.0, alpha=2), MESH)
    spmd_graph(module_with(c10d.all_reduce.default, reduce_op="sum", group_name="tp"), MESH)
    spmd_graph(module_with(aten.max.dim, val=((torch.empty(4), torch.empty(4)),), dim=1), MESH)
