"""One plan per range of token counts, each written once and proved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from compiler.cost import MachineError
from compiler.garbage import collection_paused
from compiler.optimize.graph_api import OptimizationResult, finished
from compiler.plan.decision import Decided
from compiler.plan.planner import Planner
from compiler.plan.token_ranges import TokenRange, TokenTable, token_table

LAST_TOKENS = 1 << 16
"""Plans are compared up to this many tokens; the last serves for more."""


def is_open(last: int, ranks: int) -> bool:
    """Whether a range that ends at ``last`` serves for more: it is the last of its multiples."""
    return last > LAST_TOKENS - ranks


@dataclass(frozen=True)
class Totals:
    """What a graph takes on a machine for some number of tokens, in picoseconds on one rank.

    Attributes:
        tokens: how many; None: as many as the graph was made with.
        as_written: as the author wrote it.
        merged: with reductions merged, and no more rows shared than costs nothing.
        planned: as planned.
        bound: no plan with the same reductions takes less; None if the machine does not state
            the rate of its links.
    """

    tokens: int | None
    as_written: int
    merged: int
    planned: int
    bound: int | None


@dataclass(frozen=True)
class Ranged:
    """Plans for all numbers of tokens.

    Attributes:
        symbol: the size that counts tokens; None if there is no one such.
        table: number of tokens -> position of its result.
        results: one per plan.
        totals: what each takes for the least number of tokens of every range in the table, in
            the order of ``table.ranges()``; none without a machine.
    """

    symbol: str | None
    table: TokenTable[int]
    results: tuple[OptimizationResult, ...]
    totals: tuple[Totals, ...] = ()

    def most(self, result: int, sizes: Mapping[str, tuple[int, int | None]]) -> dict[str, int]:
        """Size symbol -> the greatest value for which a result runs; those without one left out.

        Args:
            result: position of the result.
            sizes: size symbol -> least and greatest value.
        """
        greatest = {name: last for name, (_, last) in sizes.items() if last is not None}
        last = max(r.last for r in self.table.ranges() if r.plan == result)
        if self.symbol is not None and not is_open(last, self.table.ranks):
            greatest[self.symbol] = min(last, greatest.get(self.symbol, last))
        return greatest


def optimize_ranges(
    planner: Planner, sizes: Mapping[str, tuple[int, int | None]], *, verify: bool
) -> Ranged:
    """The plans of a graph.

    Args:
        planner: of the graph.
        sizes: size symbol -> least and greatest value.
        verify: prove every result.

    Raises:
        MachineError: the machine does not know a collective of the graph.
        VerificationError: a result could not be shown equivalent.
    """
    with collection_paused():
        symbol, table = decided_ranges(planner, sizes)
        plans = list(dict.fromkeys(r.plan for r in table.ranges()))
        first = {r.plan: r.first for r in reversed(table.ranges())}
        results = tuple(
            finished(planner, plan, tokens=first[plan] if symbol else None, verify=verify)
            for plan in plans
        )
        totals = (
            tuple(totals_of(planner, r.plan, r.first if symbol else None) for r in table.ranges())
            if planner.search.machine is not None
            else ()
        )
    return Ranged(symbol, table.map(plans.index), results, totals)


def decided_ranges(
    planner: Planner, sizes: Mapping[str, tuple[int, int | None]]
) -> tuple[str | None, TokenTable[Decided]]:
    """The size that counts tokens, and the plan for every value of it."""
    symbols = planner.canonical.work.token_symbols
    symbol = symbols[0] if len(symbols) == 1 else None
    low, high = sizes.get(symbol, (1, None)) if symbol else (1, 1)
    first, last = max(1, low), min(LAST_TOKENS, LAST_TOKENS if high is None else high)
    if symbol is None or not planner.compares_times or first > last:
        return symbol, TokenTable(1, (TokenRange(first, last, planner.decide(None)),))
    mesh = planner.source.mesh
    ranks = math.lcm(*(mesh.group(g).axis_size for g in planner.canonical.sharing_groups), 1)
    table = token_table(
        planner.decide,
        planner.time_ps,
        first,
        last,
        ranks,
        limit=planner.baseline_ps,
        step=planner.canonical.work.steps.get(symbol, 1),
    )
    return symbol, table


def totals_of(planner: Planner, decided: Decided, tokens: int | None) -> Totals:
    """What a plan takes, beside what it is compared with."""
    try:
        bound = sum(s.total_ps for s in planner.spent(decided, tokens, bounds=True).values())
    except MachineError:
        bound = None
    return Totals(
        tokens,
        planner.time_ps(planner.as_written, tokens),
        planner.time_ps(planner.merged, tokens),
        planner.time_ps(decided, tokens),
        bound,
    )
