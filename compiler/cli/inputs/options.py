"""Texts that options are given as, and what they say; PyTorch is not imported to read them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compiler.errors import CommPlanError
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement, parse_placement

if TYPE_CHECKING:
    from compiler.cost import Machine

ALIASES = {
    "step3p5": "models.step3p5.entry:prefill",
    "step3p5:decode": "models.step3p5.entry:decode",
}
"""Short names of models."""

WORLD_SIZE = 8
"""The default."""


@dataclass(frozen=True)
class InputOptions:
    """How MODEL is read, as the command line states it.

    Attributes:
        mesh: axes and sizes of a program, as text.
        groups: names of a program's groups and the axes that they span, as text.
        inputs: placements of inputs, as text.
        tp: world size of a model.
        settings: keyword arguments of a factory, as text.
        capture: how a model is captured.
    """

    mesh: str = ""
    groups: Sequence[str] = ()
    inputs: Sequence[str] = ()
    tp: int | None = None
    settings: Sequence[str] = ()
    capture: str = "auto"

    def refuse(self, *options: str, of: str, name: str, remedy: str) -> None:
        """Raise CommPlanError if one of ``options`` is set: inputs of this kind have none."""
        values = {
            "--mesh": self.mesh, "--group": self.groups, "--input": self.inputs, "--tp": self.tp,
            "--set": self.settings, "--capture": "" if self.capture == "auto" else self.capture,
        }  # fmt: skip
        if idle := ", ".join(option for option in options if values[option]):
            raise CommPlanError(f"{idle} given for a {of}", where=name, remedy=remedy)

    @property
    def placements(self) -> dict[str, Placement | Mapping[str, Placement]]:
        """Placements of inputs by name."""
        return placements(self.inputs)


def bad_option(option: str, value: str, remedy: str) -> CommPlanError:
    """Return the error for an option whose value cannot be read."""
    shown = value if len(value) <= 80 else f"{value[:76]} …"
    return CommPlanError(f"cannot read {option}", found=repr(shown), remedy=remedy)


def distinct(option: str, texts: Iterable[str]) -> Iterator[str]:
    """Yield ``name=value`` texts.

    Raises:
        CommPlanError: two have the same name.
    """
    names = set[str]()
    for text in texts:
        name = text.partition("=")[0]
        if name in names:
            raise bad_option(option, text, f"give {option} once for each name")
        names.add(name)
        yield text


def is_count(text: str, least: int = 1) -> bool:
    """Return whether a text is a whole number from ``least``, of at most 12 digits."""
    return text.isdecimal() and len(text) <= 12 and int(text) >= least


def token_counts(text: str) -> tuple[int, ...]:
    """Return distinct counts, ascending, of ``1,64,2048``."""
    parts = text.split(",")
    if not all(is_count(part.strip()) for part in parts):
        raise bad_option("--tokens", text, "write counts of tokens, such as 1,64,2048")
    return tuple(sorted(set(map(int, parts))))


def machines_of(text: str) -> list[tuple[Machine, int | None]]:
    """Return the machines, and world sizes where there are any, of ``h200x8,l40sx8:4``."""
    from compiler.cost import load_machine  # and PyTorch

    machines = []
    for part in filter(None, text.split(",")):
        name, colon, ranks = part.partition(":")
        if colon and not is_count(ranks):
            raise bad_option("--compare", part, "write NAME or NAME:RANKS, such as h200x8:4")
        machines.append((load_machine(name), int(ranks) if colon else None))
    return machines


def layer_range(text: str) -> range:
    """Return the layers of ``3`` or ``3-4``."""
    match = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise bad_option("--layers", text, "write a layer or a range, such as 3 or 3-4")
    return range(first, last + 1)


def settings(texts: Iterable[str]) -> dict[str, Any]:
    """Return ``key=value`` pairs; values that are not Python literals are strings."""
    values: dict[str, Any] = {}
    for text in distinct("--set", texts):
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise bad_option("--set", text, "write key=value, such as --set experts=ep")
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            values[key] = value
    return values


def mesh_of(text: str, groups: Iterable[str] = ()) -> Mesh:
    """Return the mesh ``tp=8`` or ``dp=2,tp=4``, with groups such as ``0=tp`` or ``5=dp,tp``.

    Raises:
        CommPlanError: the text does not state a mesh.
        MeshError: an axis without ranks.
    """
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, axis_size = map(str.strip, part.partition("="))
        if not name or not is_count(axis_size, 0) or name in axes:
            raise bad_option("--mesh", text, "write axes and their sizes, such as dp=2,tp=4")
        axes[name] = int(axis_size)
    mesh = Mesh(axes)
    ranks: dict[str, Sequence[Sequence[int]]] = {}
    for group in distinct("--group", groups):
        name, _, spanned = group.rpartition("=")
        along = [axis.strip() for axis in spanned.split(",")]
        if not name or not set(along) <= set(axes):
            remedy = f"write NAME=AXIS or NAME=AXIS,AXIS with axes of {mesh}"
            raise bad_option("--group", group, remedy)
        ranks[name] = mesh.along(*along).ranks
    return Mesh(axes, ranks)


def placements(texts: Iterable[str]) -> dict[str, Placement | Mapping[str, Placement]]:
    """Return the placements of ``x=S(0)``, or ``x=tp:S(0),dp:R`` on a mesh of several axes."""
    return dict(map(_placement, distinct("--input", texts)))


def _placement(text: str) -> tuple[str, Placement | Mapping[str, Placement]]:
    name, _, value = text.partition("=")
    pairs = [map(str.strip, part.split(":", 1)) for part in value.split(",")]
    try:
        if name and ":" in value:
            return name, {axis: parse_placement(placement) for axis, placement in pairs}
        return name, parse_placement(value if name else "")
    except (CommPlanError, ValueError):
        example = "write NAME=S(0), or NAME=tp:S(0),dp:R; placements are R, V, P, P(op), S(dim)"
        raise bad_option("--input", text, example) from None
