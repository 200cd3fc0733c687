"""The text of an exported model: it is read back, in time, and computes the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import fx, nn

from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Partial, Shard
from compiler.ir.text import parse_graph, print_graph
from tests.compiler.ir.text.simulated import same_results


class Block(nn.Module):
    """One transformer block, row-parallel projections reduced over the group."""

    def __init__(self, hidden: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = (nn.Parameter(torch.rand(hidden)) for _ in "ab")
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.proj = nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 24), nn.Linear(24, hidden)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, hidden = x.shape
        y = F.rms_norm(x, (hidden,), self.attn_norm, 1e-6)
        q, k, v = (
            self.qkv(y).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = self.proj(y.transpose(1, 2).reshape(batch, tokens, hidden))
        x = x + funcol.all_reduce(y, "sum", dist.group.WORLD)
        y = self.down(F.silu(self.up(F.rms_norm(x, (hidden,), self.mlp_norm, 1e-6))))
        return x + funcol.all_reduce(y, "sum", dist.group.WORLD)


class Model(nn.Module):
    """Vocabulary-parallel embedding with the rank's offset, blocks, and a gathered top-k."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.register_buffer("bias", torch.rand(8, 32).t())

    def forward(self, ids: torch.Tensor) -> Any:
        local = ids - 64
        held = (local >= 0) & (local < 64)
        x = self.embed(local.masked_fill(~held, 0)).masked_fill(~held.unsqueeze(-1), 0.0)
        x = funcol.all_reduce(x, "sum", dist.group.WORLD)
        for layer in self.layers:
            x = layer(x)
        logits = x.flatten(0, 1).to(torch.bfloat16) @ self.bias.to(torch.bfloat16)
        gathered = funcol.all_gather_tensor(logits, 0, dist.group.WORLD)
        values, indices = torch.topk(gathered.float(), 4)
        return values, {"indices": indices, "tokens": ids.shape[1]}


@pytest.fixture(scope="module")
def world() -> Any:
    dist.init_process_group("fake", rank=0, world_size=8)
    yield dist.group.WORLD
    dist.destroy_process_group()


def exported(model: nn.Module, *args: torch.Tensor, dynamic_shapes: Any) -> fx.GraphModule:
    """The module's graph with its parameters as attributes and a flat signature."""
    program = torch.export.export(model, args, dynamic_shapes=dynamic_shapes, strict=False)
    module = program.run_decompositions({}).module()
    for node in list(module.graph.nodes):
        if node.op != "output" and "val" not in node.meta:  # checks of input shapes and dtypes
            module.graph.erase_node(node)
    module.graph.set_codegen(fx.CodeGen())
    module.recompile()
    return module


def captured(layers: int, group: Any) -> SpmdGraph:
    ids = torch.zeros(1, 24, dtype=torch.int64)
    tokens = torch.export.Dim("tokens", min=2, max=8192)
    module = exported(Model(layers), ids, dynamic_shapes=({1: tokens},))
    mesh = Mesh({"tp": 8}, groups={group.group_name: [list(range(8))]})
    held = {"layers.0.qkv.weight": Shard(0), "layers.0.proj.weight": Shard(1), "ids": Partial()}
    return spmd_graph(module, mesh, held)


def test_exported_model(world: Any) -> None:
    graph = captured(2, world)
    text = print_graph(graph)
    parsed = parse_graph(text)
    assert print_graph(parsed) == text
    assert parsed.mesh == graph.mesh
    assert parsed.inputs == graph.inputs
    for line in (
        'group "0" = <tp>',
        '%0 "ids": i64[1, ',
        ' strides [1, 32] {tp: V} = attr "bias"',
        "comm.all_gather(%",
        ' {group = "0", op = sum}',
    ):
        assert line in text
    same_results(graph, parsed, torch.randint(64, 128, (1, 16)))


def calls_made(work: Callable[[], object]) -> int:
    """How many functions ``work`` calls."""
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_work_grows_with_the_number_of_lines(world: Any) -> None:
    """Twice the layers, twice the calls: nothing looks at all lines for each of them."""
    text = print_graph(captured(2, world))
    head, body = text.split(") {\n")
    lines = [line for line in body.splitlines() if line.startswith("  %")]
    layers = [line for line in lines if "= attr" not in line]

    def repeated(copies: int) -> str:
        more = (
            re.sub(r"^  %(\d+):", rf"  %\g<1>{copy:03}:", line)
            for copy in range(1, copies) for line in layers
        )  # fmt: skip
        return head + ") {\n" + "\n".join([*lines, *more]) + "\n  return none\n}\n"

    few, many = (repeated(copies) for copies in (2, 4))
    parse_graph(few)  # what is done once
    parsed = [parse_graph(held) for held in (few, many)]
    for work in (
        [calls_made(lambda held=held: parse_graph(held)) for held in (few, many)],  # type: ignore[misc]
        [calls_made(lambda graph=graph: print_graph(graph)) for graph in parsed],  # type: ignore[misc]
    ):
        assert work[1] < 2.2 * work[0]
