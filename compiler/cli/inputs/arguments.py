"""Options written as text: token counts, layers, meshes, groups, placements, keyword arguments."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from compiler.errors import CommPlanError
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement, parse_placement


def bad_option(option: str, found: str, remedy: str) -> CommPlanError:
    """The error for an option whose value cannot be read."""
    return CommPlanError(f"cannot read {option}", found=repr(found), remedy=remedy)


def token_counts(text: str) -> tuple[int, ...]:
    """``1,64,2048``: distinct counts, ascending."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise bad_option("--tokens", text, "write counts of tokens, such as 1,64,2048")
    return tuple(sorted({int(part) for part in parts}))


def layer_range(text: str) -> range:
    """``3`` or ``3-4``."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (match[1], match[2] or match[1]) if match else ("1", "0")
    if int(first) > int(last):
        raise bad_option("--layers", text, "write a layer or a range, such as 3 or 3-4")
    return range(int(first), int(last) + 1)


def settings(given: Iterable[str]) -> dict[str, Any]:
    """``key=value`` pairs; values that are no Python literals are strings."""
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise bad_option("--set", text, "write key=value, such as --set experts=ep")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def mesh_of(text: str, groups: Iterable[str] = ()) -> Mesh:
    """``tp=8`` or ``dp=2,tp=4``, with groups such as ``0=tp`` or ``5=dp,tp``.

    Raises:
        CommPlanError: the text is no mesh.
        MeshError: an axis without ranks.
    """
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, axis_size = part.partition("=")
        if not name.strip() or not axis_size.strip().isdecimal() or name.strip() in axes:
            raise bad_option("--mesh", text, "write axes and their sizes, such as dp=2,tp=4")
        axes[name.strip()] = int(axis_size)
    plain = Mesh(axes)
    named: dict[str, Sequence[Sequence[int]]] = {}
    for group in groups:
        name, _, spanned = group.rpartition("=")
        along = [axis.strip() for axis in spanned.split(",")]
        if not name or not set(along) <= set(axes):
            raise bad_option(
                "--group", group, f"write NAME=AXIS or NAME=AXIS,AXIS with axes of {plain}"
            )
        named[name] = plain.along(*along).ranks
    return Mesh(axes, named)


def placements(given: Iterable[str]) -> dict[str, Placement | dict[str, Placement]]:
    """``x=S(0)``, or ``x=tp:S(0),dp:R`` on a mesh of several axes."""
    return dict(map(_placement, given))


def _placement(text: str) -> tuple[str, Placement | dict[str, Placement]]:
    name, equals, value = text.partition("=")
    example = "write NAME=S(0), or NAME=tp:S(0),dp:R; placements are R, V, P, P(op), S(dim)"
    if not name or not equals:
        raise bad_option("--input", text, example)
    read: Callable[[str], Placement] = parse_placement
    try:
        if ":" not in value:
            return name, read(value)
        pairs = (part.partition(":") for part in value.split(","))
        return name, {axis.strip(): read(held.strip()) for axis, _, held in pairs}
    except CommPlanError:
        raise bad_option("--input", text, example) from None
