"""The second cut against all labelings; what the pass makes of it is proved and simulated."""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from types import MappingProxyType

import pytest
from torch import fx

from compiler.analysis.expert_regions import ExpertRegion
from compiler.analysis.row_shards import RowForm, row_forms
from compiler.check import Verdict, check
from compiler.cost.tables import Fused
from compiler.ir import access
from compiler.ir.collectives import Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh, ReplicaGroups
from compiler.ir.row_ops import ALL_SLICE
from compiler.ir.text import numbers
from compiler.plan.fused_kernels import NormBehind
from compiler.plan.row_cut import Dispatch, RowChoice, shard_rows
from passes import EliminateDeadCode, ShardRows, UnshardRows
from tests.support.graphs import Builder, agree, aten
from tests.support.seeds import share

MESH = Mesh({"tp": 4})
ROWS, WIDTH = 8, 4


@dataclass(frozen=True)
class Drawn:
    """Arbitrary prices, the same whenever asked again."""

    seed: int

    def draw(self, *what: object) -> random.Random:
        return random.Random(f"{self.seed} {what}")

    @cache  # noqa: B019 -- a test's worth of prices
    def communication(
        self, kind: Kind, node: fx.Node, groups: ReplicaGroups, parts: int = 1
    ) -> int:
        return self.draw(kind, node.name, parts).randint(0, 20)

    @cache  # noqa: B019
    def padding(self, node: fx.Node, shares: int) -> int:
        return self.draw("padding", node.name, shares).randint(0, 5)

    @cache  # noqa: B019
    def computation(self, node: fx.Node, shares: int) -> int:
        whole = self.draw(node.name).randint(0, 20)
        return whole if shares == 1 else self.draw(node.name, shares).randint(0, whole)

    @cache  # noqa: B019
    def fused(self, kind: Fused, node: fx.Node, groups: ReplicaGroups) -> int | None:
        drawn = self.draw(kind, node.name)
        return None if drawn.random() < 0.2 else drawn.randint(0, 60)

    @cache  # noqa: B019
    def dispatch(
        self, node: fx.Node, rows: tuple[fx.Node, ...], groups: ReplicaGroups, copies: Fraction
    ) -> int:
        return self.draw("dispatch", node.name).randint(0, 40)


