"""How a parallel model's tensors are cut out of those of the model on one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
        also: what is cut besides, along another dimension.
    """

    dim: int | None = None
    segments: tuple[tuple[Segment, ...], ...] = ()
    text: str = "R"
    also: Layout | None = None

    @property
    def cuts(self) -> dict[int, tuple[tuple[Segment, ...], ...]]:
        """Return dimension -> per rank, the ranges that it holds."""
        rest = {} if self.also is None else self.also.cuts
        return rest if self.dim is None else {self.dim: self.segments, **rest}

    def __str__(self) -> str:
        return self.text if self.also is None else f"{self.text} {self.also}"


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
        axis = _only(axes, name)
        return _cut(name, whole, part, mesh, (axis,), declared.dim, declared.sizes)
    if declared is None:
        return _along(name, whole, part, mesh, _as_shapes_say(name, whole, part, mesh, axes))
    axes_of: dict[int, tuple[str, ...]] = {}
    for axis, placement in zip(mesh.axes, placements_on(mesh, declared, name), strict=True):
        if axis not in axes or isinstance(placement, Replicate):
            continue
        if not isinstance(placement, Shard):
            raise _misfit(name, whole, part, "declare Replicate(), or Shard(dim)")
        axes_of[placement.dim] = (*axes_of.get(placement.dim, ()), axis)
    return _along(name, whole, part, mesh, axes_of) if axes_of else _replicated(name, whole, part)


def _as_shapes_say(
    name: str, whole: Sequence[Any], part: Sequence[Any], mesh: Mesh, axes: Sequence[str]
) -> dict[int, tuple[str, ...]]:
    """Return the axes over which each dimension that differs is sharded: those whose size fits."""
    differing = [d for d, sizes in enumerate(zip(whole, part, strict=False)) if len(set(sizes)) > 1]
    if len(whole) != len(part) or len(differing) > len(axes):
        raise _misfit(name, whole, part, "declare how it is sharded")
    shares = {d: ratio(whole[d], part[d]) for d in differing}
    if len(differing) == 1 and len(axes) > 1 and shares[differing[0]] == mesh.size:
        return {differing[0]: tuple(axes)}
    axes_of: dict[int, tuple[str, ...]] = {}
    for d, share in shares.items():
        fitting = [axis for axis in axes if share == mesh.axes[axis]] or axes
        axes_of[d] = (_only(fitting, name),)
    if len(set(axes_of.values())) < len(axes_of):
        raise _misfit(name, whole, part, "declare how it is sharded")
    return axes_of


def _along(
    name: str,
    whole: Sequence[Any],
    part: Sequence[Any],
    mesh: Mesh,
    axes_of: Mapping[int, tuple[str, ...]],
) -> Layout:
    """Return the layout of dimensions that are cut over axes, one dimension after the other."""
    own: Layout | None = None
    sizes = list(part)
    for dim, axes in axes_of.items():
        before = list(sizes)
        if not (len(whole) == len(part) and dim < len(whole)):
            raise _misfit(name, whole, part, f"declare how it is sharded; Shard({dim}) it is not")
        before[dim] = whole[dim]
        own = replace(_cut(name, before, sizes, mesh, axes, dim), also=own)
        sizes = before
    if tuple(sizes) != tuple(whole):
        raise _misfit(name, whole, part, "declare how it is sharded")
    return own or Layout()


def _checked(
    name: str, whole: Sequence[Any], part: Sequence[Any], mesh: Mesh, own: Layout
) -> Layout:
    """Return a layout, whose ranges must be as long as what every rank holds."""
    if not own.cuts:
        return _replicated(name, whole, part)
    kept = [[n for d, n in enumerate(shape) if d not in own.cuts] for shape in (whole, part)]
    fits = len(whole) == len(part) and kept[0] == kept[1] and max(own.cuts) < len(whole)
    for dim, segments in own.cuts.items() if fits else ():
        ends = [end for ranges in segments for start, n in ranges for end in (start, start + n)]
        lengths = {sum(length for _, length in ranges) for ranges in segments}
        fits &= len(segments) == mesh.size and lengths == {part[dim]}
        fits &= min(ends) >= 0 and max(ends) <= whole[dim]
    if not fits:
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
    axes: tuple[str, ...],
    dim: int,
    sizes: tuple[int, ...] = (),
) -> Layout:
    """Return blocks in order; of fewer blocks than ranks, neighbours hold the same one."""
    groups, rest = mesh.along(*axes), [d for d in range(len(whole)) if d != dim]
    n = groups.axis_size
    same_rank = len(whole) == len(part) and dim < len(whole)
    if not same_rank or any(whole[d] != part[d] for d in rest):
        raise _misfit(name, whole, part, f"declare how it is sharded; Shard({dim}) it is not")
    share = ratio(whole[dim], part[dim])
    count = int(share) if share is not None and share.denominator == 1 else 0
    packed = sizes or (whole[dim],)
    if not count or n % count or sum(packed) != whole[dim] or any(s % count for s in packed):
        raise _misfit(
            name, whole, part, f"{n} ranks along {'*'.join(axes)!r} cannot hold such blocks"
        )
    segments = []
    for rank in range(mesh.size):
        block, start, own = groups.position[rank] * count // n, 0, []
        for size in packed:
            own.append((start + block * (size // count), size // count))
            start += size
        segments.append(tuple(own))
    text = str(Packed(dim, sizes) if len(sizes) > 1 else Shard(dim))
    return Layout(dim, tuple(segments), text if count == n else f"{text} in {count} blocks")


def listed(layouts: Mapping[str, Layout], shown: Iterable[str]) -> str:
    """Return the layouts as one line: how many there are of each, names of those ``shown``."""
    numbers = Counter(map(str, layouts.values()))
    counted = ", ".join(f"{n} {text}" for text, n in sorted(numbers.items()))
    named = ", ".join(f"{name}: {layouts[name]}" for name in shown)
    return counted + (f" ({named})" if named else "")
