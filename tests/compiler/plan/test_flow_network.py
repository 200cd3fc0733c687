"""Least cuts against all labelings, and against networkx."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.plan.flow_network import NEVER, FlowNetwork
from tests.support.seeds import share

SIZES = st.integers(1, 7)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[tuple[int, int]], dict[tuple[int, int], int]]:
    """What nodes pay, and edges."""
    count = draw(SIZES)
    cost = st.integers(-6, 6) | st.just(NEVER)
    sides = [(draw(cost), draw(st.integers(-6, 6))) for _ in range(count)]
    pair = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    return sides, draw(st.dictionaries(pair, st.integers(0, 6) | st.just(NEVER), max_size=14))


def network(sides: list[tuple[int, int]], edges: dict[tuple[int, int], int]) -> FlowNetwork:
    made = FlowNetwork()
    for node, (source, sink) in enumerate(sides):
        made.pay(node, source=source, sink=sink)
    for (start, end), capacity in edges.items():
        made.connect(start, end, capacity)
    return made


def cost(sides: list[tuple[int, int]], edges: dict[tuple[int, int], int], sink: set[int]) -> int:
    own = sum(pair[node in sink] for node, pair in enumerate(sides))
    return own + sum(c for (a, b), c in edges.items() if a not in sink and b in sink)


@settings(max_examples=share(1500), deadline=None)
@given(problems())
def test_the_cut_is_the_least_of_all_labelings_and_the_smallest_of_these(
    problem: tuple[list[tuple[int, int]], dict[tuple[int, int], int]],
) -> None:
    sides, edges = problem
    nodes = range(len(sides))
    every = [set(c) for n in range(len(sides) + 1) for c in itertools.combinations(nodes, n)]
    least = min(cost(sides, edges, sink) for sink in every)
    best = [sink for sink in every if cost(sides, edges, sink) == least]
    assert network(sides, edges).sink_side() == set.intersection(*best)


@settings(max_examples=share(300), deadline=None)
@given(problems(), st.sets(st.integers(0, 7)))
def test_of_least_cuts_one_with_most_preferred_nodes_on_the_sink_side(
    problem: tuple[list[tuple[int, int]], dict[tuple[int, int], int]], preferred: set[int]
) -> None:
    sides, edges = problem
    nodes = range(len(sides))
    every = [set(c) for n in range(len(sides) + 1) for c in itertools.combinations(nodes, n)]
    wanted = preferred & set(nodes)
    made = network(sides, edges)
    made.prefer_sink(wanted)
    found = made.sink_side()

    def rank(sink: set[int]) -> tuple[int, int]:
        return cost(sides, edges, sink), -len(sink & wanted)

    assert rank(found) == min(map(rank, every))


@pytest.mark.parametrize("seed", range(share(20)))
def test_dense_networks_are_left_to_networkx(seed: int) -> None:
    graph = nx.gnp_random_graph(14, 0.5, seed=seed, directed=True)
    edges = {(a, b): (a * 7 + b * 13 + seed) % 9 for a, b in graph.edges}
    sides = [((n * 5 + seed) % 11, (n * 3 + seed) % 11) for n in graph.nodes]
    whole: nx.DiGraph[Hashable] = nx.DiGraph()
    for (a, b), capacity in edges.items():
        whole.add_edge(a, b, capacity=capacity)
    for node, (source, sink) in enumerate(sides):
        whole.add_edge(node, "sink", capacity=source)
        whole.add_edge("source", node, capacity=sink)
    assert cost(sides, edges, network(sides, edges).sink_side()) == nx.minimum_cut_value(
        whole, "source", "sink"
    )


def test_what_is_not_submodular_is_refused() -> None:
    with pytest.raises(AssertionError, match="not submodular"):
        FlowNetwork().connect("a", "b", -1)
