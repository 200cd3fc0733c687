"""How a parallel model's tensors are cut out of those of the model on one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.check.single_device.cuts import ratio
from compiler.errors import PlacementError
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement, Replicate, Shard, placements_on

Segment = tuple[int, int]
"""First index, and how many."""


@dataclass(frozen=True)
class Packed:
    """Several tensors joined along ``dim``, each of them sharded: gate and up in one matrix.

    Attributes:
        dim: the dimension.
        sizes: of the tensors along it, on one device.
    """

    dim: int
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"S({self.dim}) of each of {len(self.sizes)} parts"


@dataclass(frozen=True)
class Layout:
    """What every rank holds of a tensor.

    Attributes:
        dim: the dimension that is cut; None: every rank holds all of it.
        segments: per rank, the ranges of the dimension that it holds, in order.
        text: how it is written.
    """

    dim: int | None = None
    segments: tuple[tuple[Segment, ...], ...] = ()
    text: str = "R"


Declared = Placement | Packed | Layout | Mapping[str, Placement]
"""What ranks hold of a tensor: on the only axis of more than one rank, per axis, or in full."""


def layout(
    name: str,
    whole: Sequence[Any],
    part: Sequence[Any],
    mesh: Mesh,
    declared: Declared | None = None,
) -> Layout:
    """Return the layout of a tensor: as declared, otherwise as its shapes say.

    Args:
        name: what errors call it.
        whole: its shape on one device.
        part: its shape on every rank.
        mesh: the ranks.
        declared: placement, if there is one.

    Raises:
        PlacementError: the shapes do not fit the placement, or say none.
    """
    axes = [axis for axis, n in mesh.axes.items() if n > 1]
    if isinstance(declared, Layout):
        return _checked(name, whole, part, mesh, declared)
    if isinstance(declared, Packed):
        return _cut(name, whole, part, mesh, _only(axes, name), declared.dim, declared.sizes)
    if declared is not None:
        placed = zip(mesh.axes, placements_on(mesh, declared, name), strict=True)
        sharded = [(axis, p) for axis, p in placed if not isinstance(p, Replicate)]
        sharded = [(axis, p) for axis, p in sharded if mesh.axes[axis] > 1]
        if not sharded:
            return _replicated(name, whole, part)
        axis, placement = sharded[0]
        if len(sharded) > 1 or not isinstance(placement, Shard):
            raise _misfit(name, whole, part, "declare Replicate(), or Shard(dim) along one axis")
        return _cut(name, whole, part, mesh, axis, placement.dim)
    differing = [d for d, sizes in enumerate(zip(whole, part, strict=False)) if len(set(sizes)) > 1]
    if len(whole) == len(part) and not differing:
        return Layout()
    if len(whole) != len(part) or len(differing) != 1:
        raise _misfit(name, whole, part, "declare how it is sharded")
    (dim,) = differing
    share = ratio(whole[dim], part[dim])
    fitting = [axis for axis in axes if share == mesh.axes[axis]] or axes
    return _cut(name, whole, part, mesh, _only(fitting, name), dim)


def _checked(
    name: str, whole: Sequence[Any], part: Sequence[Any], mesh: Mesh, own: Layout
) -> Layout:
    """Return a layout, whose ranges must be as long as what every rank holds."""
    dim = own.dim
    if dim is None:
        return _replicated(name, whole, part)
    ends = [end for ranges in own.segments for start, n in ranges for end in (start, start + n)]
    lengths = {sum(length for _, length in ranges) for ranges in own.segments}
    rest = [tuple(shape[:dim]) + tuple(shape[dim + 1 :]) for shape in (whole, part)]
    fits = len(own.segments) == mesh.size and rest[0] == rest[1] and lengths == {part[dim]}
    if not fits or min(ends) < 0 or max(ends) > whole[dim]:
        raise _misfit(name, whole, part, "declare ranges of as many ranks as there are")
    return own


def _only(axes: Sequence[str], name: str) -> str:
    if len(axes) == 1:
        return axes[0]
    raise PlacementError(
        f"nothing says over which axis {name!r} is sharded",
        found=f"the mesh has axes {list(axes)} of several ranks",
        remedy="declare it: {axis: Shard(dim)}",
    )


def _replicated(name: str, whole: Sequence[Any], part: Sequence[Any]) -> Layout:
    if tuple(whole) != tuple(part):
        raise _misfit(name, whole, part, "declare Shard(dim): it is not the same on every rank")
    return Layout()


def _misfit(name: str, whole: Sequence[Any], part: Sequence[Any], remedy: str) -> PlacementError:
    return PlacementError(
        f"the shapes of {name!r} do not fit its placement",
        found=f"{list(whole)} on one device, {list(part)} on each rank",
        remedy=remedy,
    )


def _cut(
    name: str,
    whole: Sequence[Any],
    part: Sequence[Any],
    mesh: Mesh,
    axis: str,
    dim: int,
    sizes: tuple[int, ...] = (),
) -> Layout:
    """Return blocks in order; of fewer blocks than ranks, neighbours hold the same one."""
    n, rest = mesh.axes[axis], [d for d in range(len(whole)) if d != dim]
    same_rank = len(whole) == len(part) and dim < len(whole)
    if not same_rank or any(whole[d] != part[d] for d in rest):
        raise _misfit(name, whole, part, f"declare how it is sharded; Shard({dim}) it is not")
    share = ratio(whole[dim], part[dim])
    count = int(share) if share is not None and share.denominator == 1 else 0
    packed = sizes or (whole[dim],)
    if not count or n % count or sum(packed) != whole[dim] or any(s % count for s in packed):
        raise _misfit(name, whole, part, f"{n} ranks along {axis!r} cannot hold such blocks")
    group_of = mesh.groups[axis].group_of
    segments = []
    for rank in range(mesh.size):
        block, start, own = group_of[rank].index(rank) * count // n, 0, []
        for size in packed:
            own.append((start + block * (size // count), size // count))
            start += size
        segments.append(tuple(own))
    text = str(Packed(dim, sizes) if len(sizes) > 1 else Shard(dim))
    return Layout(dim, tuple(segments), text if count == n else f"{text} in {count} blocks")


def listed(layouts: Mapping[str, Layout], shown: Iterable[str]) -> str:
    """Return the layouts as one line: how many there are of each, names of those ``shown``."""
    numbers = Counter(one.text for one in layouts.values())
    counted = ", ".join(f"{n} {text}" for text, n in sorted(numbers.items()))
    named = ", ".join(f"{name}: {layouts[name].text}" for name in shown)
    return counted + (f" ({named})" if named else "")
