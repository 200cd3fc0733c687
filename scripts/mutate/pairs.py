"""Correct pairs of source and target: models, graphs made by hand, random graphs."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from compiler.analysis.reductions import reduction_facts, reductions
from compiler.analysis.row_shards import rows_of
from compiler.capture import capture_ranks
from compiler.ir.access import RankInt
from compiler.ir.collectives import Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh, ReplicaGroups
from compiler.ir.text import parse_graph, print_graph
from compiler.optimize import optimize
from compiler.pipeline import Pipeline
from compiler.plan.planner import Planner
from compiler.plan.planner_options import POLICIES, PlannerOptions
from compiler.plan.prices import Bytes
from compiler.plan.reduction_cut import place_reductions
from compiler.plan.row_cut import shard_rows
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from passes import (
    Canonicalize,
    EliminateDeadCode,
    FuseReduceNorm,
    PlaceReductions,
    ScheduleCollectives,
    ShardRows,
)
from scripts.mutate.judge import Pair
from tests.support.graphs import Builder, aten
from tests.support.random_graphs import anyhow

INDICES = 4
"""Integer inputs of the graphs made by hand and of random graphs index so many rows."""

TOKENS = (4, 5)
"""Numbers of tokens that symbolic graphs are simulated at, besides a large one."""


def optimized(graph: SpmdGraph, policy: str = "cost") -> SpmdGraph:
    """The optimizer's result, unproved."""
    planner = Planner(graph, PlannerOptions(policy))
    return optimize(planner, planner.decide(None), verify=False).spmd


def fused_and_scheduled(graph: SpmdGraph) -> SpmdGraph:
    """What the runtime makes of a graph where kernels serve all groups."""
    steps = FuseReduceNorm(lambda *_: None), EliminateDeadCode(), ScheduleCollectives()
    for step in steps:
        graph = Pipeline().run(step, graph)
    return graph


def in_random_order(graph: SpmdGraph, rng: random.Random) -> SpmdGraph:
    """The result of a random sequence of passes, the optimizer's own among them.

    Rows are shared in one group: an odd number in blocks of two sizes is beyond the checker.
    """
    group = rng.choice([n for n, g in graph.mesh.groups.items() if g.axis_size > 1])
    steps: list[Callable[[SpmdGraph], SpmdGraph]] = [
        lambda g: Pipeline().run(Canonicalize(), g),
        lambda g: Pipeline().run(EliminateDeadCode(), g),
        lambda g: optimized(g, rng.choice(POLICIES)),
        *[lambda g: _placed(g, rng)] * 3,
        *[lambda g: _shared(g, group, rng)] * 2,
        fused_and_scheduled,
    ]
    for _ in range(rng.randint(2, 6)):
        graph = rng.choice(steps)(graph)
    return graph


def _placed(graph: SpmdGraph, rng: random.Random) -> SpmdGraph:
    """One reduction of the graph, placed as it is cheapest for some number of tokens."""
    listed = reductions(graph)
    if not listed:
        return graph
    facts = reduction_facts(graph, rng.choice(listed))
    prices = Bytes(rng.choice((None, 1, 8192)))
    assignment = place_reductions(facts, prices, hoist=rng.random() < 0.5)
    return Pipeline().run(PlaceReductions(assignment), graph)


@dataclass(frozen=True)
class RandomPrices:
    """Arbitrary prices, the same whenever asked again."""

    seed: int

    def _drawn(self, most: int, *what: object) -> int:
        return random.Random(f"{self.seed} {what}").randint(0, most)

    def communication(
        self, kind: Kind, node: fx.Node, groups: ReplicaGroups, parts: int = 1
    ) -> int:
        """Of a collective."""
        return self._drawn(20, kind, node.name, groups, parts)

    def computation(self, node: fx.Node, shares: int) -> int:
        """Of an op: less on fewer rows."""
        whole = self._drawn(20, node.name)
        return whole if shares == 1 else self._drawn(whole, node.name, shares)

    def padding(self, node: fx.Node, shares: int) -> int:
        """Of rows added to a value."""
        return self._drawn(5, "padding", node.name, shares)


def _shared(graph: SpmdGraph, group: str, rng: random.Random) -> SpmdGraph:
    """The graph with the rows of some values shared among the ranks of a group.

    Only rows of an open number are: the checker cuts a tensor along the dimension of that size, and
    in a square sizes do not tell which one it is.
    """
    prices = RandomPrices(rng.getrandbits(32))
    rows = shard_rows(graph, group, prices, allowed=lambda n: not isinstance(rows_of(n), int))
    return Pipeline().run(ShardRows(rows), graph)


