"""Plans of one graph for any number of tokens. What plans have in common is rewritten once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property, partial
from itertools import starmap

from torch import fx

from compiler.analysis.layers import LayerMetadata, layer_metadata, layer_of
from compiler.analysis.local_shards import shares_rows
from compiler.analysis.partial_forms import PartialAssignment
from compiler.analysis.reductions import Reduction, number_of, reduction_facts
from compiler.analysis.row_shards import RowAssignment, at_hand, row_forms
from compiler.cost import MachineError
from compiler.cost.units import PS_PER_US
from compiler.garbage import collection_paused
from compiler.ir.fused_ops import SLOT_BYTES
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import AUTHORED
from compiler.pipeline import Clock, Pass, Pipeline, Step
from compiler.plan.decision import Assignment, Decision, RewrittenGraph, sharing_groups
from compiler.plan.fused_kernels import norms_behind
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.prices import Bytes, CostTable, CostTerm, LowerBounds, Times
from compiler.plan.reduction_cut import place_reductions
from compiler.plan.row_cut import Dispatch, RowChoice, dispatches
from compiler.plan.spending import PredictedTime, Totals, predicted_time
from compiler.plan.token_ranges import LAST_TOKENS, TokenRange, TokenTable, token_table
from passes import (
    CANONICALIZING,
    PLACING,
    REGROUPING,
    SHARDING,
    RegroupSums,
    UnshardRows,
)

MOST_PRICED = 64
"""Numbers of tokens whose prices are remembered."""


class Planner:
    """Plans of one graph.

    Args:
        source: the graph; it stays as it is.
        options: what to choose from.
        layers: metadata per decoder layer; default: read off the graph.
        sizes: size symbol -> least and greatest value, where there are bounds.
        pipeline: runs the passes.
        withdrawn: what is not done, although it would cost less: passes before any decision, and
            decisions, each with those before it.
    """

    @collection_paused()
    def __init__(
        self,
        source: SpmdGraph,
        options: PlannerOptions,
        layers: Sequence[LayerMetadata] | None = None,
        sizes: Mapping[str, tuple[int, int | None]] | None = None,
        pipeline: Pipeline | None = None,
        withdrawn: frozenset[object] = frozenset(),
    ) -> None:
        """Canonicalizes the graph, and regroups its sums if any reduction may move."""
        self.source, self.options, self.withdrawn = source, options, withdrawn
        self.layers = layer_metadata(source) if layers is None else layers
        self._sizes, self._pipeline = sizes or {}, pipeline or Pipeline()
        self.clock = Clock()
        self._choices: dict[Hashable, RowChoice] = {}
        self._cost_tables: dict[Hashable, CostTable] = {}
        self._priced: dict[tuple[RewrittenGraph, int | None], Times] = {}
        first = RewrittenGraph(source.own_copy(), self._pipeline)
        for node in first.graph.graph.nodes:
            node.meta.pop(AUTHORED, None)  # of a plan that the source came from
        canonical = self._run(first, (*CANONICALIZING, *REGROUPING), self._passes_of)
        self._written: dict[tuple[Assignment, ...], RewrittenGraph] = {(): canonical}
        self.clock.lap("canonicalize")

    def _passes_of(self, step: Step, graph: SpmdGraph) -> Iterator[Pass]:
        """Yield the passes of a step before all decisions."""
        options, arguments = self.options, list[tuple[object, ...]]([()])
        if step in REGROUPING and options.policy == "off":
            return
        if step is UnshardRows:
            arguments = [(g,) for g in sharing_groups(graph) if shares_rows(graph, g)]
        elif step is RegroupSums:
            arguments = [(options.allow_dtype_widening, options.allow_new_groups)]
        yield from (each for each in starmap(step, arguments) if each not in self.withdrawn)

    def under(self, policy: str) -> Planner:
        """Plans of the same graph under another policy; graphs that both reach are one."""
        return self._variant(options=replace(self.options, policy=policy))

    def _variant(self, **changes: object) -> Planner:
        """Return a planner of the same graph with other options, or without some decisions."""
        variant = copy.copy(self)
        for cached in ("merged", "baselines", "table"):
            vars(variant).pop(cached, None)
        vars(variant).update(changes)
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

    @cached_property
    def symbol(self) -> str | None:
        """The size that counts tokens; None unless there is exactly one."""
        symbols = self.canonical.work.token_symbols
        return symbols[0] if len(symbols) == 1 else None

    @cached_property
    def table(self) -> TokenTable[Decision]:
        """The plan for every number of tokens.

        Raises:
            MachineError: the machine does not know a collective of the graph.
        """
        low, high = self._sizes.get(self.symbol, (1, None)) if self.symbol else (1, 1)
        first, last = max(1, low), min(LAST_TOKENS, LAST_TOKENS if high is None else high)
        if self.symbol is None or not self.compares_times or first > last:
            return TokenTable(1, (TokenRange(first, last, self.decide(None)),))
        mesh, graph = self.source.mesh, self.canonical.graph
        ranks = math.lcm(*(mesh.group(group).axis_size for group in sharing_groups(graph)), 1)
        step = self.canonical.work.steps.get(self.symbol, 1)

        def limit(tokens: int) -> int:
            return min(self.time_ps(decision, tokens) for decision in self.baselines)

        return token_table(self.decide, self.time_ps, first, last, ranks, limit, step)

    def plan_for(self, tokens: int | None) -> Decision:
        """Return the plan of the table; one made for the very count where there are no ranges."""
        if self.symbol is None or tokens is None or not self.compares_times:
            return self.decide(tokens)
        return self.table.plan(tokens)

    def totals(self, decision: Decision, tokens: int | None) -> Totals:
        """Return what a plan takes, beside what it is compared with."""
        try:
            times = self.predicted_times(decision, tokens, bounds=True)
            bound = sum(time.total_ps for time in times.values())
        except MachineError:
            bound = None
        return Totals(
            tokens,
            self.time_ps(self.as_written, tokens),
            self.time_ps(self.merged, tokens),
            self.time_ps(decision, tokens),
            bound,
        )

    @collection_paused()
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
                left = number_of(at.graph)[reduction]
                at = replace(at, placed={**at.placed, reduction: left})
                continue
            path = (*path, placement)
            at = self._after(path, at)
        for group in sharing_groups(at.graph):
            if shares:
                at = self._after(path, at)
            choice = self._row_choice(at, group, any_rows=self.compares_times)
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
        records = self.write(decision).pipeline.records
        first = len(self.canonical.pipeline.records)
        withdrawn = records[step].rewrite if step < first else None
        number = (step - first) // len(PLACING)
        if withdrawn is None and isinstance(rows := decision.assignments[number], RowAssignment):
            unshard = UnshardRows(rows.group)
            ran = (each.rewrite for each in records[:first] if each.changed)
            withdrawn = next((each for each in ran if each == unshard), None)
        if withdrawn is None:
            path = decision.assignments[: number + 1]
            return self._variant(withdrawn=self.withdrawn | {path})
        fewer = Planner(
            self.source, self.options, self.layers, self._sizes, self._pipeline,
            self.withdrawn | {withdrawn},
        )  # fmt: skip
        return fewer._variant(clock=self.clock)

    def time_ps(self, decision: Decision, tokens: int | None) -> int:
        """What the planned graph takes on the machine, known without writing it."""
        times, key = self._times(decision.at, tokens), (decision.at, decision.assignments)
        if key not in self._cost_tables:
            terms = decision.cost_terms()
            self._cost_tables[key] = decision.at.work.cost_table(terms)
        return sum(count * term.cost(times) for term, count in self._cost_tables[key])

    def predicted_times(
        self, decision: Decision, tokens: int | None, *, bounds: bool = False
    ) -> dict[fx.Node, PredictedTime]:
        """What every value takes; see ``predicted_terms``. Gathers count where their operand is."""
        times_of: dict[fx.Node, PredictedTime] = {}
        for term, time in self.predicted_terms(decision, tokens, bounds=bounds):
            times_of[term.node] = times_of.get(term.node, PredictedTime()) + time
        return times_of

    def predicted_terms(
        self, decision: Decision, tokens: int | None, *, bounds: bool = False
    ) -> Iterator[tuple[CostTerm, PredictedTime]]:
        """Yield what a plan does and takes, in the graph that the last choice of rows was made for.

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
                group = decision.choice.group
                choice = self._row_choice(decision.at, group, any_rows=True)
                decision = replace(decision, choice=choice, shares=choice.cheapest(times))
        for term in decision.cost_terms():
            yield term, predicted_time(times, term)

    def _placement(
        self, at: RewrittenGraph, reduction: Reduction, tokens: int | None
    ) -> PartialAssignment:
        options = self.options
        facts = reduction_facts(
            at.graph, reduction, options.allow_dtype_widening, options.allow_new_groups
        )
        hoist = options.policy == "cost"
        return place_reductions(facts, self._prices(at, tokens), hoist=hoist)

    def _row_choice(self, at: RewrittenGraph, group: str, *, any_rows: bool) -> RowChoice:
        """The choice among all values that may be shares, or those that the policy lets be."""
        key = at, group, any_rows, self.compares_times or self.options.policy
        if key in self._choices:
            return self._choices[key]
        ranks = at.graph.mesh.group(group).axis_size
        norms = norms_behind(at.graph, group) if self.options.has_kernels(ranks) else []
        if any_rows:
            regions, _ = self._dispatches(at, group)
            choice = RowChoice(at.graph, group, dispatches=regions, norms=norms, key=at.work.key)
        else:
            groups = at.graph.mesh.group(group)
            free = at_hand(at.graph, groups, row_forms(at.graph, groups))
            sparse = {layer.index for layer in self.layers if layer.kind == "sparse"}
            layered = sparse if self.options.policy == "boundary" else frozenset[int]()
            allowed = partial(_may_share, free, layered)
            choice = RowChoice(at.graph, group, allowed=allowed, norms=norms, works_whole=False)
        self._choices[key] = choice
        return choice

    def _dispatches(
        self, at: RewrittenGraph, group: str
    ) -> tuple[dict[fx.Node, Dispatch], dict[fx.Node, str]]:
        return dispatches(at.graph, group) if self.compares_times else ({}, {})

    def kernels(
        self, decision: Decision, tokens: int | None
    ) -> Iterator[tuple[CostTerm, int, int]]:
        """Fused kernels that the plan counts on, what each takes, and what its parts would."""
        times = self._times(decision.at, tokens)
        for term in decision.cost_terms():
            if (kernel := term.kernel_cost(times)) is not None:
                yield term, kernel, term.apart(times)

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
            steps: tuple[Step, ...] = SHARDING if isinstance(last, RowAssignment) else PLACING
            decided = steps[0]
            rewritten = self._run(
                at, steps, lambda step, _: [step(last) if step is decided else step()]
            )
            if isinstance(last, PartialAssignment):
                reduction = last.facts.reduction
                count = number_of(rewritten.graph)[reduction]
                rewritten = replace(rewritten, placed={**at.placed, reduction: count})
            self._written[path] = rewritten
            self.clock.lap("rewrite")
        return self._written[path]

    def _run(
        self,
        at: RewrittenGraph,
        steps: Iterable[Step],
        passes_of: Callable[[Step, SpmdGraph], Iterable[Pass]],
    ) -> RewrittenGraph:
        pipeline = replace(at.pipeline, records=list(at.pipeline.records))
        return RewrittenGraph(pipeline.run_all(steps, at.graph, passes_of), pipeline, at.placed)


def _may_share(free: Set[fx.Node], layers: Set[int], node: fx.Node) -> bool:
    return node in free or layer_of(node) in layers or AUTHORED in node.meta
