"""Plans that were decided on, and the graphs that their assignments lead to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from compiler.analysis.partial_forms import PartialAssignment
from compiler.analysis.reductions import Reduction, number_of
from compiler.analysis.row_shards import RowAssignment
from compiler.ir.collectives import collectives
from compiler.ir.comm_plan import CommPlan
from compiler.ir.graph import SpmdGraph
from compiler.pipeline import Pipeline
from compiler.plan.export import reduction_stage, row_stage
from compiler.plan.prices import CostTerm, GraphWork
from compiler.plan.row_cut import RowChoice
from compiler.plan.spending import cost_terms_of


@dataclass(frozen=True, eq=False)
class RewrittenGraph:
    """A graph that some decisions led to.

    Attributes:
        graph: after them.
        pipeline: the passes that ran.
        placed: reduction -> how many there were when it was last placed.
    """

    graph: SpmdGraph
    pipeline: Pipeline
    placed: Mapping[Reduction, int] = field(default_factory=dict)

    @cached_property
    def work(self) -> GraphWork:
        """What the graph's ops do."""
        return GraphWork(self.graph)

    @cached_property
    def next_reduction(self) -> Reduction | None:
        """The first that there are more of than when it was placed.

        Placing one may make others, over its groups and orthogonal ones together.
        """
        count = number_of(self.graph)
        return next((r for r in count if count[r] > self.placed.get(r, 0)), None)


def sharing_groups(graph: SpmdGraph) -> tuple[str, ...]:
    """Names of the groups that reduce or gather, one for each set of replica groups."""
    name_of = {graph.mesh.group(c.group): c.group for _, c in collectives(graph.graph)}
    return tuple(name for groups, name in name_of.items() if groups.axis_size > 1)


Assignment = PartialAssignment | RowAssignment


@dataclass(frozen=True)
class Decision:
    """A plan. Equal for equal assignments, whatever prices led to them.

    Attributes:
        assignments: in the order in which they apply, each to the graph that the one before left.
        at: the graph that the last choice of rows was made for.
        choice: that choice, None if there was nothing to choose.
        shares: the values it picked.
        is_plan: whether passes run at all: not for the graph as its author wrote it.
    """

    assignments: tuple[Assignment, ...]
    at: RewrittenGraph = field(compare=False)
    choice: RowChoice | None = field(default=None, compare=False)
    shares: frozenset[fx.Node] = field(default=frozenset(), compare=False)
    is_plan: bool = True

    def cost_terms(self) -> Iterator[CostTerm]:
        """Yield the cost terms of the planned graph, known without writing it."""
        graph, choice = self.at.graph, self.choice
        forms = choice.forms if choice else {}
        yield from cost_terms_of(graph, (n for n in graph.graph.nodes if n not in forms))
        yield from choice.cost_terms(self.shares) if choice else ()

    def plan(self, policy: str, tokens: int | None) -> CommPlan:
        """Return the plan as data that ranks compare and files store, payloads at ``tokens``."""
        reductions = [a for a in self.assignments if isinstance(a, PartialAssignment)]
        rows = [a for a in self.assignments if isinstance(a, RowAssignment)]
        return CommPlan(
            policy,
            tokens,
            tuple(reduction_stage(a, tokens) for a in reductions),
            tuple(map(row_stage, rows)),
        )