def random_pair(seed: int) -> Pair:
    """A random graph, and what the optimizer or a random order of passes makes of it."""
    source, rng = anyhow(seed), random.Random(seed)
    target = optimized(source) if rng.random() < 0.5 else in_random_order(source, rng)
    target = EliminateDeadCode().apply(target).graph  # a mistake in it would be none
    return Pair(f"random graph {seed}", source, target, INDICES, TOKENS)


GRID = Mesh({"dp": 2, "tp": 2}, groups={"both": [[0, 1, 2, 3]]})


def experts(layers: int = 2) -> SpmdGraph:
    """Attention, then routed tokens that are summed up and a shared expert, twice reduced."""
    build = Builder(GRID)
    stream = build.input("x", 4, 4, varies=("dp",))
    index = build.input("index", 8, dtype=torch.int64)
    scale = build.input("scale", 4)
    for layer in range(layers):
        up, down, routed = (
            build.input(f"{name}{layer}", 4, 4, varies=("tp",)) for name in ("up", "down", "routed")
        )
        normed = build.call(aten.mul.Tensor, build.call(aten.tanh.default, stream), scale)
        attended = build.call(aten.mm.default, build.call(aten.mm.default, normed, up), down)
        stream = build.call(aten.add.Tensor, stream, build.all_reduce(attended))
        hidden = build.call(aten.silu.default, build.call(aten.mm.default, stream, up))
        shared = build.all_reduce(build.call(aten.mm.default, hidden, down))
        twice = build.call(aten.cat.default, [hidden, hidden])
        rows = build.all_reduce(build.call(aten.mm.default, twice, routed))
        zeros = build.call(aten.zeros_like.default, stream)
        scattered = build.call(aten.index_add.default, zeros, 0, index, rows)
        weighed = build.call(aten.mul.Tensor, scattered, 2.5)
        stream = build.call(aten.add.Tensor, stream, build.call(aten.add.Tensor, weighed, shared))
    total = build.call(aten.sum.dim_IntList, stream, [0], True)
    return build.finish(stream, build.all_reduce(total, "dp", "avg"))


def sequence_parallel() -> SpmdGraph:
    """Two blocks whose residual is sharded over rows: gathered before, scattered after."""
    build = Builder(Mesh({"tp": 2}))
    own = build.input("x", 2, 4, varies=("tp",))
    scale = build.input("scale", 4)
    for layer in range(2):
        up, down = (build.input(f"{n}{layer}", 4, 4, varies=("tp",)) for n in ("up", "down"))
        normed = build.call(aten.rms_norm.default, own, [4], scale, 1e-5)
        whole = build.all_gather(normed)
        hidden = build.call(aten.silu.default, build.call(aten.mm.default, whole, up))
        own = build.call(
            aten.add.Tensor, own, build.reduce_scatter(build.call(aten.mm.default, hidden, down))
        )
    return build.finish(own, build.all_gather(own))


def vocabulary() -> SpmdGraph:
    """A sharded embedding, a head, and log probabilities by a maximum and a sum over shards."""
    build = Builder(Mesh({"tp": 2}))
    ids = build.input("ids", 4, dtype=torch.int64)
    table, head = (build.input(n, 2, 4, varies=("tp",)) for n in ("table", "head"))
    start = RankInt(0, (0, 2))
    local = build.call(aten.sub.Tensor, ids, start)
    inside = build.call(
        aten.logical_and.default,
        build.call(aten.ge.Scalar, local, 0), build.call(aten.lt.Scalar, local, 2),
    )  # fmt: skip
    clamped = build.call(aten.clamp.default, local, 0, 1)
    rows = build.call(aten.embedding.default, table, clamped)
    mask = build.call(aten.unsqueeze.default, build.call(aten.logical_not.default, inside), 1)
    x = build.all_reduce(build.call(aten.masked_fill.Scalar, rows, mask, 0.0))
    logits = build.call(aten.mm.default, x, build.call(aten.t.default, head))
    most = build.all_reduce(build.call(aten.amax.default, logits, [-1], True), op="max")
    shifted = build.call(aten.sub.Tensor, logits, most)
    exponents = build.call(aten.exp.default, shifted)
    total = build.all_reduce(build.call(aten.sum.dim_IntList, exponents, [-1], True))
    loss = build.call(aten.sub.Tensor, shifted, build.call(aten.log.default, total))
    turned = build.call(aten.transpose.int, loss, 0, 1)
    return build.finish(build.all_gather(turned), x)


