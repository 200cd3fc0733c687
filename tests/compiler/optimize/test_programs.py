"""Exported programs through the functions on graphs: as programs, as graphs, as modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as funcol
from torch.export import ExportedProgram

from compiler import Mesh, Replicate, Shard, Varying, check_equivalence, lint, optimize_graph
from compiler.analysis.undeclared_inputs import undeclared
from compiler.errors import GraphError, UndeclaredInputs
from compiler.ir.graph import spmd_graph

MESH = Mesh({"tp": 4}, groups={"0": "tp"})


class Block(nn.Module):
    """Two sums; ``kind`` says what is done with theirs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))
        self.register_buffer("seen", torch.zeros(8))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        left, right = (funcol.all_reduce(f(x), "sum", dist.group.WORLD) for f in self.layers)
        if self.kind == "writes":
            self.seen.add_(left.sum(0))
        if self.kind == "branches":
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (left,))
        return left - right if self.kind == "differs" else left + right


@pytest.fixture(autouse=True)
def _fake_group() -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def program(kind: str, like: nn.Module | None = None) -> ExportedProgram:
    model, rows = Block(kind), {0: torch.export.Dim.DYNAMIC}
    if like is not None:
        model.layers = like.layers
    with torch.no_grad():
        made = torch.export.export(model, (torch.ones(4, 8),), dynamic_shapes=(rows,), strict=False)
        return made.run_decompositions({})


def test_parameters_among_placeholders_vary_unless_declared() -> None:
    lifted = program("writes").graph_module
    placed = spmd_graph(lifted, MESH, {"layers.*.weight": Shard(1), "layers.1.weight": Varying()})
    assert placed.inputs == {
        "p_layers_0_weight": (Shard(1),),
        "p_layers_1_weight": (Varying(),),
        "b_seen": (Varying(),),
        "x": (Replicate(),),
    }
    assert undeclared(spmd_graph(lifted, MESH)) is None


def test_that_holds_where_the_mesh_is_read_off_the_groups() -> None:
    lifted = program("sum").graph_module
    assert lint(lifted) == lint(lifted, inputs={"layers.*.weight": Varying()}) == []
    with pytest.warns(UndeclaredInputs, match="no input differs"):
        lint(lifted, inputs={"layers.*.weight": Replicate(), "seen": Replicate()})


def test_a_program_that_writes_is_optimized_as_it_is() -> None:
    written = program("writes")
    result = optimize_graph(written, mesh=MESH)
    outputs = result.graph_module.graph.output_node().args[0]
    assert isinstance(outputs, tuple)
    assert len(outputs) == 2  # what is written, and the result
    assert check_equivalence(written, result.graph_module, mesh=MESH).verdict.runs


def test_modules_with_guards_that_differ_have_a_counterexample() -> None:
    model = Block("sum")
    left, right = (program(kind, model).module() for kind in ("sum", "differs"))
    assert any(node.op == "call_module" for node in left.graph.nodes)
    report = check_equivalence(left, right, mesh=MESH)
    assert str(report.verdict) == "NOT_EQUIVALENT"
    assert report.counterexample is not None


WRITES = (
    "op aten.copy_.default of value %copy__default mutates its operand",
    "functionalize: pass the ExportedProgram itself, whose written tensors are outputs, not its "
    ".module()",
)
BRANCHES = (
    "the graph takes a branch or runs a loop",
    "compute it with tensor ops (torch.where, masked_fill), or decide before the call",
)


@pytest.mark.parametrize(("kind", "said"), [("writes", WRITES), ("branches", BRANCHES)])
def test_what_cannot_be_read_says_what_can(kind: str, said: tuple[str, str]) -> None:
    module: Any = program(kind).module()
    with pytest.raises(GraphError) as caught:
        optimize_graph(module, mesh=MESH)
    assert (caught.value.what, caught.value.remedy) == said
