"""Predicted times of plans: by tokens, by section of the model, by machine, as a picture."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import fx

from compiler.analysis.layers import layer_of
from compiler.cli.inputs.files import write_bytes
from compiler.cli.inputs.load_model import Source
from compiler.cli.render import collectives
from compiler.cli.render.collectives import kinds_of_layers
from compiler.cli.render.progress import Stages, new_table, number_column
from compiler.cost import Machine, MachineError
from compiler.cost.units import PS_PER_MS, PS_PER_US
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.plan.decision import Decision
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.spending import PredictedTime, Totals
from compiler.plan.token_ranges import TokenRange, TokenTable

TOTALS = {
    "as_written": "as written", "merged": "merged", "planned": "planned", "bound": "lower bound",
}  # fmt: skip
"""Field of ``Totals`` -> heading."""

POINTS_PER_OCTAVE, OCTAVES = 8, 15
"""Numbers of tokens that are drawn in a picture."""


@dataclass(frozen=True, eq=False)
class Plans:
    """The plans of a model, for every number of tokens.

    Attributes:
        source: the model's graph.
        planner: of that graph.
    """

    source: Source
    planner: Planner

    @staticmethod
    def of(source: Source, search: PlannerOptions, stages: Stages) -> Plans:
        """Canonicalize the graph, and plan.

        Raises:
            MachineError: the machine does not know a collective of the graph.
        """
        with stages.stage("plan", "for all token counts" if search.machine else ""):
            planner = Planner(source.graph, search)
            planner.table  # noqa: B018  solved here, where the stage says so
            return Plans(source, planner)

    @property
    def machine(self) -> Machine | None:
        """The machine that plans are compared on."""
        return self.planner.options.machine

    @property
    def title(self) -> str:
        """The machine, as part of a heading."""
        machine = self.machine
        return f"  machine {machine.title}, {self.planner.options.launch}" if machine else ""

    @cached_property
    def is_symbolic(self) -> bool:
        """Whether a tensor of the graph has a symbolic size."""
        nodes = filter(access.is_tensor, self.source.graph.graph.nodes)
        return any(not all(isinstance(s, int) for s in access.shape(n)) for n in nodes)

    def columns(self, tokens: int | None) -> dict[str, tuple[Decision, bool]]:
        """Return heading -> plan, and whether collectives go at the rate of links."""
        plan = self.planner.plan_for(tokens)
        return {
            "as written": (self.planner.as_written, False),
            "merged": (self.planner.merged, False),
            "boundary": (self._boundary, False),
            "planned": (plan, False),
            "lower bound": (plan, True),
        }

    @cached_property
    def _boundary(self) -> Decision:
        return self.planner.under("boundary").decide(None)

    def totals(self, tokens: int | None) -> Totals:
        """Return the time of the plan for some number of tokens, beside that of others."""
        return self.planner.totals(self.planner.plan_for(tokens), tokens)


def tokens_text(tokens: Sequence[int | None]) -> str:
    """Return ``1, 64 tokens``."""
    counts = [str(count) for count in tokens if count is not None]
    plural = "s" * (counts != ["1"])
    return f"{', '.join(counts)} token{plural}" if counts else "the sizes of the graph"


def range_text(table: TokenTable[Any], tokens: TokenRange[Any], *, even: bool) -> str:
    """Return ``320-2736``, with which of these are meant."""
    text, ranks = f"{tokens.first}-{'' if table.is_open(tokens) else tokens.last}", table.ranks
    return text if ranks == 1 else f"{text} {'' if even else 'not '}divisible by {ranks}"


def ranges_json(plans: Plans) -> list[dict[str, Any]]:
    """Return ranges of token counts as JSON values, times in picoseconds."""
    planner, rows = plans.planner, list[dict[str, Any]]()
    table = planner.table
    for i, tokens in enumerate(table.ranges()):
        even = i < len(table.even)
        totals = planner.totals(tokens.plan, tokens.first if planner.symbol else None)
        rows.append({
            "tokens": range_text(table, tokens, even=even) if planner.symbol else "all",
            "first": tokens.first,
            "last": tokens.last,
            "divisible": even,
            "collectives": collective_counts(tokens.plan),
            "predicted": {field: getattr(totals, field) for field in TOTALS},
        })  # fmt: skip
    return rows


def ranges_table(plans: Plans) -> Table:
    """Return a row per range of token counts."""
    headings = [*TOTALS.values(), "saved"]
    table = new_table(
        "tokens", "collectives", *map(number_column, headings),
        title="plan by tokens, ms",
        caption="times are those of the least number of tokens in each range",
    )  # fmt: skip
    for row in ranges_json(plans):
        times = row["predicted"]
        table.add_row(
            row["tokens"], _counts_text(row["collectives"]), *map(ms_text, times.values()),
            saved_text(times),
        )  # fmt: skip
    return table


def ms_text(time_ps: int | None) -> str:
    """Return milliseconds with three digits or more."""
    if time_ps is None:
        return "unknown"
    return f"{time_ps / PS_PER_MS:.{1 if time_ps > 100 * PS_PER_MS else 3}f}"


def saved_text(times: Mapping[str, int]) -> str:
    """Return the part of the time as written that the plan saves."""
    return f"{1 - times['planned'] / max(1, times['as_written']):.1%}"


def _counts_text(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "no collectives"


def collective_counts(plan: Decision, section: str | None = None) -> Counter[str]:
    """Return the collectives of a plan by kind, in one section of the model or in all."""
    sections = section_of(plan.at.graph)
    items = (part for term in plan.cost_terms() for part in term.parts or (term,))
    return Counter(
        str(item.kind)
        for item in items
        if item.kind is not None and section in (None, sections[item.node])
    )


def section_of(graph: SpmdGraph) -> dict[fx.Node, str]:
    """Return the section of the model that each value belongs to."""
    nodes = list(graph.graph.nodes)
    names = collectives.section_names(map(layer_of, nodes), kinds_of_layers(graph))
    return dict(zip(nodes, names, strict=True))


def forecast(plans: Plans, tokens: int | None) -> dict[str, dict[str, PredictedTime | None]]:
    """Return section -> heading -> time of its layers together; None where it is not known."""
    kinds = kinds_of_layers(plans.source.graph).values()
    rows: dict[str, dict[str, PredictedTime | None]] = {
        section: {}
        for section in (collectives.WHOLE, collectives.EMBEDDING, *kinds, collectives.HEAD)
    }
    for heading, (plan, bounds) in plans.columns(tokens).items():
        sections = section_of(plan.at.graph)
        try:
            times = plans.planner.predicted_times(plan, tokens, bounds=bounds)
        except MachineError:
            for row in filter(None, rows.values()):
                row[heading] = None
            continue
        for node, time in times.items():
            row = rows.setdefault(sections[node], {})
            row[heading] = (row.get(heading) or PredictedTime()) + time
    return {section: row for section, row in rows.items() if row}


def forecast_table(plans: Plans, tokens: int | None) -> Table:
    """Return microseconds per layer of each kind, and in all; the plan's collectives below each."""
    plan = plans.planner.plan_for(tokens)
    headings = list(plans.columns(tokens))
    table = new_table(
        "", *map(number_column, headings),
        title=f"predicted for {tokens_text((tokens,))}, us: collectives, and below them kernels",
        caption=_fused_text(plans, tokens),
    )  # fmt: skip
    layers = Counter(kinds_of_layers(plans.source.graph).values())
    rows = forecast(plans, tokens)
    for section, times in rows.items():
        many = layers.get(section, 1)
        each = {kind: f"{n / many:.3g}" for kind, n in collective_counts(plan, section).items()}
        name = f"{section}, each of {many}" if section in layers else section
        cells = (_us_text([times.get(heading)], many) for heading in headings)
        table.add_row(f"{name}\n  {_counts_text(each)}", *cells)
    table.add_section()
    cells = (_us_text([r[h] for r in rows.values() if h in r], 1) for h in headings)
    table.add_row(f"total\n  {_counts_text(collective_counts(plan))}", *cells)
    return table