def exchanged_experts() -> SpmdGraph:
    """Expert parallel: tokens go to their experts' ranks and come back; a shared expert beside."""
    build = Builder(Mesh({"ep": 2, "tp": 2}))
    x = build.input("x", 4, 4, varies=("ep",))
    expert = build.input("expert", 4, 4, varies=("ep", "tp"))
    shared = build.input("shared", 4, 4, varies=("tp",))
    sent = build.all_to_all(x, "ep")
    routed = build.all_reduce(build.call(aten.mm.default, sent, expert), "tp")
    back = build.all_to_all(routed, "ep")
    beside = build.all_reduce(build.call(aten.mm.default, x, shared), "tp")
    stream = build.call(aten.add.Tensor, x, build.call(aten.add.Tensor, back, beside))
    mean = build.all_reduce(build.call(aten.mean.dim, stream, [0], True), "ep", "avg")
    return build.finish(stream, mean)


def cached() -> SpmdGraph:
    """A decode step: rows are written into a cache, read from it, and the cache is handed back."""
    build = Builder(Mesh({"tp": 2}))
    cache = build.input("cache", 6, 4, varies=("tp",))
    x, place = build.input("x", 2, 4), build.input("place", 2, dtype=torch.int64)
    weights = [build.input(n, 4, 4, varies=("tp",)) for n in ("key", "query", "out", "up", "down")]
    key, query, out, up, down = weights
    written = build.call(
        aten.index_copy.default, cache, 0, place, build.call(aten.mm.default, x, key)
    )
    scores = build.call(
        aten.mm.default, build.call(aten.mm.default, x, query),
        build.call(aten.t.default, written),
    )  # fmt: skip
    attended = build.call(
        aten.mm.default, build.call(aten._softmax.default, scores, -1, False), written
    )
    stream = build.call(
        aten.add.Tensor, x, build.all_reduce(build.call(aten.mm.default, attended, out))
    )
    both = [build.all_reduce(build.call(aten.mm.default, stream, w)) for w in (up, down)]
    stream = build.call(aten.add.Tensor, stream, build.call(aten.add.Tensor, *both))
    return build.finish(build.call(aten.copy.default, cache, written), stream)


def orthogonal() -> SpmdGraph:
    """Sums over one axis, over the other, over both; averages; a group that is not an axis."""
    build = Builder(
        Mesh({"dp": 2, "tp": 2}, groups={"both": [[0, 1, 2, 3]], "cross": [[0, 3], [1, 2]]})
    )
    x = build.input("x", 4, 4, varies=("dp", "tp"))
    y = build.input("y", 4, 4, varies=("dp", "tp"))
    z = build.input("z", 4, 4, varies=("tp",))
    both = build.all_reduce(build.all_reduce(x, "tp"), "dp")
    product = build.all_reduce(y, "both")
    mean = build.all_reduce(build.call(aten.mul.Tensor, z, 3.0), "tp", "avg")
    crossed = build.all_reduce(build.call(aten.sub.Tensor, x, y), "cross")
    total = build.call(aten.add.Tensor, build.call(aten.add.Tensor, both, product), mean)
    return build.finish(total, build.call(aten.add.Tensor, total, crossed))


def open_tokens() -> SpmdGraph:
    """A dense block with a bias for any number of tokens."""
    return parse_graph(
        """mesh <tp = 2>
sym s0 in [2, 64]
func @main(%0 "x": f64[s0, 4], %1 "up": f64[4, 4] {tp: V}, %2 "down": f64[4, 4] {tp: V},
           %3 "bias": f64[4], %4 "other": f64[4, 4] {tp: V}) {
  %5: f64[s0, 4] = aten.mm(%0, %1)
  %6: f64[s0, 4] = aten.silu(%5)
  %7: f64[s0, 4] = aten.mm(%6, %2)
  %8: f64[s0, 4] = comm.all_reduce(%7) {axis = tp, op = sum}
  %9: f64[s0, 4] = aten.add.Tensor(%8, %3)
  %10: f64[s0, 4] = aten.mm(%6, %4)
  %11: f64[s0, 4] = comm.all_reduce(%10) {axis = tp, op = sum}
  %12: f64[s0, 4] = aten.add.Tensor(%9, %11)
  %13: f64[s0, 2, 2] = aten.view(%12, [-1, 2, 2])
  %14: f64[s0, 2, 2] = aten.mul.Tensor(%13, 0.5)
  %15: f64[s0, 4] = aten.view(%14, [-1, 4])
  %16: f64[s0, 4] = aten.add.Tensor(%0, %15)
  return %16
}
"""
    )


