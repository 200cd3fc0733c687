"""Placements: what each rank holds of a value, per mesh axis.

``Replicate`` (R): every rank along the axis holds the same tensor. ``Shard(dim)`` (S(dim)): rank i
holds block i of the global tensor along ``dim``. ``Partial(op)`` (P): the global tensor is the
reduction of what the ranks hold. ``Varying`` (V): rank-local, no global meaning known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from compiler.errors import PlacementError
from compiler.ir.mesh import Mesh

REDUCTIONS = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor")
"""What a collective may reduce by: the names that PyTorch's functional collectives know."""


@dataclass(frozen=True)
class Replicate:
    """Every rank along the axis holds the same tensor."""

    def __str__(self) -> str:
        return "R"


@dataclass(frozen=True)
class Shard:
    """Rank i along the axis holds block i of the global tensor along ``dim`` (>= 0).

    Raises:
        PlacementError: ``dim`` is not an integer.
    """

    dim: int

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int):
            raise PlacementError(
                "the dimension of a Shard must be an integer",
                found=f"Shard({self.dim!r})",
                remedy="count dimensions from 0, for example Shard(0)",
            )

    def __str__(self) -> str:
        return f"S({self.dim})"


@dataclass(frozen=True)
class Partial:
    """The global tensor is the reduction ``op`` of the tensors along the axis.

    Raises:
        PlacementError: ``op`` is none of ``REDUCTIONS``.
    """

    op: str = "sum"

    def __post_init__(self) -> None:
        if self.op not in REDUCTIONS:
            raise PlacementError(
                "the reduction of a Partial is not known",
                found=f"Partial({self.op!r})",
                remedy=f"one of {', '.join(REDUCTIONS)}",
            )

    def __str__(self) -> str:
        return "P" if self.op == "sum" else f"P({self.op})"


@dataclass(frozen=True)
class Varying:
    """Every rank along the axis holds a tensor of its own; no global meaning is known."""

    def __str__(self) -> str:
        return "V"


Placement = Replicate | Shard | Partial | Varying
Placements = tuple[Placement, ...]
"""One placement per mesh axis, in the order of the axes."""


def check_inputs(inputs: object) -> None:
    """Raise PlacementError unless ``inputs`` is None or a mapping."""
    if not isinstance(inputs, Mapping | None):
        raise PlacementError(
            "inputs= must be a mapping of names to placements",
            found=repr(inputs),
            remedy='for example inputs={"weight": Shard(0)}',
        )


def placements_on(
    mesh: Mesh, declared: Placement | Mapping[str, Placement], name: str
) -> Placements:
    """Return what is ``declared`` of ``name`` per axis; axes left out are Replicate.

    Raises:
        PlacementError: an axis the mesh does not have, one placement for several axes that is
            not the same on all of them, or something that is not a placement.
    """
    if isinstance(declared, Mapping):
        if unknown := set(declared) - set(mesh.axes):
            raise PlacementError(
                f"the placement of {name!r} names an unknown axis",
                found=f"{sorted(unknown, key=str)}, the mesh has {list(mesh.axes)}",
                remedy="name axes of the mesh",
            )
        per_axis = tuple(declared.get(axis, Replicate()) for axis in mesh.axes)
    else:
        if isinstance(declared, Shard | Partial) and sum(n > 1 for n in mesh.axes.values()) > 1:
            raise PlacementError(
                f"the placement of {name!r} does not say which axis it is about",
                found=f"{declared} on a mesh with axes {list(mesh.axes)}",
                remedy=f"pass {{axis: {declared!r}}}",
            )
        per_axis = (declared,) * len(mesh.axes)
    for placement in per_axis:
        if not isinstance(placement, Replicate | Shard | Partial | Varying):
            raise PlacementError(
                f"the placement of {name!r} is not a placement",
                found=repr(placement),
                remedy="use Replicate(), Shard(dim), Partial(op) or Varying()",
            )
        if isinstance(placement, Shard) and placement.dim < 0:
            raise PlacementError(
                f"the placement of {name!r} shards a negative dimension",
                found=str(placement),
                remedy="count dimensions from 0",
            )
    return per_axis


def parse_placement(text: str) -> Placement:
    """Return the placement whose ``str`` is ``text``.

    Raises:
        PlacementError: ``text`` is not one of R, V, P, P(op), S(dim).
    """
    if match := re.fullmatch(r"(R)|(V)|P(?:\((\w+)\))?|S\((\d+)\)", text):
        replicate, varying, op, dim = match.groups()
        if replicate:
            return Replicate()
        if varying:
            return Varying()
        return Shard(int(dim)) if dim is not None else Partial(op or "sum")
    raise PlacementError(
        "not a placement", found=repr(text), remedy="write R, V, P, P(op) or S(dim)"
    )
