"""The collectives of a graph, one entry each: kind, axis, payload, layer and line of the model.

No node names and no symbols as capture drew them: an edit that does not concern a collective leaves
the list as it was, but for the lines of the model, which are told and not compared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import sympy

from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.collectives import Kind, collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.text.spelling import TensorType, type_of

SCHEMA = "commplan.collectives/1"
"""What a file states, so that readers know its form; another number is another form."""


@dataclass(frozen=True, order=True)
class Entry:
    """One collective.

    Attributes:
        layer: dotted path of the module that its operand comes from, "" outside modules.
        kind: all_reduce, reduce_scatter, all_gather, all_to_all or broadcast.
        op: the reduction, "" where nothing is reduced.
        axis: mesh axis or group that it runs over.
        operand: element type and shape on one rank, ``f32[s0, 64]``; symbols are numbered in order
            of their first use by a collective.
        line: ``models/file.py:12`` of the model, "" if capture recorded none. Not compared.
    """

    layer: str
    kind: str
    op: str
    axis: str
    operand: str
    line: str = field(default="", compare=False)

    def __str__(self) -> str:
        reduction = f" ({self.op})" if self.op not in ("", "sum") else ""
        return f"{self.kind}{reduction} {self.operand} over {self.axis}"


@dataclass(frozen=True)
class Snapshot:
    """All collectives of a graph in program order.

    Attributes:
        mesh: axis -> number of ranks.
        collectives: an entry each.
    """

    mesh: Mapping[str, int]
    collectives: tuple[Entry, ...]

    @classmethod
    def of(cls, graph: SpmdGraph) -> Snapshot:
        """Return the snapshot of ``graph``."""
        return cls(dict(graph.mesh.axes), tuple(_entries(graph)))

    def counts(self) -> Counter[str]:
        """Return kind -> number of collectives."""
        return Counter(entry.kind for entry in self.collectives)

    def to_json(self) -> str:
        """Return the text of a file, a line for each collective: version control shows each."""
        rows = ",\n".join("  " + json.dumps(asdict(entry)) for entry in self.collectives)
        head = f'{{\n "schema": {json.dumps(SCHEMA)},\n "mesh": {json.dumps(dict(self.mesh))},'
        return f'{head}\n "collectives": [\n{rows}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str, where: str = "") -> Snapshot:
        """Return what ``to_json`` wrote.

        Raises:
            CommPlanError: ``text`` is something else.
        """
        try:
            state: Any = json.loads(text)
            schema = state["schema"]
            if schema == SCHEMA:
                mesh = {str(axis): int(size) for axis, size in state["mesh"].items()}
                entries = tuple(Entry(**row) for row in state["collectives"])
                if all(isinstance(x, str) for entry in entries for x in vars(entry).values()):
                    return cls(mesh, entries)
                raise TypeError("a field that is not a text")
            problem = f"schema {schema!r}"
        except Exception as error:  # a file can hold anything
            problem = f"{type(error).__name__}: {error}"
        raise CommPlanError(
            f"a list of collectives must be JSON of schema {SCHEMA!r}",
            where=where,
            found=problem,
            remedy="write it anew: commplan collectives MODEL --format json",
        )


def exceeded(snapshot: Snapshot, budget: Mapping[str, int]) -> tuple[str, ...]:
    """Return what of ``snapshot`` is over a budget, kind -> number, in words.

    Raises:
        CommPlanError: the budget names a kind of collective there is not.
    """
    if unknown := [kind for kind in budget if kind not in list(map(str, Kind))]:
        raise CommPlanError(
            "a budget must name kinds of collectives",
            found=", ".join(unknown),
            remedy=f"of {', '.join(Kind)}",
        )
    counts = snapshot.counts()
    return tuple(
        f"{counts[kind]} {kind}s, at most {most} allowed"
        for kind, most in budget.items()
        if counts[kind] > most
    )


def _entries(graph: SpmdGraph) -> Iterator[Entry]:
    numbers: dict[sympy.Symbol, sympy.Symbol] = {}
    for node, call in collectives(graph.graph):
        kind = type_of(access.value(call.operand))
        assert isinstance(kind, TensorType), "collectives take tensors"
        for size in kind.shape:
            for symbol in sorted(getattr(size, "free_symbols", ()), key=str):
                numbers.setdefault(symbol, sympy.Symbol(f"s{len(numbers)}", integer=True))
        shape = tuple(n if isinstance(n, int) else n.xreplace(numbers) for n in kind.shape)
        yield Entry(
            layer=access.layer_path(node) or access.layer_path(call.operand),
            kind=str(call.kind),
            op=call.op,
            axis=call.group,
            operand=str(replace(kind, shape=shape, device="cpu")),
            line=access.source_path(node),
        )