def _fused_text(plans: Plans, tokens: int | None) -> str:
    """Return which kernels the plan counts on, how often, and what their parts would take."""
    counts = Counter(
        (str(item.fused), kernel_ps, apart_ps)
        for item, kernel_ps, apart_ps in plans.planner.kernels(
            plans.planner.plan_for(tokens), tokens
        )
    )
    return "\n".join(
        f"fused: {n} {kind}, {kernel / PS_PER_US:.1f} us each; apart {apart / PS_PER_US:.1f} us"
        for (kind, kernel, apart), n in counts.items()
    )


def _us_text(times: Sequence[PredictedTime | None], layers: int) -> str:
    total = sum((time for time in times if time), PredictedTime())
    if not times or None in times:
        return "unknown"
    parts = (total.communication_ps, total.computation_ps)
    return "\n".join(f"{part / layers / PS_PER_US:.1f}" for part in parts)


def forecasts_json(plans: Plans, counts: Sequence[int | None]) -> list[dict[str, Any]]:
    """Return times in picoseconds, per token count, section and heading."""
    return [
        {
            "tokens": count,
            "sections": {
                section: {heading: time and asdict(time) for heading, time in row.items()}
                for section, row in forecast(plans, count).items()
            },
        }
        for count in counts
    ]


def comparison_json(every: Sequence[Plans], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Return times in picoseconds, per machine and world size, and per token count."""
    return [
        {
            "machine": plans.machine.name,
            "ranks": plans.source.graph.mesh.size,
            "predicted": [
                asdict(plans.totals(count if plans.planner.symbol else None)) | {"tokens": count}
                for count in counts
            ],
        }
        for plans in every
        if plans.machine is not None
    ]


def comparison_table(every: Sequence[Plans], counts: Sequence[int]) -> Table:
    """Return a row per machine, world size and number of tokens."""
    headings = ["ranks", "tokens", *TOTALS.values(), "saved"]
    table = new_table("machine", *map(number_column, headings), title=f"{every[0].source.name}, ms")
    for row in comparison_json(every, counts):
        cells = [row["machine"], str(row["ranks"])]
        for times in row["predicted"]:
            milliseconds = (ms_text(times[field]) for field in TOTALS)
            table.add_row(*cells, str(times["tokens"]), *milliseconds, saved_text(times))
            cells = ["", ""]
    return table


def curve(plans: Plans, points_per_octave: int) -> dict[str, list[Any]]:
    """Return token counts, and picoseconds by field of ``Totals`` for each."""
    exponents = range(OCTAVES * points_per_octave + 1)
    counts = sorted({round(2 ** (e / points_per_octave)) for e in exponents})
    totals = [plans.totals(count) for count in counts]
    return {"tokens": counts, **{field: [getattr(t, field) for t in totals] for field in TOTALS}}


def check_plot(path: Path) -> None:
    """Raise CommPlanError if a picture cannot be written to ``path``."""
    if path.suffix not in (".png", ".svg"):
        raise CommPlanError(
            "a plot is written as .png or .svg", where=str(path), found=path.suffix or "no suffix"
        )
    if not path.parent.is_dir():
        raise CommPlanError("the folder of the plot does not exist", where=str(path.parent))
    if importlib.util.find_spec("matplotlib") is None:
        raise CommPlanError(
            "plots are drawn by matplotlib, which is not installed",
            remedy="pip install commplan[plot]",
        )


def draw(plans: Plans, path: Path) -> None:
    """Write the picture: milliseconds per forward, and beside them the part that is saved.

    Raises:
        CommPlanError: the number of tokens is not symbolic.
    """
    if plans.planner.symbol is None:
        raise CommPlanError(
            "no single size counts tokens, so there is nothing to plot over",
            where=plans.source.name,
            remedy="capture the model with a symbolic number of tokens",
        )
    from matplotlib.figure import Figure

    every = curve(plans, POINTS_PER_OCTAVE)
    counts = every["tokens"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    times, savings = figure.subplots(1, 2)
    for number, (field, label) in enumerate(TOTALS.items()):
        if None in every[field]:
            continue
        style = {"color": f"C{number}", "label": label, "base": 2}
        times.loglog(counts, [ps / PS_PER_MS for ps in every[field]], **style)
        if field != "as_written":
            pairs = zip(every[field], every["as_written"], strict=True)
            savings.semilogx(counts, [100 * (1 - ps / written) for ps, written in pairs], **style)
    for tokens in plans.planner.table.even[1:]:
        for axes in (times, savings):
            axes.axvline(tokens.first, color="0.8", linewidth=0.8, zorder=0)
    times.set(title="predicted time of a forward", xlabel="tokens", ylabel="ms")
    times.set_yscale("log", base=10)
    savings.set(title="saved of as written", xlabel="tokens", ylabel="%")
    times.legend()
    savings.legend()
    figure.suptitle(f"{plans.source.name}, {plans.source.graph.mesh}{plans.title}", fontsize=10)
    image = BytesIO()
    figure.savefig(image, format=path.suffix[1:])
    write_bytes(path, image.getvalue())
