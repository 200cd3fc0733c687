"""What the report says of a model, as one JSON value: plans, layers, reasons, passes."""

from __future__ import annotations

import json
import linecache
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from torch import fx

from compiler.analysis.layers import layers_text
from compiler.analysis.placements import placements
from compiler.analysis.replication import replicated_over, replication
from compiler.analysis.statistics import statistics
from compiler.cli.render import forecast
from compiler.cli.render.collectives import kinds_of_layers
from compiler.cli.render.forecast import Plans
from compiler.cli.render.page_passes import passes_json
from compiler.cli.render.page_values import (
    AFTER,
    Json,
    Section,
    Sections,
    Times,
    Value,
    inputs_of,
    moved,
    names_of,
    sections_of,
    times_of,
    title_of,
    waits,
)
from compiler.cli.render.plan_results import PlanResult
from compiler.cli.render.report import assumptions, remark_rows, roundings
from compiler.ir import access
from compiler.ir.collectives import WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import value_count
from compiler.plan.decision import Decision

SCHEMA = "commplan.report/1"
SHARED = ("type", "op", "at", "module")
"""What a value after a plan says only where it differs from the value so called before."""
POINTS_PER_OCTAVE = 2
"""Token counts of the cost plot."""
AROUND = 2
"""Lines of the model's code that are shown before and after the one a value comes from."""


def report_data(plans: Plans, parts: Sequence[PlanResult]) -> Json:
    """Return the report.

    Args:
        plans: of the model.
        parts: one per plan, with the token counts that it is shown for.
    """
    source, planner, machine = plans.source, plans.planner, plans.machine
    counts = sorted((c for part in parts for c in part.tokens), key=lambda count: count or 0)
    decisions = [planner.plan_for(part.tokens[0]) for part in parts]
    files = Files()
    before = Side(plans, planner.as_written, source.graph, counts, files)
    sides = [
        Side(plans, decision, part.results[0].spmd, part.tokens, files)
        for decision, part in zip(decisions, parts, strict=True)
    ]
    fates = [Fate(before, side, part) for side, part in zip(sides, parts, strict=True)]
    return {
        "schema": SCHEMA,
        "model": source.name,
        "mesh": dict(source.graph.mesh.axes),
        "policy": planner.options.policy,
        "machine": machine and machine.title,
        "launch": str(planner.options.launch) if machine else None,
        "assumed": list(assumptions(source.assumed)),
        "notes": list(source.notes),
        "points": [_point(plans, count, decisions) for count in counts],
        "ranges": list(_ranges(plans, decisions)) if machine else [],
        "curve": forecast.curve(plans, POINTS_PER_OCTAVE) if machine and planner.symbol else None,
        "before": before.summary(),
        "plans": [
            {
                "points": [counts.index(count) for count in part.tokens],
                "runs": part.proof.verdict.runs,
                "report": asdict(part.proof),
                "roundings": [
                    {"reason": text, "count": len(paths), "where": layers_text(paths)}
                    for text, paths in roundings(part.proof).items()
                ],
                "remarks": list(remark_rows(part.remarks, "all")),
                **side.summary(),
                "passes": list(passes_json(source.graph, part.results[0].records)),
            }
            for side, part in zip(sides, parts, strict=True)
        ],
        "groups": list(_groups(source.graph, before, fates)),
        "inputs": inputs_of(source.graph),
        "files": files.to_json(),
    }


def _point(plans: Plans, tokens: int | None, decisions: Sequence[Decision]) -> Json:
    """Return a token count, the plan for it, and what that takes beside others."""
    times = asdict(plans.totals(tokens)) if plans.machine else {}
    plan = decisions.index(plans.planner.plan_for(tokens))
    return {"label": forecast.tokens_text((tokens,)), **times, "tokens": tokens, "plan": plan}


def _ranges(plans: Plans, decisions: Sequence[Decision]) -> Iterator[Json]:
    ranges = plans.planner.table.ranges()
    for row, tokens in zip(forecast.ranges_json(plans), ranges, strict=True):
        yield row | {"plan": decisions.index(tokens.plan)}


