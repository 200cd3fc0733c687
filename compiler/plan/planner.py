"""Plans of one graph for any number of tokens. What plans have in common is rewritten once."""

from __future__ import annotations

import copy
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property, partial

from torch import fx

from compiler.analysis.layers import LayerMetadata, layer_of
from compiler.analysis.local_shards import shares_rows
from compiler.analysis.reductions import Reduction, facts, number_of
from compiler.analysis.row_shards import at_hand, row_forms
from compiler.cost.units import PS_PER_US
from compiler.garbage import collection_paused
from compiler.ir.comm_plan import RowStage, Stage
from compiler.ir.fused_ops import SLOT_BYTES
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import AUTHORED
from compiler.pipeline import Pass, Pipeline
from compiler.plan.alternatives import dispatches, norms_behind
from compiler.plan.decision import Decided, Written
from compiler.plan.fused_kernels import NormBehind
from compiler.plan.planner_options import Search
from compiler.plan.prices import Bill, Bytes, Item, LowerBounds, Times
from compiler.plan.reduction_cut import ReductionChoice
from compiler.plan.row_cut import RowChoice
from compiler.plan.spending import Spent, spent
from passes import (
    Canonicalize,
    CanonicalizeSlices,
    EliminateDeadCode,
    PlaceReductions,
    RegroupSums,
    ShardRows,
    UnshardRows,
)

MOST_PRICED = 64
"""Numbers of tokens whose prices are remembered."""


