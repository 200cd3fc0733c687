"""The generator of random graphs reaches all it speaks of, and its graphs run."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import fx

from compiler.check.simulate import draw_inputs, simulate
from compiler.ir import access
from compiler.ir.collectives import Kind, collectives
from compiler.ir.graph import well_formed
from compiler.ir.text import parse_graph, print_graph
from tests.support.random_graphs import KINDS, LINEAR, MAKERS, MESHES, Grower, anyhow, seeded


def test_seeds_decide_the_graph() -> None:
    texts = [print_graph(anyhow(seed)) for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("mesh", range(len(MESHES)))
def test_graphs_are_well_formed_print_and_run(mesh: int, symbolic: bool) -> None:
    for seed in range(4):
        graph = seeded(seed, 12, mesh=MESHES[mesh], symbolic=symbolic)
        well_formed(graph.graph)
        assert print_graph(parse_graph(print_graph(graph))) == print_graph(graph)
        for tokens in (4, 5) if symbolic else (None,):
            inputs = draw_inputs(graph, seed, tokens)
            outputs = itertools.chain(*simulate(graph, inputs, exact=True))
            assert all(isinstance(x, torch.Tensor) for x in outputs)


def test_every_family_of_ops_finds_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(KINDS) == set(MAKERS)
    assert set(LINEAR) <= set(MAKERS)
    made: Counter[str] = Counter()

    def counted(kind: str, maker: Callable[[Grower], fx.Node], grower: Grower) -> fx.Node:
        node = maker(grower)
        made[kind] += 1
        return node

    for kind, maker in list(MAKERS.items()):
        monkeypatch.setitem(MAKERS, kind, partial(counted, kind, maker))
    for seed in range(100):
        seeded(seed, 12)
    assert set(made) == set(MAKERS)


def test_graphs_have_collectives_of_every_kind_symbolic_tokens_ranks_and_dead_values() -> None:
    graphs = [anyhow(seed) for seed in range(120)]
    found = [c for graph in graphs for _, c in collectives(graph.graph)]
    assert {c.kind for c in found} == set(Kind)
    assert {c.op for c in found} >= {"sum", "avg", "max", "min", "product"}
    assert {c.group for c in found} == set().union(*(mesh.groups for mesh in MESHES))
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    sizes = [s for n in nodes if access.is_tensor(n) for s in access.shape(n)]
    assert any(isinstance(s, torch.SymInt) for s in sizes)
    assert any(access.rank_constants(n) for n in nodes)
    assert any(n.op == "call_function" and not n.users for n in nodes)
    assert max(len(access.results(access.output(g.graph))) for g in graphs) > 2
