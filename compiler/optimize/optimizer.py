"""The one way from a graph to a proved one: canonicalized, planned, rewritten, checked."""

from __future__ import annotations

from compiler.analysis.statistics import statistics
from compiler.check import Report, check
from compiler.errors import VerificationError
from compiler.garbage import collection_paused
from compiler.ir.remark import Remark, RemarkKind
from compiler.optimize.remarks import remarks
from compiler.optimize.result import OptimizationResult, RangeResult
from compiler.pipeline import first_wrong
from compiler.plan.decision import Decision
from compiler.plan.planner import Planner
from compiler.plan.token_ranges import TokenRange, TokenTable


@collection_paused()
def optimize(
    planner: Planner,
    decision: Decision | None = None,
    *,
    tokens: int | None = None,
    verify: bool = True,
) -> OptimizationResult:
    """Rewrite a graph by its plans, and prove each.

    Args:
        planner: the graph, and how plans are chosen.
        decision: one plan, for all token counts; None: the planner's, per range of counts.
        tokens: value of symbolic sizes that the one plan is for; None for their hints.
        verify: check the results; unverified graphs have verdict UNPROVED.

    Raises:
        MachineError: the machine does not know a collective of the graph.
        VerificationError: not even the source could be shown equivalent to itself.
    """
    by_range, symbol, options = decision is None, planner.symbol, planner.options
    if by_range:
        tokens = planner.canonical.work.hints.get(symbol, 1) if symbol else None
    ranges_differ = by_range and symbol is not None and planner.compares_times
    table = TokenTable(1, (TokenRange(1, 1, decision),)) if decision else planner.table
    proofs: dict[Decision, tuple[Planner, Decision, Report | None, tuple[Remark, ...]]] = {}

    def result(token_range: TokenRange[Decision]) -> RangeResult:
        count = token_range.first if ranges_differ else tokens
        if token_range.plan not in proofs:
            proofs[token_range.plan] = _proved(planner, token_range.plan, count, verify=verify)
        proved, plan, report, withdrawn = proofs[token_range.plan]
        rewritten = proved.write(plan)
        return RangeResult(
            plan=plan.plan(options.policy, count),
            report=report,
            remarks=(*remarks(proved, plan, count, verify=verify), *withdrawn),
            after=statistics(rewritten.graph.graph, count),
            spmd=rewritten.graph,
            records=tuple(rewritten.pipeline.records),
            totals=proved.totals(plan, count) if by_range and options.machine else None,
        )

    results = table.map(result)
    return OptimizationResult(
        results,
        symbol,
        tokens,
        statistics(planner.source.graph, tokens),
        results.plan(tokens or 1).remarks,
        planner.clock.seconds,
        tuple(planner.layers),
    )


def _proved(
    planner: Planner, decision: Decision, tokens: int | None, *, verify: bool
) -> tuple[Planner, Decision, Report | None, tuple[Remark, ...]]:
    """The plan that is shown to be right, with its planner, the proof and what was withdrawn.

    A step that is not shown to be right is withdrawn, and what comes after it decided anew.
    """
    source, withdrawn = planner.source, tuple[Remark, ...]()
    while True:
        rewritten = planner.write(decision)
        planner.clock.lap("rewrite")
        report = check(source, rewritten.graph) if verify else None
        planner.clock.lap("check")
        if report is None or report.verdict.runs:
            return planner, decision, report, withdrawn
        records = rewritten.pipeline.records
        if not records:
            raise VerificationError(
                f"the rewritten graph is {report.verdict}: nothing was optimized",
                found=report.explanation,
                remedy="report this; policy='off' leaves the graph as it is",
            )
        wrong = first_wrong(records, lambda graph: check(source, graph).verdict.runs)
        why = f"{records[wrong].name} withdrawn: the graph would be "
        why += f"{report.verdict}: {report.explanation}"
        withdrawn = (Remark(RemarkKind.MISSED, "", why), *withdrawn)
        planner = planner.without(decision, wrong)
        decision = planner.decide(tokens)
