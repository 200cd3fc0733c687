"""The story of a plan, pass by pass: what each did, what it left, and the lines that it changed."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence

from compiler.analysis.cache import cached
from compiler.analysis.statistics import statistics
from compiler.cli.render.page_values import Json, Section, sections_of, title_of
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import RemarkKind
from compiler.ir.text import value_count
from compiler.pipeline import PassRecord

MOST_LINES = 24
"""Lines of each side of a change that are shown; of the rest their number."""

Lines = dict[Section, dict[str, None]]
"""Section -> lines in order."""


def passes_json(source: SpmdGraph, records: Sequence[PassRecord]) -> Iterator[Json]:
    """Yield what each pass did."""
    before = source
    for record in records:
        kinds = [remark.kind for remark in record.remarks]
        yield {
            "name": record.name,
            "what": _purpose(record),
            "seconds": record.seconds,
            "changed": record.changed,
            "passed": kinds.count(RemarkKind.PASSED),
            "missed": kinds.count(RemarkKind.MISSED),
            "values": value_count(record.graph.graph),
            "counts": statistics(record.graph.graph).counts,
            "changes": _changes(before, record.graph) if record.changed else [],
        }
        before = record.graph


def _purpose(record: PassRecord) -> str:
    """Return the first line of what the file of the pass says of it."""
    module = sys.modules[type(record.rewrite).__module__]
    return (inspect.getdoc(module) or "").partition("\n")[0]


@cached
def _lines(graph: SpmdGraph) -> Lines:
    return {
        section: {f"%{v.name}: {v.type} = {v.operation}": None for v in values}
        for section, values in sections_of(graph, {}).items()
    }


@cached
def _changes(before: SpmdGraph, after: SpmdGraph) -> list[Json]:
    """Return the lines that went and came, by section; sections that changed alike are one."""
    old, new = _lines(before), _lines(after)
    alike: dict[str, tuple[Json, list[Section]]] = {}
    for section in dict.fromkeys((*old, *new)):
        left, right = old.get(section, {}), new.get(section, {})
        gone = [line for line in left if line not in right]
        came = [line for line in right if line not in left]
        if gone or came:
            change = {
                "gone": gone[:MOST_LINES], "more_gone": max(0, len(gone) - MOST_LINES),
                "came": came[:MOST_LINES], "more_came": max(0, len(came) - MOST_LINES),
            }  # fmt: skip
            shape = re.sub(r"%\w+", "%", f"{gone} {came}")
            alike.setdefault(shape, (change, []))[1].append(section)
    return [{"where": title_of(sections)} | change for change, sections in alike.values()]
