"""What plans take on a machine: by range of token counts, and by section of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from torch import fx

from compiler.analysis.layers import layer_metadata, layer_of
from compiler.cli.inputs.load_model import Source
from compiler.cli.render.layers import EMBEDDING, HEAD, WHOLE, kinds_of_layers, section_names
from compiler.cli.render.progress import Stages
from compiler.cost import MachineError
from compiler.cost.units import PS_PER_MS, PS_PER_US
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.optimize.ranged import Totals, decided_ranges, is_open, totals_of
from compiler.pipeline import Pipeline
from compiler.plan.decision import Decision
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.spending import PredictedTime
from compiler.plan.token_ranges import TokenRange, TokenTable

LOWER_BOUND = "lower bound"


@dataclass(frozen=True, eq=False)
class Plans:
    """The plans of a model, for every number of tokens.

    Attributes:
        source: the model's graph.
        planner: of that graph.
        symbol: the size that counts tokens, None if there is no one such.
        table: tokens -> plan.
    """

    source: Source
    planner: Planner
    symbol: str | None
    table: TokenTable[Decision]

    @staticmethod
    def of(source: Source, search: PlannerOptions, stages: Stages) -> Plans:
        """Canonicalizes the graph, and plans.

        Raises:
            MachineError: the machine does not know a collective of the graph.
        """
        detail = "for all token counts" if search.machine else ""
        with stages.stage("plan", detail):
            planner = Planner(source.graph, search, layer_metadata(source.graph), Pipeline())
            return Plans(source, planner, *decided_ranges(planner, {}))

    @property
    def title(self) -> str:
        """The machine, as part of a heading."""
        search = self.planner.options
        return f"  machine {search.machine.title}, {search.launch}" if search.machine else ""

    @cached_property
    def is_symbolic(self) -> bool:
        """Whether a tensor of the graph has a symbolic size."""
        nodes = filter(access.is_tensor, self.source.graph.graph.nodes)
        return any(not all(isinstance(s, int) for s in access.shape(n)) for n in nodes)

    def decided(self, tokens: int | None) -> Decision:
        """The plan for some number of tokens."""
        if self.symbol is None or tokens is None or not self.planner.compares_times:
            return self.planner.decide(tokens)
        return self.table.plan(tokens)

    def columns(self, tokens: int | None) -> dict[str, tuple[Decision, bool]]:
        """What is compared: heading -> plan, and whether collectives go at the rate of links."""
        planner = self.planner
        planned = self.decided(tokens)
        return {
            "as written": (planner.as_written, False),
            "merged": (planner.merged, False),
            "boundary": (self._boundary, False),
            "planned": (planned, False),
            LOWER_BOUND: (planned, True),
        }

    @cached_property
    def _boundary(self) -> Decision:
        return self.planner.under("boundary").decide(None)

    def totals(self, tokens: int | None) -> Totals:
        """What the plan for some number of tokens takes, beside what it is compared with."""
        return totals_of(self.planner, self.decided(tokens), tokens)


def tokens_text(tokens: Sequence[int | None]) -> str:
    """``1, 64 tokens``."""
    known = [str(count) for count in tokens if count is not None]
    if not known:
        return "the sizes of the graph"
    return f"{', '.join(known)} token{'s' * (known != ['1'])}"


def range_text(found: TokenRange[Any], ranks: int, *, even: bool) -> str:
    """``320-2736``, with which of these are meant."""
    last = "" if is_open(found.last, ranks) else str(found.last)
    if ranks == 1:
        return f"{found.first}-{last}"
    return f"{found.first}-{last} {'' if even else 'not '}divisible by {ranks}"


def ranges_table(plans: Plans) -> Table:
    """A row per range of token counts."""
    table = Table(box=SIMPLE, title="plan by tokens", title_justify="left")
    table.add_column("tokens")
    table.add_column("collectives of the plan")
    for heading in ("as written", "merged", "planned", LOWER_BOUND, "saved"):
        unit = "" if heading == "saved" else ", ms"
        table.add_column(f"{heading}{unit}", justify="right", no_wrap=True)
    for row in ranges_json(plans):
        at = row["predicted"]
        cells = [ms_text(at[name]) for name in ("as_written", "merged", "planned", "bound")]
        table.add_row(
            row["tokens"], counts_text(row["collectives"]), *cells,
            f"{1 - at['planned'] / max(1, at['as_written']):.1%}",
        )  # fmt: skip
    table.caption = "times are those of the least number of tokens in each range"
    table.caption_justify = "left"
    return table


def ranges_json(plans: Plans) -> list[dict[str, Any]]:
    """Ranges as JSON values, times in picoseconds."""
    found = []
    for i, one in enumerate(plans.table.ranges()):
        even = i < len(plans.table.even)
        totals = totals_of(plans.planner, one.plan, one.first if plans.symbol else None)
        found.append(
            {
                "tokens": range_text(one, plans.table.ranks, even=even)
                if plans.symbol
                else "all",
                "first": one.first,
                "last": one.last,
                "divisible": even,
                "collectives": dict(collective_counts(plans, one.plan, None)),
                "predicted": {
                    "as_written": totals.as_written, "merged": totals.merged,
                    "planned": totals.planned, "bound": totals.bound,
                },
            }
        )  # fmt: skip
    return found


def ms_text(time_ps: int | None) -> str:
    """Milliseconds with three digits or more."""
    if time_ps is None:
        return "unknown"
    return f"{time_ps / PS_PER_MS:.{1 if time_ps > 100 * PS_PER_MS else 3}f}"


def counts_text(counts: Mapping[str, int]) -> str:
    """``90 all_reduce, 1 all_gather``."""
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"


def collective_counts(plans: Plans, decided: Decision, section: str | None) -> Counter[str]:
    """Collectives of a plan, in one section of the model or in all."""
    at = section_of(decided.at.graph)
    items = (part for term in decided.cost_terms(decided.shares) for part in term.parts or (term,))
    return Counter(
        str(item.kind)
        for item in items
        if item.kind is not None and section in (None, at[item.node])
    )


def section_of(graph: SpmdGraph) -> dict[fx.Node, str]:
    """The section of the model that each value belongs to."""
    nodes = list(graph.graph.nodes)
    names = section_names(map(layer_of, nodes), kinds_of_layers(graph))
    return dict(zip(nodes, names, strict=True))


def forecast(plans: Plans, tokens: int | None) -> dict[str, dict[str, PredictedTime | None]]:
    """Section -> heading -> what its layers take together; None where it is not known."""
    found: dict[str, dict[str, PredictedTime | None]] = {}
    for heading, (decided, bounds) in plans.columns(tokens).items():
        at = section_of(decided.at.graph)
        try:
            spent = plans.planner.predicted_times(decided, tokens, bounds=bounds)
        except MachineError:
            for row in found.values():
                row[heading] = None
            continue
        for node, time in spent.items():
            row = found.setdefault(at[node], {})
            row[heading] = (row.get(heading) or PredictedTime()) + time
    return {name: found[name] for name in _in_order(plans.source.graph) if name in found}


def _in_order(graph: SpmdGraph) -> tuple[str, ...]:
    return (WHOLE, EMBEDDING, *dict.fromkeys(kinds_of_layers(graph).values()), HEAD)


def forecast_table(plans: Plans, tokens: int | None) -> Table:
    """Microseconds per layer of each kind, and in all; collectives + kernels."""
    title = f"predicted for {tokens_text((tokens,))}, us: collectives + kernels"
    table = Table(box=SIMPLE, title=title, title_justify="left")
    table.add_column("")
    table.add_column("decided")
    for heading in plans.columns(tokens):
        table.add_column(heading, justify="right", no_wrap=True)
    decided, total = plans.decided(tokens), dict[str, PredictedTime | None]()
    layers = Counter(kinds_of_layers(plans.source.graph).values())
    for section, row in forecast(plans, tokens).items():
        many = layers.get(section, 1)
        counts = collective_counts(plans, decided, section)
        each = {kind: n / many for kind, n in counts.items()}
        text = ", ".join(f"{n:.3g} {kind}" for kind, n in each.items()) or "no collectives"
        name = f"{section}, each of {many}" if section in layers else section
        table.add_row(name, text, *(_us_text(row.get(h), many) for h in plans.columns(tokens)))
        for heading, time in row.items():
            known = total.get(heading, PredictedTime())
            total[heading] = None if time is None or known is None else known + time
    table.add_section()
    table.caption, table.caption_justify = fused_text(plans, tokens), "left"
    cells = (_us_text(total.get(heading), 1) for heading in plans.columns(tokens))
    table.add_row("total", counts_text(collective_counts(plans, decided, None)), *cells)
    return table


def fused_text(plans: Plans, tokens: int | None) -> str:
    """Which kernels the plan counts on, how often, and what their parts would take."""
    decided, found = plans.decided(tokens), Counter[tuple[str, int, int]]()
    for item, kernel_ps, apart_ps in plans.planner.kernels(decided, tokens):
        found[str(item.fused), kernel_ps, apart_ps] += 1
    return "\n".join(
        f"fused: {n} {kind}, {kernel / PS_PER_US:.1f} us each; apart {apart / PS_PER_US:.1f} us"
        for (kind, kernel, apart), n in found.items()
    )


def _us_text(time: PredictedTime | None, many: int) -> str:
    if time is None:
        return "unknown"
    parts = (time.communication_ps, time.computation_ps)
    return " + ".join(f"{part / many / PS_PER_US:.1f}" for part in parts)


def forecasts_json(plans: Plans, counts: Sequence[int | None]) -> list[dict[str, Any]]:
    """Per token count and section, times in picoseconds."""
    return [
        {
            "tokens": count,
            "sections": {
                section: {
                    heading: None
                    if time is None
                    else {
                        "communication_ps": time.communication_ps,
                        "computation_ps": time.computation_ps,
                    }
                    for heading, time in row.items()
                }
                for section, row in forecast(plans, count).items()
            },
        }
        for count in counts
    ]
