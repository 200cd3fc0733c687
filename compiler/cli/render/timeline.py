"""Predicted timelines in the trace event format of Chrome, which Perfetto opens.

A process per token count and side, as written and planned. It has a track for kernels and one for
collectives, which take turns, as predictions take them to, and one that names the layers. Together
the slices of the first two are the predicted total. Processes and tracks count from 1: to Perfetto,
0 is the idle task.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compiler.cli.inputs.files import write_text
from compiler.cli.render.forecast import Plans, tokens_text
from compiler.cost.units import PS_PER_US
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.plan.decision import Decision
from compiler.plan.prices import CostTerm
from compiler.plan.spending import PredictedTime

Event = dict[str, Any]
LAYERS, COMPUTE, COMMUNICATION = TRACKS = ("layers", "compute", "communication")


def check_trace(path: Path) -> None:
    """Raise CommPlanError if a trace cannot be written to ``path``."""
    if path.suffix != ".json":
        raise CommPlanError(
            "a trace is written as .json", where=str(path), found=path.suffix or "no suffix"
        )


def write_trace(plans: Plans, counts: Sequence[int | None], path: Path) -> None:
    """Write the timelines of the graph as written and as planned, for some token counts."""
    sides = [
        (f"{tokens_text((count,))}, {side}", decision, count)
        for count in counts
        for side, decision in (
            ("as written", plans.planner.as_written),
            ("planned", plans.planner.plan_for(count)),
        )
    ]
    events = [
        event
        for process, (name, decision, count) in enumerate(sides, 1)
        for event in _timeline(plans, process, name, decision, count)
    ]
    trace = {
        "displayTimeUnit": "ns",
        "otherData": {"model": plans.source.name, "machine": plans.title.strip()},
        "traceEvents": events,
    }
    write_text(path, json.dumps(trace) + "\n")


def _timeline(
    plans: Plans, process: int, name: str, decision: Decision, tokens: int | None
) -> Iterator[Event]:
    """Yield names of the process and its tracks, then slices one after the other."""
    yield _named("process_name", process, 0, name)
    for track, title in enumerate(TRACKS, 1):
        yield _named("thread_name", process, track, title)
        yield {"ph": "M", "name": "thread_sort_index", "pid": process, "tid": track,
               "args": {"sort_index": track}}  # fmt: skip
    order = {node: place for place, node in enumerate(decision.at.graph.graph.nodes)}
    terms = plans.planner.predicted_terms(decision, tokens)
    now, layer, entered = 0, "", 0
    for term, time in sorted(terms, key=lambda pair: order[pair[0].node]):
        path = access.layer_path(term.node)
        if path != layer:
            yield from _slice(process, LAYERS, layer, entered, now)
            layer, entered = path, now
        for stream, time_ps in _tracks(time):
            about = _about(term, tokens)
            yield from _slice(process, stream, _title(term), now, now + time_ps, about)
            now += time_ps
    yield from _slice(process, LAYERS, layer, entered, now)


def _tracks(time: PredictedTime) -> Iterator[tuple[str, int]]:
    yield COMPUTE, time.computation_ps
    yield COMMUNICATION, time.communication_ps


def _title(term: CostTerm) -> str:
    """Return what runs: a collective, a kernel, or padding."""
    if term.fused is not None:
        return str(term.fused)
    if term.kind is not None:
        return str(term.kind)
    return "pad rows" if term.pads else str(term.node.target)


def _about(term: CostTerm, tokens: int | None) -> dict[str, Any]:
    """Return what is shown of a slice that is clicked."""
    node = term.node
    path, line = access.layer_path(node), access.source_line(node)
    about: dict[str, Any] = {"value": f"%{node.name}", "module": path, "line": line}
    if access.is_tensor(node):
        about["bytes"] = access.payload_bytes(node, tokens)
    if term.shares > 1:
        about["rows"] = f"1/{term.shares} of them"
    return {key: text for key, text in about.items() if text != ""}


def _named(what: str, process: int, track: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": track, "args": {"name": name}}


def _slice(
    process: int, track: str, name: str, start_ps: int, end_ps: int, about: Event | None = None
) -> Iterator[Event]:
    """Yield a slice, unless it takes no time or has no name."""
    if name and end_ps > start_ps:
        event: Event = {"ph": "X", "name": name, "cat": track, "pid": process}
        event["tid"] = 1 + TRACKS.index(track)
        times = {"ts": start_ps / PS_PER_US, "dur": (end_ps - start_ps) / PS_PER_US}
        yield event | times | ({"args": about} if about else {})
