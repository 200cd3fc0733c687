"""``commplan rules``: what is known of each op."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from compiler.cli.commands.example_calls import typical
from compiler.cli.inputs.options import Format, FormatOption
from compiler.cli.render.progress import Stages, stderr, stdout
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.rules import BROADCAST, RESHAPE, RULES, Call, Meaning, Term, meaning_of
from compiler.ir.rules.meaning import Labels

WHOLE = "_"
"""Stands for a dimension that is needed whole."""

LINE = 240
"""Characters on a line: every op has one, however narrow the terminal."""


@dataclass(frozen=True)
class Row:
    """An op and the meaning of a typical call of it.

    Attributes:
        op: qualified name with its overload.
        operands: dimensions of the call's operands; None if no call was found.
        terms: the op as a sum of terms, each linear in what stands in parentheses and depending
            in any way on what stands in brackets.
        factors: names of the dimensions that can be cut, of operands and results.
    """

    op: str
    operands: tuple[int, ...] | None
    terms: str
    factors: str


def rules(
    pattern: Annotated[
        str, typer.Argument(metavar="[OP]", help="Ops to list: part of a name, or a glob.")
    ] = "",
    format: FormatOption = Format.TABLE,
) -> int:
    """List the ops that have a rule, each with its terms and its dimension factors.

    A rule speaks of calls; the list shows it for a typical one. An op maps partial sums to partial
    sums if every term has one partial operand and the rest is the same on every rank. A dimension
    without a name (`_`) is needed whole; a name that no result has is summed over.

    `commplan rules 'aten.index*'`
    """
    with Stages().stage("list", pattern or "all ops"):
        found = listed(pattern)
    if format is Format.JSON:
        typer.echo(json.dumps([asdict(row) for row in found], indent=1))
        return 0
    table = Table("op", "terms", "factors", box=SIMPLE)
    for row in found:
        table.add_row(*map(Text, (row.op, row.terms, row.factors)))
    stdout().print(table, width=LINE, crop=False)
    stderr().print(f"{len(found)} of {len(RULES)} ops")
    return 0


def listed(pattern: str = "") -> list[Row]:
    """Rows of the ops whose name contains ``pattern``, or matches it if it is a glob.

    Raises:
        CommPlanError: there is none.
    """
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found = {_name(op): op for op in RULES if fnmatch(_name(op), glob)}
    if not found:
        raise CommPlanError(
            "no op of that name has a rule",
            found=repr(pattern),
            remedy="give part of a name, such as index_add, or a glob, such as 'aten.index*'; "
            "without one all ops are listed",
        )
    return [_row(name, op) for name, op in sorted(found.items())]


def _name(op: Any) -> str:
    return str(op) if hasattr(op, "_schema") else f"{op.__module__.lstrip('_')}.{op.__name__}"


def _row(name: str, op: Any) -> Row:
    call = typical(op)
    meaning = None if call is None else meaning_of(call)
    if call is None or meaning is None:
        return Row(name, None, "depends on the call", "depends on the call")
    operands = tuple(len(shape) for shape in call.shapes)
    return Row(name, operands, terms_text(call, meaning), factors_text(meaning))


def terms_text(call: Call, meaning: Meaning) -> str:
    """The terms as a sum; what is no sum of terms says what it is instead."""
    if meaning.random:
        return "random"
    if meaning.terms is None:
        return "uninterpreted" + (", element by element" if meaning.pointwise else "")
    names = _operand_names(call.arguments)
    return " + ".join(_term_text(t, names, call) for t in meaning.terms) or "0"


def _operand_names(arguments: Mapping[str, Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, held in arguments.items():
        if isinstance(held, access.Operand):
            found[held.index] = name
        elif isinstance(held, tuple):
            for place, item in enumerate(held):
                if isinstance(item, access.Operand):
                    found[item.index] = f"{name}{place}"
    return found


def _term_text(term: Term, names: Mapping[int, str], call: Call) -> str:
    if not term.operands:
        return str(term.coefficient)
    factor = "" if term.coefficient == 1 else f"{term.coefficient} · "
    read = [names[i] for i in term.operands]
    if term.map == BROADCAST:
        return factor + " · ".join(read)
    fixed = f"[{', '.join(names[i] for i in term.fixed)}]" if term.fixed else ""
    return f"{factor}{_map_text(term.map, call)}{fixed}({', '.join(read)})"


def _map_text(key: object, call: Call) -> str:
    if key == RESHAPE:
        return RESHAPE
    first = key[0] if isinstance(key, tuple) else key
    own = str(call.target).split(".")[1]
    return first if isinstance(first, str) and "." not in first else own


def factors_text(meaning: Meaning) -> str:
    """``m k, k n -> m n``: operands, then results."""
    if meaning.dims is None:
        return "all whole"
    sides = (meaning.dims.operands, meaning.dims.results)
    return " -> ".join(", ".join(map(_labels_text, side)) for side in sides).strip()


def _labels_text(labels: Labels) -> str:
    """Numbers count dimensions: they become letters."""
    names = (chr(ord("a") + x) if isinstance(x, int) else x or WHOLE for x in labels)
    return " ".join(names) or "()"
