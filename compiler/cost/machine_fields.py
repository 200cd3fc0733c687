"""The fields of a machine file: their names, types and ranges. No field is passed over."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from compiler.cost.tables import Fused, Launch, LibraryClass, MachineError
from compiler.ir.collectives import Kind

Form = Callable[[Any, str], None]
"""Raises FieldError unless a value, of the field that is named, is as it should be."""

LARGEST = 10**18


class FieldError(Exception):
    """A field that is not what it must be: its name, that, and its value."""


def check_name(name: str) -> None:
    """Raise MachineError unless a machine file can have this name."""
    try:
        file_name(name, "the name of a machine")
    except FieldError as error:
        what, must, value = error.args
        raise MachineError(f"{what} {must}", found=repr(value)) from None


def check_fields(data: object, path: Path) -> None:
    """Check that a machine file has the fields it must have, and no others.

    Raises:
        MachineError: it names the first field that is wrong.
    """
    form = OF_SEVERAL if isinstance(data, dict) and "node" in data else OF_A_NODE
    try:
        form(data, "")
    except FieldError as error:
        field, must, value = error.args
        shown = repr(value)
        raise MachineError(
            f"{field} {must}",
            where=str(path),
            found=shown if len(shown) <= 80 else f"{shown[:76]} …",
            remedy="docs/machines.md lists the fields",
        ) from None


def whole(least: int = 0) -> Form:
    """Return the form of whole numbers from ``least``."""

    def check(value: Any, field: str) -> None:
        if type(value) is not int or not least <= value <= LARGEST:
            raise FieldError(field, f"must be a whole number from {least} to 10**18", value)

    return check


def share(value: Any, field: str) -> None:
    """Check a part of one, of any size, or None."""
    if value is not None and (type(value) not in (int, float) or not 0 <= value < LARGEST):
        raise FieldError(field, "must be a number from 0, or null", value)


def text(value: Any, field: str) -> None:
    """Check a text that can be printed."""
    if not isinstance(value, str) or not value.isprintable():
        raise FieldError(field, "must be a printable text", value)


def file_name(value: Any, field: str) -> None:
    """Check the name of a machine, which files are called by."""
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w.+-]*", value):
        raise FieldError(field, "must be of letters, digits, '.', '_', '+' and '-'", value)


def flag(value: Any, field: str) -> None:
    """Check true or false."""
    if not isinstance(value, bool):
        raise FieldError(field, "must be true or false", value)


def one_of(*enums: type[StrEnum]) -> Form:
    """Return the form of the members of ``enums``."""
    choices = [str(member) for enum in enums for member in enum]

    def check(value: Any, field: str) -> None:
        if value not in choices:
            raise FieldError(field, f"must be one of {', '.join(choices)}", value)

    return check


def items(form: Form, count: int | None = None) -> Form:
    """Return the form of lists, of ``count`` items if it is given."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, list) or count not in (None, len(value)):
            raise FieldError(
                field, "must be a list" + (f" of {count} numbers" if count else ""), value
            )
        for i, item in enumerate(value):
            form(item, f"{field}[{i}]")

    return check


def mapping(form: Form, key: Form = text) -> Form:
    """Return the form of objects whose names are not fixed."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, dict):
            raise FieldError(field, "must be an object", value)
        for name, part in value.items():
            key(name, f"a name in {field}")
            form(part, f"{field}.{name}")

    return check


def fields(required: Mapping[str, Form], optional: Mapping[str, Form]) -> Form:
    """Return the form of objects whose names are fixed."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, dict):
            raise FieldError(field or "a machine file", "must be an object", value)
        dot = f"{field}." if field else ""
        for name in value:
            if name not in required and name not in optional:
                names = ", ".join((*required, *optional))
                raise FieldError(f"{dot}{name}", f"is not a field; there are {names}", value[name])
        for name, form in (*required.items(), *optional.items()):
            if name in value:
                form(value[name], f"{dot}{name}")
            elif name in required:
                raise FieldError(f"{dot}{name}", "is missing", list(value))

    return check


QUANTITY = fields({"value": whole(), "unit": text, "source": text}, {})
MEASURED: dict[str, Form] = {
    "kind": one_of(Kind, Fused),
    "ranks": whole(2),
    "library": text,
    "class": one_of(LibraryClass),
    "launches": items(one_of(Launch)),
    "source": text,
}
TABLE = fields(
    MEASURED | {"min_bytes": whole(), "max_bytes": whole(), "regimes": items(items(whole(), 3))},
    {"median_error": share, "maximum_error_above_1mib": share},
)
PROTOCOL = fields(
    {"name": text, "base_ns": whole(), "step_ns": whole(), "bytes_per_us": whole(1)}, {}
)
NETWORK = fields({"protocols": items(PROTOCOL)}, {"link": QUANTITY, "source": text})
OF_A_NODE = fields(
    {
        "name": file_name,
        "title": text,
        "ranks_per_node": whole(1),
        "in_switch_reduction": flag,
        "tables": items(TABLE),
    },
    {
        "gpu": text,
        "device": text,
        "link": QUANTITY,
        "memory": QUANTITY,
        "matmul": mapping(QUANTITY),
        "launch": mapping(QUANTITY, one_of(Launch)),
        "network": NETWORK,
        "rows": items(fields(MEASURED | {"rows": items(items(share, 2))}, {})),
    },
)
OF_SEVERAL = fields({"name": file_name, "title": text, "node": text, "network": NETWORK}, {})