@dataclass
class Files:
    """The model's code around the lines that values come from.

    Attributes:
        lines: path -> line numbers.
    """

    lines: dict[str, set[int]] = field(default_factory=dict)

    def place(self, value: Value) -> list[int] | None:
        """Return the number of the file, and the line, that a value comes from."""
        location = next(filter(None, map(access.source_location, value.line.nodes)), None)
        if location is None:
            return None
        path, number = location
        self.lines.setdefault(path, set()).add(number)
        return [list(self.lines).index(path), number]

    def to_json(self) -> list[Json]:
        """Return names of files, and the lines that can be read; no folders of this machine."""
        return [
            {"name": Path(path).name, "lines": dict(_code(path, numbers))}
            for path, numbers in self.lines.items()
        ]


def _code(path: str, numbers: set[int]) -> Iterator[tuple[int, str]]:
    around = {n for number in numbers for n in range(number - AROUND, number + AROUND + 1)}
    for number in sorted(around):
        if text := linecache.getline(path, number):
            yield number, text.rstrip()


@dataclass(frozen=True)
class Side:
    """A graph before or after a plan.

    Attributes:
        plans: of the model.
        decision: the plan.
        graph: the graph after it.
        counts: token counts that it is shown for.
        files: the model's code.
    """

    plans: Plans
    decision: Decision
    graph: SpmdGraph
    counts: Sequence[int | None]
    files: Files

    @cached_property
    def sections(self) -> Sections:
        """Values by layer."""
        return sections_of(self.graph, placements(self.graph))

    @cached_property
    def by_key(self) -> dict[str, Value]:
        """Values by what they are called on both sides."""
        return {value.key: value for values in self.sections.values() for value in values}

    @cached_property
    def times(self) -> list[Times]:
        """What values take, per token count; nothing without a machine."""
        planner = self.plans.planner
        counts = self.counts if self.plans.machine else ()
        return [times_of(planner, self.decision, count) for count in counts]

    def summary(self) -> Json:
        """Return how many values and collectives there are, and the payload per token count."""
        every = [statistics(self.graph.graph, count) for count in self.counts]
        return {
            "values": value_count(self.graph.graph),
            "counts": every[0].counts,
            "payload_bytes": [one.payload_bytes for one in every],
        }

    def to_json(self, value: Value, twin: Value | None = None) -> Json:
        """Return a value; told is the line of its ``twin`` on the other side, if it has one."""
        row: Json = {"name": f"%{value.name}", "type": value.type, "op": value.operation}
        if place := self.files.place(twin or value):
            row["at"] = place
        if module := _module(value.line.layer):
            row["module"] = module
        if any(time_ps := [times.time_ps.get(value.name, 0) for times in self.times]):
            row["ps"] = time_ps
        if (call := value.call) is not None:
            kernels = (times.kernels.get(value.name) for times in self.times)
            row["call"] = {
                "kind": str(call.kind), "op": call.op, "axis": call.group,
                "operand": f"%{call.operand.name}", "operand_type": value.operand_type,
                "bytes": [value.payload_bytes(count) for count in self.counts],
                "kernel": next(filter(None, kernels), ""),
            }  # fmt: skip
        return row


def _module(path: str) -> str:
    """Return the part of a path below the layer, all of it outside layers."""
    return re.split(r"(?:^|\.)\d+(?:\.|$)", path, maxsplit=1)[-1]


