"""``inputs=``: what ranks hold of a graph's inputs, declared by name or by pattern.

A name outweighs every pattern. In a pattern ``*`` stands for one part of a dotted name or a piece
of one, as in a ``tp_plan``: ``layers.*.o_proj.weight`` names no ``layers.0.mlp.o_proj.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from compiler.errors import PlacementError
from compiler.ir.placement import Placement

Inputs = Mapping[str, Placement | Mapping[str, Placement]]
"""Name or pattern -> placement, or {axis: placement}."""

LISTED = 12
"""Names that an error lists, where none is near."""


def pattern(text: str, ending: str = "") -> re.Pattern[str]:
    """Return what matches the names that ``text`` stands for, followed by ``ending``."""
    return re.compile(r"[^.]+".join(map(re.escape, text.split("*"))) + ending)


def by_input(
    declared: Inputs, names: Mapping[str, str], owner: str
) -> dict[str, Placement | Mapping[str, Placement]]:
    """Return what ``declared`` says of each input; those that it does not name are left out.

    Args:
        declared: the declarations.
        names: every name that inputs go by -> the input.
        owner: what has the inputs, for errors.

    Raises:
        PlacementError: a name or pattern that no input has, or two that differ about one input.
    """
    inputs = {text: named(text, names) for text in declared}
    if unknown := sorted((text for text in declared if not inputs[text]), key=str):
        raise PlacementError(
            f"inputs= names {unknown}, which the {owner} does not read",
            found=_near(unknown, names),
            remedy="name arguments, placeholders or state_dict keys; * stands for one part of a "
            "dotted name",
        )
    chosen: dict[str, str] = {}
    for exact in (True, False):
        settled = set(chosen)
        for text in (t for t in declared if (t in names) is exact):
            for name in sorted(inputs[text] - settled):
                other = chosen.setdefault(name, text)
                if declared[other] != declared[text]:
                    raise PlacementError(
                        f"inputs= declares {name!r} twice",
                        found=f"{other!r}: {declared[other]}, {text!r}: {declared[text]}",
                        remedy="declare it by its name, which outweighs patterns",
                    )
    return {name: declared[text] for name, text in chosen.items()}


def named(text: str, names: Mapping[str, str]) -> set[str]:
    """Return the inputs that ``text``, a name or a pattern, names; see ``by_input``."""
    if text in names:
        return {names[text]}
    if "*" not in str(text):
        return set()
    matches = pattern(text).fullmatch
    return {name for spelling, name in names.items() if matches(spelling)}


def _near(unknown: Iterable[object], names: Mapping[str, str]) -> str:
    """Return the names nearest to unknown ones; the first names where none is near."""
    near = dict.fromkeys(n for text in unknown for n in get_close_matches(str(text), names))
    if near:
        return f"the nearest names are {list(near)}"
    listed = ", ".join(map(repr, list(names)[:LISTED]))
    more = len(names) - LISTED
    return f"its inputs are [{listed}{f', … and {more} more' if more > 0 else ''}]"
