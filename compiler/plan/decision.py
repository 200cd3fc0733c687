"""Plans that were decided on, and the graphs that their stages lead to."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from compiler.analysis.reductions import Reduction, number_of, reductions
from compiler.ir.collectives import collectives
from compiler.ir.comm_plan import CommPlan, RowStage, Stage
from compiler.ir.graph import SpmdGraph
from compiler.pipeline import Pipeline
from compiler.plan.prices import GraphWork, Item
from compiler.plan.row_cut import RowChoice
from compiler.plan.spending import items_of


@dataclass(frozen=True, eq=False)
class Written:
    """A graph that some stages led to.

    Attributes:
        graph: after them.
        pipeline: the passes that ran.
        placed: reduction -> how many there were when it was last placed.
    """

    graph: SpmdGraph
    pipeline: Pipeline
    placed: Mapping[object, int] = field(default_factory=dict)

    @cached_property
    def work(self) -> GraphWork:
        """What the graph's ops do."""
        return GraphWork(self.graph)

    @cached_property
    def next_reduction(self) -> Reduction | None:
        """The first that there are more of than when it was placed.

        Placing one may make others, over its groups and orthogonal ones together.
        """
        found = number_of(self.graph)
        every = reductions(self.graph)
        return next((r for r in every if found[r.key] > self.placed.get(r.key, 0)), None)

    @cached_property
    def sharing_groups(self) -> tuple[str, ...]:
        """Names of the groups that reduce or gather, one for each set of replica groups."""
        mesh = self.graph.mesh
        found = {mesh.group(c.group): c.group for _, c in collectives(self.graph.graph)}
        return tuple(name for groups, name in found.items() if groups.axis_size > 1)


@dataclass(frozen=True)
class Decided:
    """A plan. Equal for equal decisions, whatever payloads they were counted at.

    Attributes:
        decisions: of every stage.
        stages: placements of reductions.
        rows: what ranks share.
        at: the graph that the last choice of rows was made for.
        choice: that choice, None if there was nothing to choose.
        shares: the values it picked.
    """

    decisions: tuple[Hashable, ...]
    stages: tuple[Stage, ...] = field(compare=False)
    rows: tuple[RowStage, ...] = field(compare=False)
    at: Written = field(compare=False)
    choice: RowChoice | None = field(compare=False)
    shares: frozenset[fx.Node] = field(compare=False)

    def items(self, shares: Set[fx.Node]) -> Iterator[Item]:
        """What there is to pay for, were these the shares."""
        graph, choice = self.at.graph, self.choice
        forms = choice.forms if choice else {}
        yield from items_of(graph, (n for n in graph.graph.nodes if n not in forms))
        yield from choice.items(shares) if choice else ()

    def plan(self, policy: str, tokens: int | None) -> CommPlan:
        """As data."""
        return CommPlan(policy, tokens, self.stages, self.rows)