@dataclass(frozen=True)
class Fate:
    """What became of each collective under one plan, and why.

    Attributes:
        before: the author's graph.
        after: the planned one.
        part: what is said of the plan.
    """

    before: Side
    after: Side
    part: PlanResult

    @cached_property
    def links(self) -> dict[str, list[str]]:
        """Collective of the author's that is gone -> those that do its work.

        The work is done downstream of its operand where that is still a partial sum, upstream
        where it is not.
        """
        target = self.after.graph
        twins, classes = {node.name: node for node in target.graph.nodes}, replication(target)
        links: dict[str, list[str]] = {}
        for key, value in self.before.by_key.items():
            call = value.call
            if call is None or key in self.after.by_key or call.operand.name not in twins:
                continue
            twin = twins[call.operand.name]
            reduced = replicated_over(classes[twin], target.mesh.group(call.group))
            next_calls = {node.name for node in _next_waits(twin, upstream=reduced)}
            links[value.name] = [
                f"%{v.name}"
                for k, v in self.after.by_key.items()
                if v.name in next_calls and v.call and k not in self.before.by_key
            ]
        return links

    @cached_property
    def reasons(self) -> tuple[dict[str, list[Json]], dict[str, list[Json]]]:
        """Why collectives of either side are there: name -> remarks."""
        graphs = [self.before.graph, *(r.graph for r in self.part.results[0].records)]
        written = names_of(self.before.graph.graph)
        owners: list[dict[str, list[str]]] = []
        for side in (self.before, self.after):
            names: dict[str, list[str]] = {}
            for node, _ in waits(side.graph.graph):
                names.setdefault(moved(node, written), []).append(node.name)
            owners.append(names)
        whys: tuple[dict[str, list[Json]], dict[str, list[Json]]] = ({}, {})
        subjects = {  # the first graph that has a collective of that name in that layer
            (f"%{node.name}", access.layer_path(call.operand)): node
            for graph in reversed(graphs)
            for node, call in waits(graph.graph)
        }
        for remark in self.part.remarks:
            subject = subjects.get((remark.value, remark.layer))
            if subject is None:
                continue
            why = {"kind": str(remark.kind), "reason": remark.reason, "remedy": remark.remedy}
            for reasons, names in zip(whys, owners, strict=True):
                for name in names.get(moved(subject, written), ()):
                    if why not in reasons.setdefault(name, []):
                        reasons[name].append(why)
        return whys

    def to_json(self, section: Section) -> Json:
        """Return the values of a section after the plan, and the fates of those before."""
        before, after = (side.sections.get(section, []) for side in (self.before, self.after))
        old, new = self.reasons
        values = []
        for value in after:
            twin = self.before.by_key.get(value.key)
            row = self.after.to_json(value, twin)
            if twin is not None and value.call is None:
                same = self.before.to_json(twin)
                row = {k: x for k, x in row.items() if k not in SHARED or x != same.get(k)}
            if value.call is not None:
                row["call"] |= {"state": "kept" if twin else "new", "why": new.get(value.name, [])}
            values.append(row)
        fates = {}
        for value in before:
            if value.call is not None:
                twin = self.after.by_key.get(value.key)
                fates[f"%{value.name}"] = {
                    "state": "kept" if twin else "gone",
                    "links": [f"%{twin.name}"] if twin else self.links.get(value.name, []),
                    "why": old.get(value.name, []),
                }
        return {"values": values, "fates": fates}


def _next_waits(start: fx.Node, *, upstream: bool) -> Iterator[fx.Node]:
    """Yield the waits that come first on all ways from ``start``."""
    queue = [start]
    seen = set(queue)
    for node in queue:  # which grows
        for other in node.all_input_nodes if upstream else list(node.users):
            if other not in seen:
                seen.add(other)
                if other.target is WAIT:
                    yield other
                else:
                    queue.append(other)


def _groups(graph: SpmdGraph, before: Side, fates: Sequence[Fate]) -> Iterator[Json]:
    """Yield sections in order; layers that are alike in all graphs are one, told by the first."""
    sections = dict.fromkeys(x for s in (before, *(f.after for f in fates)) for x in s.sections)
    kinds, alike = kinds_of_layers(graph), dict[str, Json]()
    for section in sorted(sections, key=_order):
        body: Json = {
            "before": [before.to_json(value) for value in before.sections.get(section, [])],
            "plans": [fate.to_json(section) for fate in fates],
        }
        if isinstance(section, int):
            shape, body["kind"] = _canonical(json.dumps(body)), kinds[section]
        else:
            shape, body["kind"] = section, ""
        group = alike.setdefault(shape, {"sections": []} | body)
        group["sections"].append(section)
    for group in alike.values():
        members = group.pop("sections")
        layers = [section for section in members if isinstance(section, int)]
        kind = group["kind"].removesuffix(" layers")
        yield {"title": title_of(members), "layers": layers} | group | {"kind": kind}


def _canonical(text: str) -> str:
    """Return the text with values numbered in order of appearance: equal for layers alike."""
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"%{numbers.setdefault(match[0], len(numbers))}"

    return re.sub(r"%\w+", number, text)


def _order(section: Section) -> tuple[int, int]:
    return (1, section) if isinstance(section, int) else (2 * (section == AFTER), 0)
