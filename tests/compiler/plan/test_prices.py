"""What planners compare: bytes without a machine, picoseconds on one."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from torch import fx

from compiler.cost import Launch, MachineError, load_machine, machines
from compiler.ir import access
from compiler.ir.collectives import WAIT, Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.plan.prices import WIRE, Bytes, GraphWork, Item, LowerBounds, Prices, Times
from tests.support.graphs import Builder, aten, function
from tests.support.random_graphs import symbolic_tokens

MACHINE = "h100x8"
PAYLOADS = [1 << n for n in range(4, 31)] + [3 << n for n in range(4, 29)] + [1000, 12_345_678]
"""Bytes: every power of two from 16 B to 1 GiB, some between."""


def summed(rows: int = 8, columns: int = 4, ranks: int = 4) -> tuple[SpmdGraph, fx.Node]:
    """An all_reduce of f64[rows, columns] and its result."""
    build = Builder(Mesh({"tp": ranks}))
    found = build.all_reduce(build.input("x", rows, columns, varies=("tp",)))
    return build.finish(found), found


def open_tokens() -> tuple[SpmdGraph, fx.Node, fx.Node]:
    """For any number of tokens: the sum of f64[tokens, 4] over ranks, and a gate of it."""
    graph = function(
        '%0 "x": f64[s0, 4] {tp: V}',
        "%1: f64[s0, 4] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "%2: f64[s0, 4] = aten.silu(%1)",
        "return %2",
        mesh="mesh <tp = 4>\nsym s0 in [2, 1048576]",
    )
    (waited,) = (n for n in graph.graph.nodes if n.target is WAIT)
    (gate,) = (n for n in graph.graph.nodes if n.target is aten.silu.default)
    return graph, waited, gate


def times(graph: SpmdGraph, tokens: int | None, machine: str = MACHINE) -> Times:
    return Times(load_machine(machine), tokens, GraphWork(graph))


KINDS = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER, Kind.ALL_TO_ALL)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_bytes_on_the_wire_outweigh_collectives_outweigh_results(ranks: int) -> None:
    graph, node = summed(ranks=ranks)
    groups, wire, prices = graph.mesh.group("tp"), WIRE * 8 * 4 * 8 * (ranks - 1), Bytes()
    price = {kind: prices.communication(kind, node, groups) for kind in KINDS}
    assert price[Kind.REDUCE_SCATTER] == wire + 1
    assert price[Kind.REDUCE_SCATTER] == price[Kind.ALL_GATHER] == price[Kind.ALL_TO_ALL]
    assert price[Kind.ALL_REDUCE] == 2 * wire + 1  # as much as both halves, one collective less
    assert prices.communication(Kind.ALL_GATHER, node, groups, 3) == 3 * wire + 1
    assert (prices.computation(node, 1), prices.computation(node, ranks)) == (256, 256 // ranks)
    assert prices.padding(node, ranks) == 0


def test_bytes_of_open_sizes_are_those_of_their_hint_or_of_the_tokens_asked_for() -> None:
    graph, waited, gate = open_tokens()
    groups, hint = graph.mesh.group("tp"), access.concrete(access.shape(gate)[0])
    for tokens, rows in ((None, hint), (6, 6), (1000, 1000)):
        prices = Bytes(tokens)
        assert prices.computation(gate, 4) == rows * 32 // 4
        found = prices.communication(Kind.ALL_GATHER, waited, groups)
        assert found == WIRE * rows * 32 * 3 + 1


def test_bytes_of_several_results_count_where_they_are_read() -> None:
    build = Builder(Mesh({"tp": 2}))
    parts = build.call(aten.split.Tensor, build.input("x", 4, 4), 2, 0)
    assert Bytes().computation(parts, 1) == 0


@pytest.mark.parametrize("tokens", [None, 4, 6, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_times_of_collectives_are_the_machine_s(kind: Kind, tokens: int | None) -> None:
    graph, waited, _ = open_tokens()
    prices, groups = times(graph, tokens), graph.mesh.group("tp")
    rows = access.concrete(access.shape(waited)[0]) if tokens is None else tokens
    shared = rows if kind is Kind.ALL_REDUCE else -(-rows // 4) * 4
    machine = load_machine(MACHINE)
    for parts, payload in ((1, shared * 32), (2, 2 * rows * 32)):
        assert prices.communication(kind, waited, groups, parts) == machine.collective_time_ps(
            kind, payload, groups.ranks, launch=Launch.GRAPH
        )


def test_a_group_of_one_rank_takes_no_time() -> None:
    graph, node = summed(ranks=1)
    for prices in (times(graph, None), LowerBounds(load_machine(MACHINE), None, GraphWork(graph))):
        assert prices.communication(Kind.ALL_REDUCE, node, graph.mesh.group("tp")) == 0


def test_a_share_takes_as_long_as_the_largest_share() -> None:
    graph, _, gate = open_tokens()
    found = [times(graph, tokens).computation(gate, 4) for tokens in (40_001, 40_003, 40_004)]
    assert len(set(found)) == 1
    assert found[0] < times(graph, 40_001).computation(gate, 1)
    assert found[0] < times(graph, 40_008).computation(gate, 4)


def test_padding_is_a_copy_where_ranks_cannot_share_rows_evenly() -> None:
    graph, waited, _ = open_tokens()
    machine = load_machine(MACHINE)
    assert times(graph, 4096).padding(waited, 4) == 0
    moved = 2 * 4097 * 32 * 10**6 // machine.memory_bytes_per_us
    assert times(graph, 4097).padding(waited, 4) == moved + machine.launch_ps(Launch.GRAPH)


@pytest.mark.parametrize("tokens", [2, 7, 100_000])
def test_prices_are_integers(tokens: int) -> None:
    graph, waited, gate = open_tokens()
    groups, work = graph.mesh.group("tp"), GraphWork(graph)
    prices: list[Prices] = [Bytes(tokens), times(graph, tokens)]
    prices.append(LowerBounds(load_machine(MACHINE), tokens, work))
    for asked in prices:
        found: list[Any] = [asked.communication(kind, waited, groups) for kind in KINDS]
        found += [asked.computation(gate, 4), asked.padding(waited, 4)]
        assert [type(price) for price in found] == [int] * len(found)
        assert min(found) >= 0


def test_lower_bounds_are_below_times_and_differ_in_collectives_only() -> None:
    graph, waited, gate = open_tokens()
    groups, prices = graph.mesh.group("tp"), times(graph, 10_000)
    bounds = LowerBounds(prices.machine, prices.tokens, prices.work)
    for kind in KINDS:
        found = prices.communication(kind, waited, groups)
        assert 0 < bounds.communication(kind, waited, groups) < found
    assert bounds.computation(gate, 4) == prices.computation(gate, 4)


def test_items_are_priced_by_what_they_are() -> None:
    graph, waited, gate = open_tokens()
    groups, prices = graph.mesh.group("tp"), times(graph, 6)
    gather = Item(waited, Kind.ALL_GATHER, groups)
    assert gather.price(prices) == prices.communication(Kind.ALL_GATHER, waited, groups)
    assert Item(gate, shares=4).price(prices) == prices.computation(gate, 4)
    assert Item(waited, shares=4, pads=True).price(prices) == prices.padding(waited, 4) > 0


def test_sent_rows_are_counted_as_often_as_they_are_sent() -> None:
    graph, waited, gate = open_tokens()
    groups, work = graph.mesh.group("tp"), GraphWork(graph)
    machine = load_machine(MACHINE)
    eager = Times(machine, 1 << 20, work, Launch.EAGER)
    once, twice, everywhere = (
        Item(waited, Kind.ALL_TO_ALL, groups, rows=(gate,), copies=Fraction(n)).price(eager)
        for n in (1, 2, 4)
    )
    assert once < twice < everywhere
    least = eager._communication(Kind.ALL_TO_ALL, (1 << 20) * 32 // 4, groups)
    assert once > 2 * least, "rows to, results from"
    graphed = Times(machine, 1 << 20, work, Launch.GRAPH)
    prices = {graphed.dispatch(waited, (gate,), groups, Fraction(n)) for n in (1, 2, 4)}
    assert len(prices) == 1, "in a CUDA graph all rows go everywhere"
    assert Bytes(8).dispatch(waited, (gate,), groups, Fraction(4)) > Bytes(8).dispatch(
        waited, (gate,), groups, Fraction(1)
    )


def test_a_bill_adds_up_to_what_its_items_cost_at_any_number_of_tokens() -> None:
    graph, waited, gate = open_tokens()
    groups, work = graph.mesh.group("tp"), GraphWork(graph)
    again = next(n for n in graph.graph.nodes if n.op == "placeholder")
    gathers = [Item(x, Kind.ALL_GATHER, groups) for x in (waited, gate, again)]
    items = [*gathers, Item(gate), Item(gate, shares=4), Item(waited, shares=4, pads=True)]
    bill = work.bill(items)
    assert sorted(count for _, count in bill) == [1, 1, 1, 3]  # equal sizes are one entry
    for tokens in (2, 5, 4096):
        prices = Times(load_machine(MACHINE), tokens, work)
        whole = sum(item.price(prices) for item in items)
        assert sum(count * item.price(prices) for item, count in bill) == whole


def test_sizes_count_tokens_if_they_are_communicated_or_nothing_open_is() -> None:
    mode, rows = symbolic_tokens()
    build = Builder(Mesh({"tp": 4}), mode=mode)
    cache = build.input("cache", rows, 4)
    found = build.all_reduce(build.input("x", 3, 4, varies=("tp",)))
    work = GraphWork(build.finish(found, build.call(aten.silu.default, cache)))
    assert work.token_symbols == tuple(work.hints) != ()
    graph, waited, _ = open_tokens()
    assert GraphWork(graph).token_symbols == tuple(GraphWork(graph).hints) != ()
    assert times(graph, 12).payload_bytes(waited) == 12 * 32


@pytest.mark.parametrize("launch", Launch)
@pytest.mark.parametrize("name", machines())
def test_an_all_reduce_never_takes_longer_than_its_two_halves(name: str, launch: Launch) -> None:
    """It can be done as these two: sharing rows that are gathered at once must not look cheaper."""
    machine, asked = load_machine(name), 0
    for ranks in (2, 4, 8):
        for payload in PAYLOADS:
            try:
                whole, scatter, gather = (
                    machine.collective_time_ps(kind, payload, (ranks, 1), launch=launch)
                    for kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER)
                )
            except MachineError:
                continue  # not every machine was measured with every number of ranks
            asked += 1
            assert whole <= scatter + gather, (ranks, payload)
    assert asked, f"{name} knows no number of ranks"