class Clock:
    """Wall time per stage of the optimizer."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("canonicalize", "plan", "rewrite", "check"), 0.0)
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Adds the time since the last lap to ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now


class Planner:
    """Plans of one graph.

    Args:
        source: the graph; it stays as it is.
        search: what to choose from.
        layers: metadata per decoder layer.
        pipeline: runs the passes.
        withdrawn: what is not done, although it would cost less: passes before any decision, and
            decisions, each with those before it.
    """

    @collection_paused()
    def __init__(
        self,
        source: SpmdGraph,
        search: Search,
        layers: Sequence[LayerMetadata],
        pipeline: Pipeline,
        withdrawn: frozenset[object] = frozenset(),
    ) -> None:
        """Canonicalizes the graph, and regroups its sums if any reduction may move."""
        self._pipeline, self.withdrawn = pipeline, withdrawn
        self.source, self.search = source, search
        self.layers, self.clock = layers, Clock()
        first = Written(source.own_copy(), pipeline)
        for node in first.graph.graph.nodes:
            node.meta.pop(AUTHORED, None)  # of a plan that the source came from
        self._written: dict[tuple[Hashable, ...], Written] = {}
        self._choices: dict[Hashable, ReductionChoice | RowChoice] = {}
        self._bills: dict[Hashable, Bill] = {}
        self._fused: dict[tuple[Written, str], list[NormBehind]] = {}
        self._priced: dict[tuple[Written, int | None], Times] = {}
        self._unsent: dict[Hashable, dict[fx.Node, str]] = {}
        known: tuple[Pass, ...] = (Canonicalize(), CanonicalizeSlices(), EliminateDeadCode())
        self._first = tuple(step for step in known if step not in withdrawn)
        made = self._run(first, self._first, first.placed)
        if search.policy != "off":
            groups = [g for g in made.sharing_groups if shares_rows(made.graph, g)]
            later: tuple[Pass, ...] = (
                *map(UnshardRows, groups),
                RegroupSums(search.widen, search.join),
            )
            later = tuple(step for step in later if step not in withdrawn)
            made = self._run(made, later, first.placed)
            self._first = (*self._first, *later)
        self._written[()] = made
        self.clock.lap("canonicalize")

    def under(self, policy: str) -> Planner:
        """Plans of the same graph under another policy; graphs that both reach are one."""
        made = copy.copy(self)
        made.search = replace(self.search, policy=policy)
        made.__dict__.pop("merged", None)
        made._choices = {}
        return made

    @property
    def compares_times(self) -> bool:
        """Whether times decide, and any value may be shared: bytes do not tell what that costs."""
        return self.search.policy == "cost" and self.search.machine is not None

    @property
    def canonical(self) -> Written:
        """The graph before any decision."""
        return self._written[()]

    @cached_property
    def as_written(self) -> Decided:
        """No plan: the author's graph."""
        at = Written(self.source, Pipeline())
        return Decided(("as written",), (), (), at, None, frozenset())

    @cached_property
    def merged(self) -> Decided:
        """The plan that merges reductions, and shares no more rows than costs nothing."""
        return self.under("merge").decide(None)

    @cached_property
    def baselines(self) -> tuple[Decided, ...]:
        """Plans that no other may take longer than; the author's where he shares rows himself."""
        authored = any(AUTHORED in node.meta for node in self.canonical.graph.graph.nodes)
        return (self.as_written, self.merged) if authored else (self.merged,)

    def baseline_ps(self, tokens: int) -> int:
        """What the planned graph may take at most."""
        return min(self.time_ps(decided, tokens) for decided in self.baselines)

    def decide(self, tokens: int | None) -> Decided:
        """The cheapest plan, found cut by cut; never one that takes longer than the baselines.

        Args:
            tokens: value of symbolic sizes; None for their hints.

        Raises:
            MachineError: the machine does not know a collective of the graph.
        """
        found = self._decided(tokens)
        if not self.compares_times:
            return found
        return min(*self.baselines, found, key=lambda decided: self.time_ps(decided, tokens))

    def _decided(self, tokens: int | None) -> Decided:
        at, path, search = self.canonical, tuple[Hashable, ...](), self.search
        stages: list[Stage] = []
        rows: list[RowStage] = []
        choice, shares = None, frozenset[fx.Node]()
        if search.policy == "off":
            return Decided(path, (), (), at, choice, shares)
        while (reduction := at.next_reduction) is not None:
            stage = self._placement(path, at, reduction, tokens)
            if (*path, stage.decision) in self.withdrawn:
                left = number_of(at.graph)[reduction.key]
                at = replace(at, placed={**at.placed, reduction.key: left})
                continue
            stages.append(stage)
            path = (*path, stage.decision)
            at = self._after(path, at, stage, reduction)
        for group in at.sharing_groups:
            if shares:
                path = (*path, rows[-1].decision)
                at = self._after(path, at, rows[-1])
            choice = self._row_choice((*path, group), at, group)
            shares = choice.cheapest(self._prices(at, tokens))
            if (*path, choice.stage(shares).decision) in self.withdrawn:
                shares = frozenset()
            rows += [choice.stage(shares)] if shares else []
        self.clock.lap("plan")
        last = (rows[-1].decision,) if shares else ()
        return Decided((*path, *last), tuple(stages), tuple(rows), at, choice, shares)

    def write(self, decided: Decided) -> Written:
        """The graph after the plan."""
        if not decided.shares:
            return decided.at
        return self._after(decided.decisions, decided.at, decided.rows[-1])

    def without(self, decided: Decided, step: int) -> Planner:
        """Plans of the same graph without one step of a plan; what comes after is decided anew.

        Where rows cannot be shared, those that the author shares stay as he wrote them.

        Args:
            decided: the plan.
            step: position of the pass in the records of its graph.
        """
        number = (step - len(self._first)) // 2  # dead code is eliminated after every decision
        what: object = decided.decisions[: number + 1]
        if step < len(self._first):
            what = self._first[step]
        elif number >= len(decided.stages):
            unshard = UnshardRows(decided.rows[number - len(decided.stages)].group)
            ran = zip(self._first, self.canonical.pipeline.records, strict=True)
            what = next((each for each, r in ran if each == unshard and r.changed), what)
        made = Planner(
            self.source, self.search, self.layers, self._pipeline, self.withdrawn | {what}
        )
        made.clock = self.clock
        return made

    def time_ps(self, decided: Decided, tokens: int | None) -> int:
        """What the planned graph takes on the machine, known without writing it."""
        times, key = self._times(decided.at, tokens), (decided.at, decided.decisions)
        if key not in self._bills:
            self._bills[key] = decided.at.work.bill(decided.items(decided.shares))
        return sum(count * item.price(times) for item, count in self._bills[key])

    def spent(
        self, decided: Decided, tokens: int | None, *, bounds: bool = False
    ) -> dict[fx.Node, Spent]:
        """What every value takes, in the graph that the last choice of rows was made for.

        Gathers count where their operand stands.

        Args:
            decided: the plan.
            tokens: value of symbolic sizes; None for their hints.
            bounds: collectives take what their bytes do at the rate of the links, and shares are
                chosen for that: with the same reductions, no plan takes less.
        """
        times = self._times(decided.at, tokens)
        if bounds:
            times = LowerBounds(times.machine, tokens, times.work, times.launch, times.fused_bytes)
            if decided.choice is not None:
                choice = self._any_rows(decided.at, decided.choice.group)
                decided = replace(decided, choice=choice, shares=choice.cheapest(times))
        found: dict[fx.Node, Spent] = {}
        for item in decided.items(decided.shares):
            found[item.node] = found.get(item.node, Spent()) + spent(times, item)
        return found

    def _placement(
        self,
        path: tuple[Hashable, ...],
        at: Written,
        reduction: Reduction,
        tokens: int | None,
    ) -> Stage:
        search, key = self.search, (*path, reduction.key)
        if key not in self._choices:
            known = facts(at.graph, reduction, widen=search.widen, join=search.join)
            self._choices[key] = ReductionChoice(at.graph, known, hoist=search.policy == "cost")
        choice = self._choices[key]
        assert isinstance(choice, ReductionChoice)
        return choice.stage(choice.cheapest(self._prices(at, tokens)), tokens)

    def _row_choice(self, key: Hashable, at: Written, group: str) -> RowChoice:
        if key not in self._choices:
            if self.compares_times:
                self._choices[key] = self._any_rows(at, group)
            else:
                groups = at.graph.mesh.group(group)
                free = at_hand(at.graph, groups, row_forms(at.graph, groups))
                sparse = {layer.index for layer in self.layers if layer.kind == "sparse"}
                layered = sparse if self.search.policy == "boundary" else frozenset[int]()
                allowed = partial(_may_share, free, layered)
                norms = self._norms(at, group)
                self._choices[key] = RowChoice(
                    at.graph, group, allowed=allowed, norms=norms, works_whole=False
                )
        found = self._choices[key]
        assert isinstance(found, RowChoice)
        return found

    def _any_rows(self, at: Written, group: str) -> RowChoice:
        """The choice among all values that may be shares."""
        key = at, group
        if key not in self._choices:
            known, refused = dispatches(at.graph, group) if self.compares_times else ({}, {})
            norms = self._norms(at, group)
            self._choices[key] = RowChoice(
                at.graph, group, dispatches=known, norms=norms, key=at.work.key
            )
            self._unsent[key] = refused
        found = self._choices[key]
        assert isinstance(found, RowChoice)
        return found

    def kernels(self, decided: Decided, tokens: int | None) -> Iterator[tuple[Item, int, int]]:
        """Fused kernels that the plan counts on, what each takes, and what its parts would."""
        times = self._times(decided.at, tokens)
        for item in decided.items(decided.shares):
            if (kernel := item.as_kernel(times)) is not None:
                yield item, kernel, item.apart(times)

    def _norms(self, at: Written, group: str) -> list[NormBehind]:
        """What fused kernels of the machine may do behind sums over the group."""
        if not self.search.has_kernels(at.graph.mesh.group(group).axis_size):
            return []
        if (at, group) not in self._fused:
            self._fused[at, group] = norms_behind(at.graph, group)
        return self._fused[at, group]

    def unsent(self, decided: Decided, tokens: int | None) -> Iterator[tuple[fx.Node, str]]:
        """Sums over experts of rows that are not sent to them, and why.

        Nodes are those of the graph that the last choice of rows was made for.
        """
        if decided.choice is None:
            return
        yield from self._unsent.get((decided.at, decided.choice.group), {}).items()
        for node, found in decided.choice.dispatches.items():
            if found.region.output not in decided.shares:
                times = self._times(decided.at, tokens)
                sent, gathered = (x / PS_PER_US for x in decided.choice.dispatch_cost(node, times))
                yield node, f"that takes {sent:.1f} us, to gather and scatter all {gathered:.1f} us"

    def _prices(self, at: Written, tokens: int | None) -> Bytes | Times:
        return self._times(at, tokens) if self.compares_times else Bytes(tokens)

    def _times(self, at: Written, tokens: int | None) -> Times:
        assert self.search.machine is not None
        if (at, tokens) not in self._priced:
            if len(self._priced) > MOST_PRICED:
                self._priced.clear()
            most = SLOT_BYTES if self.search.fuse else 0
            made = Times(self.search.machine, tokens, at.work, self.search.launch, most)
            self._priced[at, tokens] = made
        return self._priced[at, tokens]

    def _after(
        self,
        path: tuple[Hashable, ...],
        at: Written,
        stage: Stage | RowStage,
        reduction: Reduction | None = None,
    ) -> Written:
        """The graph after a stage, written once."""
        if path not in self._written:
            self.clock.lap("plan")
            step = PlaceReductions(stage) if isinstance(stage, Stage) else ShardRows(stage)
            made = self._run(at, (step, EliminateDeadCode()), at.placed)
            if reduction is not None:
                left = number_of(made.graph)[reduction.key]
                made = replace(made, placed={**at.placed, reduction.key: left})
            self._written[path] = made
            self.clock.lap("rewrite")
        return self._written[path]

    def _run(self, at: Written, passes: Sequence[Pass], placed: Mapping[object, int]) -> Written:
        graph, pipeline = at.graph, replace(at.pipeline, records=list(at.pipeline.records))
        for step in passes:
            graph = pipeline.run(step, graph)
        return Written(graph, pipeline, placed)


def _may_share(free: Set[fx.Node], layers: Set[int], node: fx.Node) -> bool:
    return node in free or layer_of(node) in layers or AUTHORED in node.meta
