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
from compiler.analysis.partial_forms import PartialAssignment
from compiler.analysis.reductions import Reduction, number_of, reduction_facts
from compiler.analysis.row_shards import RowAssignment, at_hand, row_forms
from compiler.cost.units import PS_PER_US
from compiler.garbage import collection_paused
from compiler.ir.fused_ops import SLOT_BYTES
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import AUTHORED
from compiler.pipeline import Pass, Pipeline
from compiler.plan.alternatives import dispatches, norms_behind
from compiler.plan.decision import Assignment, Decision, RewrittenGraph
from compiler.plan.fused_kernels import NormBehind
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.prices import Bytes, CostTable, CostTerm, LowerBounds, Times
from compiler.plan.reduction_cut import place_reductions
from compiler.plan.row_cut import Dispatch, RowChoice
from compiler.plan.spending import PredictedTime, predicted_time
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
        options: what to choose from.
        layers: metadata per decoder layer.
        pipeline: runs the passes.
        withdrawn: what is not done, although it would cost less: passes before any decision, and
            decisions, each with those before it.
    """

    @collection_paused()
    def __init__(
        self,
        source: SpmdGraph,
        options: PlannerOptions,
        layers: Sequence[LayerMetadata],
        pipeline: Pipeline,
        withdrawn: frozenset[object] = frozenset(),
    ) -> None:
        """Canonicalizes the graph, and regroups its sums if any reduction may move."""
        self._pipeline, self.withdrawn = pipeline, withdrawn
        self.source, self.options = source, options
        self.layers, self.clock = layers, Clock()
        first = RewrittenGraph(source.own_copy(), pipeline)
        for node in first.graph.graph.nodes:
            node.meta.pop(AUTHORED, None)  # of a plan that the source came from
        self._written: dict[tuple[Assignment, ...], RewrittenGraph] = {}
        self._choices: dict[Hashable, RowChoice] = {}
        self._cost_tables: dict[Hashable, CostTable] = {}
        self._priced: dict[tuple[RewrittenGraph, int | None], Times] = {}
        passes: tuple[Pass, ...] = (Canonicalize(), CanonicalizeSlices(), EliminateDeadCode())
        self._first = tuple(step for step in passes if step not in withdrawn)
        rewritten = self._run(first, self._first, first.placed)
        if options.policy != "off":
            groups = [g for g in rewritten.sharing_groups if shares_rows(rewritten.graph, g)]
            later: tuple[Pass, ...] = (
                *map(UnshardRows, groups),
                RegroupSums(options.allow_dtype_widening, options.allow_new_groups),
            )
            later = tuple(step for step in later if step not in withdrawn)
            rewritten = self._run(rewritten, later, first.placed)
            self._first = (*self._first, *later)
        self._written[()] = rewritten
        self.clock.lap("canonicalize")

    def under(self, policy: str) -> Planner:
        """Plans of the same graph under another policy; graphs that both reach are one."""
        variant = self._variant()
        variant.options = replace(self.options, policy=policy)
        return variant

    def _variant(self) -> Planner:
        """Return a planner of the same graph whose options may be changed."""
        variant = copy.copy(self)
        variant.__dict__.pop("merged", None)
        variant.__dict__.pop("baselines", None)
        return variant

    @property
    def compares_times(self) -> bool:
        """Whether times decide, and any value may be shared: bytes do not tell what that costs."""
        return self.options.policy == "cost" and self.options.machine is not None

    @property
    def canonical(self) -> RewrittenGraph:
        """The graph before any decision."""
        return self._written[()]

    @cached_property
    def as_written(self) -> Decision:
        """No plan: the author's graph."""
        at = RewrittenGraph(self.source, Pipeline())
        return Decision((), at, is_plan=False)

    @cached_property
    def merged(self) -> Decision:
        """The plan that merges reductions, and shares no more rows than costs nothing."""
        return self.under("merge").decide(None)

    @cached_property
    def baselines(self) -> tuple[Decision, ...]:
        """Plans that no other may take longer than; the author's where he shares rows himself."""
        authored = any(AUTHORED in node.meta for node in self.canonical.graph.graph.nodes)
        return (self.as_written, self.merged) if authored else (self.merged,)

    def baseline_ps(self, tokens: int) -> int:
        """What the planned graph may take at most."""
        return min(self.time_ps(decision, tokens) for decision in self.baselines)

    def decide(self, tokens: int | None) -> Decision:
        """Return the cheapest plan, cut by cut; never one that takes longer than the baselines.

        Args:
            tokens: value of symbolic sizes; None for their hints.

        Raises:
            MachineError: the machine does not know a collective of the graph.
        """
        cheapest = self._decided(tokens)
        if not self.compares_times:
            return cheapest
        return min(*self.baselines, cheapest, key=lambda decision: self.time_ps(decision, tokens))

    def _decided(self, tokens: int | None) -> Decision:
        at, path = self.canonical, tuple[Assignment, ...]()
        choice, shares = None, frozenset[fx.Node]()
        if self.options.policy == "off":
            return Decision(path, at)
        while (reduction := at.next_reduction) is not None:
            placement = self._placement(at, reduction, tokens)
            if (*path, placement) in self.withdrawn:
                left = number_of(at.graph)[reduction.key]
                at = replace(at, placed={**at.placed, reduction.key: left})
                continue
            path = (*path, placement)
            at = self._after(path, at)
        for group in at.sharing_groups:
            if shares:
                at = self._after(path, at)
            choice = self._row_choice(at, group)
            shares = choice.cheapest(self._prices(at, tokens))
            rows = choice.assignment(shares)
            if (*path, rows) in self.withdrawn:
                shares = frozenset()
            path = (*path, rows) if shares else path
        self.clock.lap("plan")
        return Decision(path, at, choice, shares)

    def write(self, decision: Decision) -> RewrittenGraph:
        """Return the graph after the plan."""
        if not decision.shares:
            return decision.at
        return self._after(decision.assignments, decision.at)

    def without(self, decision: Decision, step: int) -> Planner:
        """Return plans of the same graph without one step; what comes after is decided anew.

        Where rows cannot be shared, those that the author shares stay as he wrote them.

        Args:
            decision: the plan.
            step: position of the pass in the records of its graph.
        """
        first = self._first[step] if step < len(self._first) else None
        number = (step - len(self._first)) // 2  # dead code is eliminated after every assignment
        if first is None and isinstance(rows := decision.assignments[number], RowAssignment):
            unshard = UnshardRows(rows.group)
            ran = zip(self._first, self.canonical.pipeline.records, strict=True)
            first = next((each for each, r in ran if each == unshard and r.changed), None)
        if first is None:
            fewer = self._variant()
            fewer.withdrawn = self.withdrawn | {decision.assignments[: number + 1]}
            return fewer
        fewer = Planner(
            self.source, self.options, self.layers, self._pipeline, self.withdrawn | {first}
        )
        fewer.clock = self.clock
        return fewer

    def time_ps(self, decision: Decision, tokens: int | None) -> int:
        """What the planned graph takes on the machine, known without writing it."""
        times, key = self._times(decision.at, tokens), (decision.at, decision.assignments)
        if key not in self._cost_tables:
            terms = decision.cost_terms(decision.shares)
            self._cost_tables[key] = decision.at.work.cost_table(terms)
        return sum(count * term.cost(times) for term, count in self._cost_tables[key])

    def predicted_times(
        self, decision: Decision, tokens: int | None, *, bounds: bool = False
    ) -> dict[fx.Node, PredictedTime]:
        """What every value takes, in the graph that the last choice of rows was made for.

        Gathers count where their operand stands.

        Args:
            decision: the plan.
            tokens: value of symbolic sizes; None for their hints.
            bounds: collectives take what their bytes do at the rate of the links, and shares are
                chosen for that: with the same reductions, no plan takes less.
        """
        times = self._times(decision.at, tokens)
        if bounds:
            times = LowerBounds(times.machine, tokens, times.work, times.launch, times.fused_bytes)
            if decision.choice is not None:
                choice = self._any_rows(decision.at, decision.choice.group)
                decision = replace(decision, choice=choice, shares=choice.cheapest(times))
        times_of: dict[fx.Node, PredictedTime] = {}
        for term in decision.cost_terms(decision.shares):
            before = times_of.get(term.node, PredictedTime())
            times_of[term.node] = before + predicted_time(times, term)
        return times_of

    def _placement(
        self, at: RewrittenGraph, reduction: Reduction, tokens: int | None
    ) -> PartialAssignment:
        options = self.options
        facts = reduction_facts(
            at.graph, reduction, options.allow_dtype_widening, options.allow_new_groups
        )
        hoist = options.policy == "cost"
        return place_reductions(facts, self._prices(at, tokens), hoist=hoist)

    def _row_choice(self, at: RewrittenGraph, group: str) -> RowChoice:
        if self.compares_times:
            return self._any_rows(at, group)
        key = at, group, self.options.policy
        if key not in self._choices:
            groups = at.graph.mesh.group(group)
            free = at_hand(at.graph, groups, row_forms(at.graph, groups))
            sparse = {layer.index for layer in self.layers if layer.kind == "sparse"}
            layered = sparse if self.options.policy == "boundary" else frozenset[int]()
            self._choices[key] = RowChoice(
                at.graph,
                group,
                allowed=partial(_may_share, free, layered),
                norms=self._norms(at, group),
                works_whole=False,
            )
        return self._choices[key]

    def _any_rows(self, at: RewrittenGraph, group: str) -> RowChoice:
        """The choice among all values that may be shares."""
        key = at, group, self.compares_times
        if key not in self._choices:
            regions, _ = self._dispatches(at, group)
            norms = self._norms(at, group)
            self._choices[key] = RowChoice(
                at.graph, group, dispatches=regions, norms=norms, key=at.work.key
            )
        return self._choices[key]

    def _dispatches(
        self, at: RewrittenGraph, group: str
    ) -> tuple[dict[fx.Node, Dispatch], dict[fx.Node, str]]:
        return dispatches(at.graph, group) if self.compares_times else ({}, {})

    def kernels(
        self, decision: Decision, tokens: int | None
    ) -> Iterator[tuple[CostTerm, int, int]]:
        """Fused kernels that the plan counts on, what each takes, and what its parts would."""
        times = self._times(decision.at, tokens)
        for term in decision.cost_terms(decision.shares):
            if (kernel := term.kernel_cost(times)) is not None:
                yield term, kernel, term.apart(times)

    def _norms(self, at: RewrittenGraph, group: str) -> list[NormBehind]:
        """What fused kernels of the machine may do behind sums over the group."""
        has_kernels = self.options.has_kernels(at.graph.mesh.group(group).axis_size)
        return norms_behind(at.graph, group) if has_kernels else []

    def unsent(self, decision: Decision, tokens: int | None) -> Iterator[tuple[fx.Node, str]]:
        """Sums over experts of rows that are not sent to them, and why.

        Nodes are those of the graph that the last choice of rows was made for.
        """
        if decision.choice is None:
            return
        yield from self._dispatches(decision.at, decision.choice.group)[1].items()
        for node, dispatch in decision.choice.dispatches.items():
            if dispatch.region.output not in decision.shares:
                times = self._times(decision.at, tokens)
                sent, gathered = (x / PS_PER_US for x in decision.choice.dispatch_cost(node, times))
                yield node, f"that takes {sent:.1f} us, to gather and scatter all {gathered:.1f} us"

    def _prices(self, at: RewrittenGraph, tokens: int | None) -> Bytes | Times:
        return self._times(at, tokens) if self.compares_times else Bytes(tokens)

    def _times(self, at: RewrittenGraph, tokens: int | None) -> Times:
        assert self.options.machine is not None
        if (at, tokens) not in self._priced:
            if len(self._priced) > MOST_PRICED:
                self._priced.clear()
            most = SLOT_BYTES if self.options.fuse else 0
            prices = Times(self.options.machine, tokens, at.work, self.options.launch, most)
            self._priced[at, tokens] = prices
        return self._priced[at, tokens]

    def _after(self, path: tuple[Assignment, ...], at: RewrittenGraph) -> RewrittenGraph:
        """Return the graph ``at`` after the last assignment of ``path``, written once."""
        if path not in self._written:
            self.clock.lap("plan")
            last = path[-1]
            if isinstance(last, RowAssignment):
                rewritten = self._run(at, (ShardRows(last), EliminateDeadCode()), at.placed)
            else:
                rewritten = self._run(at, (PlaceReductions(last), EliminateDeadCode()), at.placed)
                key = last.facts.reduction.key
                count = number_of(rewritten.graph)[key]
                rewritten = replace(rewritten, placed={**at.placed, key: count})
            self._written[path] = rewritten
            self.clock.lap("rewrite")
        return self._written[path]

    def _run(
        self, at: RewrittenGraph, passes: Sequence[Pass], placed: Mapping[object, int]
    ) -> RewrittenGraph:
        graph, pipeline = at.graph, replace(at.pipeline, records=list(at.pipeline.records))
        for step in passes:
            graph = pipeline.run(step, graph)
        return RewrittenGraph(graph, pipeline, placed)


def _may_share(free: Set[fx.Node], layers: Set[int], node: fx.Node) -> bool:
    return node in free or layer_of(node) in layers or AUTHORED in node.meta
