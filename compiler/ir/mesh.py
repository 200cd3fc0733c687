"""Meshes and replica groups: which ranks take part in which collective.

Ranks of a mesh are numbered 0 .. size - 1 in row-major order of its axes. A group name in a graph
denotes *replica groups*: a partition of all ranks into groups of one size, each of which runs the
collective among its own members. Every axis name denotes the groups of ranks that differ in that
axis alone.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, SupportsIndex

from compiler.errors import MeshError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # noqa: TID251
    from torch.distributed.device_mesh import DeviceMesh  # noqa: TID251


MAX_RANKS = 1 << 14
"""Replica groups are lists of ranks, and their time and memory grow with them."""


@dataclass(frozen=True)
class ReplicaGroups:
    """A partition of the ranks 0 .. n - 1 into groups of one size; two names may denote equal ones.

    The order of ranks inside a group is the order of shards in gathers and scatters. The groups
    themselves are kept sorted, so that equal partitions compare equal.
    """

    ranks: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(name: str, groups: Iterable[Sequence[int]], world_size: int) -> ReplicaGroups:
        """Check ``groups`` and sort them.

        Raises:
            MeshError: these are not lists of ranks; a rank is missing, repeated or out of range;
                or group sizes differ.
        """
        try:
            ranks = tuple(sorted(tuple(map(operator.index, group)) for group in groups))
        except TypeError:
            raise MeshError(
                f"the replica groups of {name!r} must be lists of ranks",
                found=repr(groups),
                remedy="list the ranks of each group, for example [[0, 1], [2, 3]]",
            ) from None
        listed = sorted(itertools.chain.from_iterable(ranks))
        if listed != list(range(world_size)):
            raise MeshError(
                f"the replica groups of {name!r} do not list every rank exactly once",
                found=f"ranks {listed} for a mesh of {world_size}",
                remedy=f"give groups that partition the ranks 0 .. {world_size - 1}",
            )
        if len({len(group) for group in ranks}) != 1:
            raise MeshError(
                f"the replica groups of {name!r} differ in size",
                found=f"sizes {[len(group) for group in ranks]}",
                remedy="give groups of one size",
            )
        return ReplicaGroups(ranks)

    @cached_property
    def _hash(self) -> int:
        return hash(self.ranks)

    def __hash__(self) -> int:
        return self._hash

    @property
    def axis_size(self) -> int:
        """Return the number of ranks in each group."""
        return len(self.ranks[0])

    @cached_property
    def group_of(self) -> dict[int, tuple[int, ...]]:
        """Return rank -> the members of its group, in shard order."""
        return {rank: group for group in self.ranks for rank in group}

    @cached_property
    def position(self) -> dict[int, int]:
        """Rank -> its place in its group."""
        return {rank: i for group in self.ranks for i, rank in enumerate(group)}


@lru_cache(maxsize=1 << 8)
def product(first: ReplicaGroups, second: ReplicaGroups) -> ReplicaGroups | None:
    """Return the groups over which one reduction does what two in sequence do, or None.

    They exist where the two are orthogonal: reducing over ``first``, then over ``second``, each
    rank's tensor reaches every rank of one set, and reaches it once.
    """
    met: set[tuple[int, ...]] = set()
    for group in second.ranks:
        reached = sorted(r for member in group for r in first.group_of[member])
        if len(set(reached)) != len(reached):
            return None
        met.add(tuple(reached))
    listed = sorted(itertools.chain.from_iterable(met))
    return ReplicaGroups(tuple(sorted(met))) if listed == sorted(first.group_of) else None


Axes = tuple[tuple[str, int], ...]


@lru_cache(maxsize=1 << 8)
def _along(axes: Axes, names: frozenset[str]) -> ReplicaGroups:
    members: dict[tuple[int, ...], list[int]] = {}
    kept = [name not in names for name, _ in axes]
    for rank, where in enumerate(itertools.product(*(range(n) for _, n in axes))):
        members.setdefault(tuple(itertools.compress(where, kept)), []).append(rank)
    return ReplicaGroups(tuple(sorted(map(tuple, members.values()))))


@lru_cache(maxsize=1 << 8)
def _axes_of(axes: Axes, groups: ReplicaGroups) -> tuple[str, ...] | None:
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            size, names = math.prod(n for _, n in chosen), tuple(name for name, _ in chosen)
            if size == groups.axis_size and _along(axes, frozenset(names)) == groups:
                return names
    return None


def _check_names(what: str, names: object, example: str) -> None:
    if not isinstance(names, Mapping):
        raise MeshError(f"{what} must be a mapping of names", found=repr(names), remedy=example)
    if others := [name for name in names if not isinstance(name, str)]:
        raise MeshError(f"{what} must be named by strings", found=repr(others[0]), remedy=example)


def check_mesh(mesh: object) -> None:
    """Raise MeshError unless ``given`` is a mesh."""
    if not isinstance(mesh, Mesh):
        raise MeshError(
            "mesh= must be a Mesh",
            found=repr(mesh),
            remedy='pass a Mesh, for example Mesh({"tp": 8})',
        )


class Mesh:
    """Named axes, and the replica groups behind every group name in a graph.

    Args:
        axes: axis name -> axis size, outermost first.
        groups: further group names -> replica groups as lists of ranks, or a name that the mesh
            knows: an axis, or ``a*b`` for the groups of both. Names of axes may be listed too, if
            they denote the same groups.

    Raises:
        MeshError: axes or groups that are not a mapping of names, an axis size that is not an
            integer of 1 or more, or groups that do not partition the ranks.
    """

    def __init__(
        self,
        axes: Mapping[str, int],
        groups: Mapping[str, str | Iterable[Sequence[int]]] | None = None,
    ) -> None:
        _check_names("the axes of a mesh", axes, 'for example Mesh({"tp": 8})')
        _check_names("groups=", groups or {}, 'for example groups={"pairs": [[0, 1], [2, 3]]}')
        if not axes:
            raise MeshError("a mesh needs at least one axis", remedy='for example Mesh({"tp": 8})')
        for name, axis_size in axes.items():
            if not name:
                raise MeshError("an axis of a mesh must have a name", found=repr(dict(axes)))
            if not isinstance(axis_size, SupportsIndex) or isinstance(axis_size, bool):
                raise MeshError(
                    f"the size of axis {name!r} must be an integer",
                    found=repr(axis_size),
                    remedy="a size of >= 1",
                )
            if operator.index(axis_size) < 1:
                raise MeshError(
                    f"axis {name!r} has no ranks", found=str(axis_size), remedy="a size of >= 1"
                )
        self.axes: dict[str, int] = dict(axes)
        if self.size > MAX_RANKS:
            raise MeshError(
                f"a mesh has at most {MAX_RANKS:,} ranks",
                found=f"{self.size:,}" if self.size < 10**30 else "more than 10**30",
                remedy="name the ranks that communicate; all groups of one size are alike",
            )
        self.groups: dict[str, ReplicaGroups] = {name: self.along(name) for name in axes}
        for name, listed in (groups or {}).items():
            if isinstance(listed, str):
                replica_groups = self.group(listed)
            else:
                replica_groups = ReplicaGroups.of(name, listed, self.size)
            if self.groups.setdefault(name, replica_groups) != replica_groups:
                raise MeshError(
                    f"group {name!r} is also an axis and denotes other ranks",
                    found=f"{replica_groups.ranks}, axis {self.groups[name].ranks}",
                    remedy="rename the group or the axis",
                )

    @property
    def size(self) -> int:
        """Return the world size: the number of ranks."""
        return math.prod(self.axes.values())

    @property
    def coordinates(self) -> Iterable[tuple[int, ...]]:
        """Indices along all axes, rank by rank."""
        return itertools.product(*map(range, self.axes.values()))

    def along(self, *names: str) -> ReplicaGroups:
        """Return the groups of the ranks that agree in every axis but ``names``."""
        return _along(tuple(self.axes.items()), frozenset(names))

    def group(self, name: str) -> ReplicaGroups:
        """Return the groups that ``name`` denotes; ``a*b`` those of both, if they are orthogonal.

        Raises:
            MeshError: the mesh knows no such group.
        """
        if name not in self.groups:
            first, _, rest = name.rpartition("*")
            both = product(self.group(first), self.group(rest)) if first and rest else None
            if both is not None:
                return both
            axis = next(iter(self.axes))
            raise MeshError(
                f"group name {name!r} does not resolve",
                found=f"the mesh knows {sorted(self.groups)}",
                remedy="name its ranks, for example those of an axis: "
                f"Mesh(…, groups={{{name!r}: {axis!r}}}), or --group {name}={axis}",
            )
        return self.groups[name]

    def axes_of(self, groups: str | ReplicaGroups) -> tuple[str, ...] | None:
        """Return the axes that ``groups`` span, or None if they are not a product of axes."""
        wanted = self.group(groups) if isinstance(groups, str) else groups
        return _axes_of(tuple(self.axes.items()), wanted)

    def name_of(self, groups: ReplicaGroups) -> str:
        """Return the first name of ``groups``, in any order of ranks; empty if there is none."""
        wanted = set(map(frozenset, groups.ranks))
        named = (name for name, g in self.groups.items() if wanted == set(map(frozenset, g.ranks)))
        return next(named, "")

    def including(self, groups: ReplicaGroups, name: str) -> tuple[Mesh, str]:
        """Return a mesh with a name for ``groups``, and that name.

        Order within groups does not count. A name that this mesh has is used; else the axes that
        span the groups give it, ``dp*tp``; else it is ``name``.
        """
        if existing := self.name_of(groups):
            return self, existing
        spanned = self.axes_of(groups)
        name = "*".join(spanned) if spanned else name
        assert name not in self.groups, f"group {name!r} denotes other ranks"
        mesh = Mesh(self.axes)
        mesh.groups = {**self.groups, name: groups}
        return mesh, name

    def aliases(self, name: str) -> str:
        """Return the first name of the ranks behind ``name``: an axis, if one spans them."""
        wanted = self.group(name)
        return next(
            (existing for existing, groups in self.groups.items() if groups == wanted), name
        )

    def extends(self, other: Mesh) -> bool:
        """Return whether it has the axes of ``other``, in their order, and all its groups."""
        (axes, groups), (same, required) = self._key, other._key
        return axes == same and required <= groups

    @property
    def _key(self) -> tuple[tuple[tuple[str, int], ...], frozenset[tuple[str, ReplicaGroups]]]:
        """Return axes, in the order in which placements are listed, and groups, in any order."""
        return tuple(self.axes.items()), frozenset(self.groups.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mesh) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        extra = {n: list(map(list, g.ranks)) for n, g in self.groups.items() if n not in self.axes}
        return f"Mesh({self.axes}{f', groups={extra}' if extra else ''})"

    def __str__(self) -> str:
        return "<" + ", ".join(f"{name} = {n}" for name, n in self.axes.items()) + ">"

    @staticmethod
    def from_process_group(group: ProcessGroup, axis: str = "tp") -> Mesh:
        """Return a one-axis mesh of the ranks of ``group``, numbered as in the group."""
        members = [list(range(group.size()))]
        return Mesh({axis: group.size()}, groups={group.group_name: members})

    @staticmethod
    def from_device_mesh(device_mesh: DeviceMesh) -> Mesh:
        """Return the mesh of a ``DeviceMesh``; its unnamed dimensions become ``dim0`` and so on."""
        sizes = tuple(device_mesh.mesh.shape)
        names = device_mesh.mesh_dim_names or tuple(f"dim{i}" for i in range(len(sizes)))
        plain = Mesh(dict(zip(names, sizes, strict=True)))
        groups = {
            str(device_mesh.get_group(i).group_name): plain.groups[name].ranks
            for i, name in enumerate(names)
        }
        return Mesh(plain.axes, groups=groups)
