"""Plans for token counts: the rewritten graph of each, and its proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.check import Report, check
from compiler.cli.render import collectives, forecast
from compiler.cli.render.forecast import Plans
from compiler.cli.render.progress import Stages
from compiler.cost import Launch, load_machine, machines
from compiler.errors import CommPlanError
from compiler.ir.remark import Remark
from compiler.ir.text import value_count
from compiler.optimize import OptimizationResult, optimize
from compiler.optimize.remarks import UNVERIFIED
from compiler.plan.decision import Decision
from compiler.plan.planner_options import PlannerOptions


@dataclass(frozen=True)
class PlanResult:
    """One plan, with its result for every token count that it serves.

    Attributes:
        results: the optimizer's, per token count; the graphs are the same.
        proof: the checker's report.
        rows: collectives and payload per section of the model.
    """

    results: tuple[OptimizationResult, ...]
    proof: Report
    rows: tuple[collectives.Row, ...]

    @property
    def tokens(self) -> tuple[int | None, ...]:
        """The token counts; None alone where no size of the graph is symbolic."""
        return tuple(result.plan.tokens for result in self.results)

    @property
    def values(self) -> int:
        """Number of values of the optimized graph."""
        return value_count(self.results[0].spmd.graph)

    @property
    def remarks(self) -> list[Remark]:
        """All remarks but the one on verification, which happens here."""
        return [remark for remark in self.results[0].remarks if remark.reason != UNVERIFIED]


def planner_options(
    policy: str, machine: str | None, launch: str | None, widen: bool, by_time: Mapping[str, object]
) -> PlannerOptions:
    """Return the options, the machine loaded.

    Raises:
        CommPlanError: without a machine, one of ``by_time`` is set, option -> value.
    """
    if machine is None and (idle := [option for option, value in by_time.items() if value]):
        raise CommPlanError(
            f"{', '.join(idle)} needs a machine",
            remedy=f"pass --machine, one of {', '.join(machines())}",
        )
    on = load_machine(machine) if machine else None
    return PlannerOptions(policy, on, Launch(launch or "graph"), widen)


def results_of(plans: Plans, counts: Sequence[int], stages: Stages) -> list[PlanResult]:
    """Return the plans for ``counts``; counts with the same plan share one."""
    by_plan: dict[Decision, list[OptimizationResult]] = {}
    planner = plans.planner
    for count in counts if planner.symbol or plans.is_symbolic else (None,):
        with stages.stage("optimize", f"for {forecast.tokens_text((count,))}"):
            decided = planner.plan_for(count)
            result = optimize(planner, decided, tokens=count, verify=False)
        by_plan.setdefault(decided, []).append(result)
    graph, parts = plans.source.graph, []
    for results in by_plan.values():
        with stages.stage("check"):
            proof = check(graph, results[0].spmd)
        parts.append(PlanResult(tuple(results), proof, collectives.rows_of(graph, results)))
    return parts