BY_HAND: tuple[Callable[[], SpmdGraph], ...] = (
    experts, sequence_parallel, vocabulary, exchanged_experts, cached, orthogonal, open_tokens,
)  # fmt: skip


def normalized_sums() -> SpmdGraph:
    """Sums over ranks that are added to a residual and normalized: whole, and by rows."""
    build = Builder(Mesh({"dp": 2, "tp": 2}))
    rows, f32 = ("dp",), torch.float32
    stream = build.input("x", 4, 4, dtype=f32, varies=rows)
    scale = build.input("scale", 4, dtype=f32)
    normed = build.call(aten.rms_norm.default, stream, [4], scale, 1e-5)
    for layer in range(3):
        up, down = (
            build.input(f"{n}{layer}", 4, 4, dtype=f32, varies=("tp",)) for n in ("up", "down")
        )
        hidden = build.call(aten.silu.default, build.call(aten.mm.default, normed, up))
        summed = build.all_reduce(build.call(aten.mm.default, hidden, down), "tp")
        stream = build.call(aten.add.Tensor, summed, stream)
        normed = build.call(aten.rms_norm.default, stream, [4], scale, 1e-5)
    own = build.reduce_scatter(build.call(aten.mm.default, normed, down), "tp")
    shared = build.all_gather(build.call(aten.rms_norm.default, own, [4], scale, 1e-5), "tp")
    return build.finish(stream, build.call(aten.mm.default, shared, up))


def pairs_by_hand() -> list[Pair]:
    """Every graph made by hand, and the optimizer's result."""
    pairs = []
    for make in BY_HAND:
        source = make()
        pairs.append(Pair(make.__name__, source, optimized(source), INDICES, TOKENS))
    norms = normalized_sums()
    pairs.append(Pair("fused", norms, fused_and_scheduled(norms), INDICES, TOKENS))
    open_ = open_tokens()
    pairs += [
        Pair(
            f"rows shared {seed}",
            open_,
            _shared(optimized(open_), "tp", random.Random(seed)),
            2,
            TOKENS,
        )
        for seed in range(4)
    ]
    return pairs


VOCABULARY = CACHE = LONGEST = 8
"""Token ids, places in the cache and open sizes of the small models all go to this number."""


def step3p5(experts: str, call: str, world_size: int) -> SpmdGraph:
    """A small Step-3.5 of three layers, the last of them sparse, captured as several ranks.

    Args:
        experts: "tp" or "ep".
        call: "prefill" of any number of tokens, or "decode" into a cache.
        world_size: ranks.
    """
    config = Step3p5Config.small(num_hidden_layers=3, vocab_size=VOCABULARY)
    models: list[Step3p5ForCausalLM] = []

    def factory() -> torch.nn.Module:
        models.append(
            Step3p5ForCausalLM(
                config, group=dist.group.WORLD, experts=experts, device="meta", dtype=torch.float32
            )
        )
        return models[-1]

    def make_inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
        batch, tokens = (1, 4) if call == "prefill" else (2, 1)
        ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
        cache = () if call == "prefill" else (models[-1].make_cache(batch, CACHE),)
        return (ids, torch.zeros_like(ids), *cache), {}

    return capture_ranks(factory, make_inputs, world_size).graph


MODELS = (("tp", "prefill", 2), ("ep", "decode", 2), ("ep", "prefill", 4), ("tp", "decode", 4))


def model_texts() -> dict[str, str]:
    """The text of every small Step-3.5, by name; open sizes are at most ``LONGEST``."""
    texts = {}
    for experts, call, size in MODELS:
        text = print_graph(step3p5(experts, call, size))
        narrowed = re.sub(r"(sym \w+ in \[2, )inf]", rf"\g<1>{LONGEST}]", text)
        texts[f"step3p5 {experts} {call} on {size}"] = narrowed
    return texts


def pair_of_text(name: str, text: str) -> Pair:
    """A model read from its text, and what the optimizer and the runtime make of it."""
    source = parse_graph(text)
    return Pair(name, source, fused_and_scheduled(optimized(source)), VOCABULARY, (LONGEST,))
