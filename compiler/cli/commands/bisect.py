"""``commplan bisect`` and ``commplan reduce``: the rewrite at fault, and a small graph for it."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import write_text
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages, say
from compiler.errors import CommPlanError
from compiler.ir.graph import SpmdGraph
from compiler.optimize.bisect import Culprit, culprit, gives_the_same, is_proved, rewrites
from compiler.optimize.shrink import shrink, text_of
from compiler.plan.planner_options import PlannerOptions

JUDGES = {"proof": is_proved, "simulation": gives_the_same}


def bisect(model: str, options: InputOptions, *, policy: str, widen: bool, by: str) -> int:
    """Name the rewrite after which the graph is not proved, or computes something else."""
    stages = Stages()
    source = load(model, options, stages).graph
    with stages.stage("rewrite"):
        records = rewrites(source, PlannerOptions(policy, allow_dtype_widening=widen))
    with stages.stage("bisect"):
        wrong = culprit(source, records, JUDGES[by](source))
    if wrong is None:
        what = "proved" if by == "proof" else "the same on drawn inputs"
        print(f"every rewrite is {what}: {', '.join(record.name for record in records)}")
        return ExitCode.OK
    print(text_of_culprit(wrong))
    return ExitCode[wrong.report.verdict] or ExitCode.NOT_EQUIVALENT


def text_of_culprit(wrong: Culprit) -> str:
    """Return which pass is at fault, where it rewrote the graph, and what the checker says."""
    record, report = wrong.record, wrong.report
    lines = [f"pass {record.name} ({record.index + 1}): {report.verdict}: {report.explanation}"]
    lines += [f"  at {' '.join(x for x in (site.layer, site.value) if x)}: {site.reason}"
              for site in wrong.sites]  # fmt: skip
    return "\n".join(lines)


def reduce(
    model: str,
    options: InputOptions,
    *,
    policy: str,
    widen: bool,
    by: str,
    command: str,
    seconds: int,
    output: Path,
) -> int:
    """Write the smallest graph that fails as ``model`` does."""
    stages = Stages()
    source = load(model, options, stages).graph
    search = PlannerOptions(policy, allow_dtype_widening=widen)
    failure = _of_command(command) if command else _of_passes(search, by)
    with stages.stage("run"):
        first = failure(source)
    if first is None:
        raise CommPlanError(
            "nothing fails on this graph",
            where=model,
            found=f"{command} ends with 0" if command else "every rewrite is right",
            remedy="pass the options with which it fails, or --command",
        )
    what, said = first
    with stages.stage("reduce"):
        small = shrink(source, lambda graph: (failure(graph) or ("",))[0] == what, seconds)
    write_text(output, text_of(small))
    say(f"{output}: {len(small.graph.nodes)} nodes of {len(source.graph.nodes)}")
    print(what, *(failure(small) or (what, said))[1:], sep="\n")
    return ExitCode.OK


Failure = Callable[[SpmdGraph], tuple[str, str] | None]
"""Graph -> how it fails, equal for equal failures, and more of it; None if it does not."""


def _of_passes(search: PlannerOptions, by: str) -> Failure:
    """A pass raises, or is the first whose graph is wrong."""

    def failure(graph: SpmdGraph) -> tuple[str, str] | None:
        try:
            wrong = culprit(graph, rewrites(graph, search), JUDGES[by](graph))
        except Exception as error:
            place = " ".join(getattr(error, "__notes__", ()))
            return f"{type(error).__name__} {place.partition(' (')[0]}".rstrip(), str(error)
        if wrong is None:
            return None
        return f"{wrong.record.name}: {wrong.report.verdict}", text_of_culprit(wrong)

    return failure


def _of_command(command: str) -> Failure:
    """A command that gets the name of a graph file ends with the exit code that it ended with."""

    def failure(graph: SpmdGraph) -> tuple[str, str] | None:
        with tempfile.TemporaryDirectory(prefix="commplan-") as folder:
            path = Path(folder) / "graph.spmd"
            path.write_text(text_of(graph))
            words = [word.replace("{}", str(path)) for word in shlex.split(command)]
            words += [] if "{}" in command else [str(path)]
            try:
                ran = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True)
            except OSError as error:
                raise CommPlanError(
                    "the command cannot be run", where=words[0], found=str(error.strerror)
                ) from error
        printed = ran.stderr.decode(errors="replace").strip()
        return (f"exit code {ran.returncode}", printed) if ran.returncode else None

    return failure
