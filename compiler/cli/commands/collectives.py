"""``commplan collectives`` and ``commplan diff``: a model's collectives, and what changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import read_text
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, bad_option, distinct, is_count
from compiler.cli.render.document import Annotation, Document
from compiler.cli.render.progress import Stages, new_table, say
from compiler.optimize.optimizer import optimize
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.snapshot import Snapshot, changes, exceeded, rows

COLUMNS = ("layers", "each", "collective", "line")


def collectives(
    model: str,
    options: InputOptions,
    optimized: bool,
    policy: str,
    most: Sequence[str],
    format: str,
) -> int:
    """List the collectives of a model."""
    budget = dict(map(_budget, distinct("--max", most)))
    stages = Stages()
    graph = load(model, options, stages).graph
    if optimized:
        with stages.stage("optimize"):
            planner = Planner(graph, PlannerOptions(policy))
            graph = optimize(planner, planner.decide(None)).spmd
    snapshot = Snapshot.of(graph)
    table = new_table(*COLUMNS)
    for row in rows(snapshot):
        table.add_row(*map(str, row))
    over = [f"{model}: {text}" for text in exceeded(snapshot, budget)]
    if format == "json":  # a line for each collective, as it is kept in a repository
        print(snapshot.to_json(), end="")
        for text in over:
            say(text)
    else:
        counts = ", ".join(f"{n} {kind}" for kind, n in snapshot.counts().items())
        notes = [Annotation("error", "collectives", text) for text in over]
        notes.append(Annotation("notice", "collectives", f"{model}: {counts or 'none'}"))
        Document("collectives/1", {}, [table, *over], notes).print(format)
    return ExitCode.FINDINGS if over else ExitCode.OK


def diff(old: str, new: str, options: InputOptions, format: str) -> int:
    """Say which collectives one graph has more and less than another."""
    stages = Stages()

    def snapshot(name: str) -> Snapshot:
        if name.endswith(".json"):
            return Snapshot.from_json(read_text(Path(name)), name)
        return Snapshot.of(load(name, options, stages).graph)

    before, after = snapshot(old), snapshot(new)
    differences = changes(before, after)
    Document(
        "changes/1",
        {"changes": [change.text for change in differences]},
        [change.text for change in differences],
        [Annotation("error", "collectives", text, line) for text, line in differences],
    ).print(format)
    return ExitCode.FINDINGS if differences else ExitCode.OK


def _budget(text: str) -> tuple[str, int]:
    kind, _, number = text.partition("=")
    if not is_count(number, 0):
        raise bad_option("--max", text, "give KIND=N, such as all_reduce=90")
    return kind, int(number)
