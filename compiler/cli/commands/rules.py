"""``commplan rules``: what the rule of each op says."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

from compiler.cli.render.document import Document
from compiler.cli.render.progress import new_table, say
from compiler.errors import CommPlanError
from compiler.ir.rules import RULES


def rules(pattern: str, format: str) -> int:
    """List the ops that have a rule, each with what its rule says."""
    rows = rules_of(pattern)
    printed = new_table("op", "rule")
    for row in rows:
        printed.add_row(*row.values())
    Document("rules/1", {"rules": rows}, [printed]).print(format)
    say(f"{len(rows)} of {len(RULES)} ops")
    return 0


def rules_of(pattern: str = "") -> list[dict[str, str]]:
    """Return op and rule of the ops whose name contains ``pattern``, or matches it if it is a glob.

    Raises:
        CommPlanError: there is none.
    """
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    names = {_name(op): rule for op, rule in RULES.items()}
    rows = [
        {"op": name, "rule": rule_text(names[name])}
        for name in sorted(names)
        if fnmatch(name, glob)
    ]
    if not rows:
        raise CommPlanError(
            "no op of that name has a rule",
            found=repr(pattern),
            remedy="give part of a name, such as index_add, or a glob, such as 'aten.index*'; "
            "without one all ops are listed",
        )
    return rows


def _name(op: Any) -> str:
    return str(op) if hasattr(op, "_schema") else f"{op.__module__.lstrip('_')}.{op.__name__}"


def rule_text(rule: Callable[..., Any]) -> str:
    """Return what the docstring of a rule says, or of the function that made it, and with what."""
    inner, arguments = inspect.unwrap(rule), dict[str, object]()
    for function in (inner, rule):
        if isinstance(function, partial):
            arguments |= function.keywords
        else:
            arguments |= inspect.getclosurevars(function).nonlocals
    named = inner.func if isinstance(inner, partial) else inner
    maker = getattr(sys.modules[named.__module__], named.__qualname__.partition(".")[0])
    text = (inspect.getdoc(maker) or "").partition("\n\nArgs:")[0]
    settings = [f"{k} = {x}" for k, x in arguments.items() if isinstance(x, str | int | float)]
    return " ".join(text.split()) + (f" ({', '.join(settings)})" if settings else "")
