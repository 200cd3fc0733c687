"""Predicted times over numbers of tokens, as a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from compiler.cli.render.forecast import Plans
from compiler.errors import CommPlanError

SUFFIXES = (".png", ".svg")
POINTS_PER_OCTAVE, OCTAVES = 8, 15
LINES = {
    "as_written": "as written",
    "merged": "merged",
    "planned": "planned",
    "bound": "lower bound",
}


def check_plot(path: Path) -> None:
    """Raise CommPlanError if no picture can be written to ``path``."""
    if path.suffix not in SUFFIXES:
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
    """Writes the picture: milliseconds per forward, and beside them the part that is saved.

    Raises:
        CommPlanError: the number of tokens is not symbolic.
    """
    if plans.symbol is None:
        raise CommPlanError(
            "no single size counts tokens, so there is nothing to plot over",
            where=plans.source.name,
            remedy="capture the model with a symbolic number of tokens",
        )
    from matplotlib.figure import Figure

    exponents = range(OCTAVES * POINTS_PER_OCTAVE + 1)
    counts = sorted({round(2 ** (e / POINTS_PER_OCTAVE)) for e in exponents})
    totals = [plans.totals(count) for count in counts]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    times, savings = figure.subplots(1, 2)
    for number, (field, label) in enumerate(LINES.items()):
        held = [getattr(t, field) for t in totals]
        if None in held:
            continue
        colour = f"C{number}"
        times.loglog(counts, [ps / 1e9 for ps in held], colour, label=label, base=2)
        if field != "as_written":
            saved = [100 * (1 - ps / t.as_written) for ps, t in zip(held, totals, strict=True)]
            savings.semilogx(counts, saved, colour, label=label, base=2)
    for found in plans.table.even[1:]:
        for axes in (times, savings):
            axes.axvline(found.first, color="0.8", linewidth=0.8, zorder=0)
    times.set(title="predicted time of a forward", xlabel="tokens", ylabel="ms")
    times.set_yscale("log", base=10)
    savings.set(title="saved of as written", xlabel="tokens", ylabel="%")
    times.legend()
    savings.legend()
    figure.suptitle(f"{plans.source.name}, {plans.source.graph.mesh}{plans.title}", fontsize=10)
    figure.savefig(path)