def grown(seed: int, length: int = 9) -> SpmdGraph:
    """A random graph of reductions, gathers and ops that treat rows alike, or do not."""
    draw, build = random.Random(seed), Builder(MESH)
    partial = [build.input(f"x{i}", ROWS, WIDTH, varies=("tp",)) for i in range(3)]
    share = build.input("s", ROWS // 4, WIDTH, varies=("tp",))
    weight = build.input("w", WIDTH, WIDTH)
    whole = [build.all_reduce(partial[0])]
    for _ in range(length):
        x, y = draw.choice(whole), draw.choice(whole)
        whole.append(
            draw.choice(
                [
                    lambda: build.all_reduce(draw.choice(partial)),
                    lambda: build.all_gather(share),
                    lambda x=x, y=y: build.call(aten.add.Tensor, x, y),
                    lambda x=x: build.call(aten.silu.default, x),
                    lambda x=x: build.call(aten.mm.default, x, weight),
                    lambda x=x: build.call(aten.softmax.int, x, -1),
                    lambda x=x: build.call(aten.cumsum.default, x, 0),
                    lambda x=x: build.call(
                        aten.view.default,
                        build.call(
                            aten.silu.default, build.call(aten.view.default, x, [ROWS, 2, 2])
                        ),
                        [ROWS, WIDTH],
                    ),
                    lambda x=x: build.call(
                        aten.add.Tensor,
                        *(
                            build.call(operator.getitem, build.call(aten.topk.default, x, WIDTH), 0)
                            for _ in range(2)
                        ),
                    ),
                ]
            )()
        )
    returned = [whole[-1]] + [x for x in whole if draw.random() < 0.15]
    return build.finish(*returned)


def total(
    graph: SpmdGraph,
    forms: Mapping[fx.Node, RowForm],
    shares: set[fx.Node],
    prices: Drawn,
    sent: Mapping[fx.Node, Dispatch] = MappingProxyType({}),
) -> int | None:
    """What a labeling costs, by the definition; None for one that there is not.

    A value of several parts is not split, and rows are sent for sums of which shares are held.
    """
    groups, cost = graph.mesh.group("tp"), 0
    if not set(sent) <= shares:
        return None
    exchanged = {n for d in sent.values() for n in d.region.nodes}
    for node, form in forms.items():
        mine = node in shares
        parts = [u for u in node.users if access.projection(u) is not None]
        if any((u in shares) != mine for u in parts):
            return None
        match form.communicates and form.communicates.kind:
            case None:
                cost += prices.computation(node, 4 if mine else 1)
            case Kind.ALL_GATHER:
                cost += 0 if mine else prices.communication(Kind.ALL_GATHER, node, groups)
            case _ if node in sent:
                rows = sent[node].region.inputs
                cost += prices.dispatch(node, rows, groups, sent[node].copies)
            case _:
                kind = Kind.REDUCE_SCATTER if mine else Kind.ALL_REDUCE
                cost += prices.communication(kind, node, groups)
                cost += prices.padding(node, 4) if mine else 0
        wholes = [
            u
            for u in node.users
            if u not in exchanged
            and u.target is not ALL_SLICE
            and not (u in shares and u in forms and node in forms[u].carrying)
        ]
        if mine and wholes and not parts:
            cost += prices.communication(Kind.ALL_GATHER, node, groups)
    return cost


def labelings(forms: Mapping[fx.Node, RowForm]) -> Iterator[set[fx.Node]]:
    for bits in itertools.product((False, True), repeat=len(forms)):
        yield {n for n, bit in zip(forms, bits, strict=True) if bit}


@pytest.mark.parametrize("seed", range(share(80)))
def test_the_cut_is_the_best_of_all_labelings(seed: int) -> None:
    graph, prices = grown(seed, 5), Drawn(seed)
    forms = row_forms(graph, graph.mesh.group("tp"))
    number = {n: i for n, i in numbers(graph.graph).items()}
    stage = shard_rows(graph, "tp", prices)
    chosen = {n for n in forms if number[n] in stage.shares}
    costs = [total(graph, forms, shares, prices) for shares in labelings(forms)]
    assert total(graph, forms, chosen, prices) == min(c for c in costs if c is not None)


def with_experts(seed: int) -> tuple[SpmdGraph, dict[fx.Node, Dispatch]]:
    """A random graph with sums for which rows may be sent, and these."""
    draw, build = random.Random(seed), Builder(MESH)
    weights = [build.input(f"w{i}", ROWS, WIDTH, varies=("tp",)) for i in range(2)]
    whole = [build.all_reduce(build.input("x", ROWS, WIDTH, varies=("tp",)))]
    found = {}
    for weight in weights:
        read = draw.sample(whole, min(len(whole), 2))
        inner = [build.call(aten.mul.Tensor, read[0], weight)]
        inner += [build.call(aten.mul.Tensor, inner[-1], x) for x in read[1:]]
        total = build.all_reduce(inner[-1])
        found[total] = Dispatch(ExpertRegion(tuple(read), tuple(inner)), Fraction(3, 2))
        whole += [total, build.call(aten.add.Tensor, total, draw.choice(whole))]
        if draw.random() < 0.5:
            whole.append(build.call(aten.cumsum.default, draw.choice(whole), 0))
    return build.finish(*draw.sample(whole, 2)), found


@pytest.mark.parametrize("seed", range(share(80)))
def test_the_cut_is_the_best_of_all_labelings_and_ways_to_send_rows(seed: int) -> None:
    (graph, sums), prices = with_experts(seed), Drawn(seed)
    choice = RowChoice(graph, "tp", dispatches=sums)
    shares = choice.cheapest(prices)
    costs = []
    for labels in labelings(choice.forms):
        for some in labelings(sums):
            sent = {n: sums[n] for n in some}
            costs.append(total(graph, choice.forms, labels, prices, sent))
    chosen = {n: d for n, d in sums.items() if d.region.output in shares}
    least = min(c for c in costs if c is not None)
    assert total(graph, choice.forms, set(shares), prices, chosen) == least
    assert sum(item.price(prices) for item in choice.items(shares)) == least
    stage = choice.stage(shares)
    number = numbers(graph.graph)
    assert set(stage.dispatches) == {number[d.region.output] for d in chosen.values()}


def with_norms(seed: int) -> tuple[SpmdGraph, list[NormBehind]]:
    """A random graph of sums with additions and row ops behind them, and these."""
    draw, build = random.Random(seed), Builder(MESH)
    whole = [build.all_reduce(build.input("x", ROWS, WIDTH, varies=("tp",)))]
    found = []
    for i in range(3):
        total = build.all_reduce(build.input(f"p{i}", ROWS, WIDTH, varies=("tp",)))
        h = build.call(aten.add.Tensor, total, draw.choice(whole))
        y = build.call(aten.silu.default, h)
        found.append(NormBehind(total, (h, y)))
        whole += [h] + [y] * draw.randint(0, 1)
        if draw.random() < 0.6:
            whole.append(build.call(aten.cumsum.default, y, 0))
    return build.finish(*draw.sample(whole, 2)), found


def with_kernels(choice: RowChoice, shares: set[fx.Node], prices: Drawn) -> int | None:
    """What a labeling costs where kernels run that take less than their parts, by definition."""
    cost = total(choice.graph, choice.forms, shares, prices)
    groups = choice.groups
    for one in choice.norms if cost is not None else ():
        y = one.inner[-1]
        labels = {n in shares for n in one.nodes}
        always = any(u.op == "output" or u.target is aten.cumsum.default for u in y.users)
        if len(labels) != 1 or (labels == {True} and not always):
            continue
        if labels == {True}:
            kind = Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER
            apart = prices.communication(Kind.REDUCE_SCATTER, one.total, groups)
            apart += prices.padding(one.total, 4)
            apart += prices.communication(Kind.ALL_GATHER, y, groups)
        else:
            kind = Fused.ALL_REDUCE_ADD_NORM
            apart = prices.communication(Kind.ALL_REDUCE, one.total, groups)
        apart += sum(prices.computation(n, 4 if labels == {True} else 1) for n in one.inner)
        kernel = prices.fused(kind, one.total, groups)
        cost -= max(0, apart - kernel) if kernel is not None else 0
    return cost


@pytest.mark.parametrize("seed", range(share(80)))
def test_the_cut_is_the_best_of_all_labelings_and_kernels(seed: int) -> None:
    (graph, norms), prices = with_norms(seed), Drawn(seed)
    choice = RowChoice(graph, "tp", norms=norms)
    shares = choice.cheapest(prices)
    costs = [with_kernels(choice, labels, prices) for labels in labelings(choice.forms)]
    least = min(c for c in costs if c is not None)
    assert with_kernels(choice, set(shares), prices) == least
    assert sum(item.price(prices) for item in choice.items(shares)) == least


def test_a_value_is_in_one_kernel() -> None:
    graph, (first, second, _) = with_norms(1)
    both = NormBehind(second.total, first.inner)
    choice = RowChoice(graph, "tp", norms=[first, both])
    assert {form.values for form in choice.fused} == {first}


def test_some_sums_are_sent_and_some_are_not() -> None:
    sent = 0
    for seed in range(20):
        graph, sums = with_experts(seed)
        choice = RowChoice(graph, "tp", dispatches=sums)
        sent += len(choice.stage(choice.cheapest(Drawn(seed))).dispatches)
    assert 4 < sent < 36


@pytest.mark.parametrize("seed", range(share(40)))
def test_what_is_planned_is_proved_and_computes_the_same(seed: int) -> None:
    graph = grown(seed, 14)
    stage = shard_rows(graph, "tp", Drawn(seed))
    target = ShardRows(stage).apply(graph).graph
    target = EliminateDeadCode().apply(target).graph
    assert check(graph, target).verdict in (Verdict.EQUIVALENT, Verdict.IDENTICAL)
    assert agree(graph, target)


def authored(seed: int, length: int = 4) -> SpmdGraph:
    """A random graph of shares: sums scattered, rows cut, gathered, and ops on them."""
    draw, build = random.Random(seed), Builder(MESH)
    partial = [build.input(f"x{i}", ROWS, WIDTH, varies=("tp",)) for i in range(2)]
    share = build.input("s", ROWS // 4, WIDTH, varies=("tp",))
    weight = build.input("w", WIDTH, WIDTH)
    own, whole = [build.reduce_scatter(partial[0]), share], [build.input("r", ROWS, WIDTH)]
    for _ in range(length):
        x, y = draw.choice(own), draw.choice(own)
        own.append(
            draw.choice(
                [
                    lambda: build.reduce_scatter(draw.choice(partial)),
                    lambda: build.call(ALL_SLICE, draw.choice(whole), 0, 4, "tp"),
                    lambda x=x, y=y: build.call(aten.add.Tensor, x, y),
                    lambda x=x: build.call(aten.silu.default, x),
                    lambda x=x: build.call(aten.mm.default, x, weight),
                    lambda x=x: build.call(aten.cumsum.default, x, 0),
                ]
            )()
        )
        if draw.random() < 0.5:
            whole.append(build.call(aten.silu.default, build.all_gather(own[-1])))
    return build.finish(build.all_gather(own[-1]), draw.choice(own), *whole[1:])


def unsharded(graph: SpmdGraph) -> SpmdGraph:
    return EliminateDeadCode().apply(UnshardRows("tp").apply(graph).graph).graph


@pytest.mark.parametrize("works_whole", [True, False])
@pytest.mark.parametrize("seed", range(share(40)))
def test_what_an_author_shares_is_chosen_again_and_stays_his_at_equal_cost(
    seed: int, works_whole: bool
) -> None:
    graph, prices = unsharded(authored(seed)), Drawn(seed)
    choice = RowChoice(graph, "tp", works_whole=works_whole)
    kept = {n for n in choice.authored if choice.forms[n].communicates is None}

    def rank(shares: set[fx.Node]) -> tuple[int, int] | None:
        cost = total(graph, choice.forms, shares, prices)
        if cost is None or not (works_whole or kept <= shares):
            return None
        return cost, -len(shares & choice.authored)

    ranks = [rank(shares) for shares in labelings(choice.forms)]
    assert rank(set(choice.cheapest(prices))) == min(r for r in ranks if r is not None)


@pytest.mark.parametrize("seed", range(share(30)))
def test_what_an_author_shares_is_proved_however_it_is_planned(seed: int) -> None:
    source = authored(seed, 8)
    graph = unsharded(source)
    assert check(source, graph).verdict.runs
    target = EliminateDeadCode().apply(
        ShardRows(shard_rows(graph, "tp", Drawn(seed))).apply(graph).graph
    )
    assert check(source, target.graph).verdict.runs
    assert agree(source, target.graph)


def test_random_graphs_of_authors_are_unsharded() -> None:
    changed = [UnshardRows("tp").apply(authored(seed)).changed for seed in range(share(40))]
    assert changed.count(True) > share(25)
