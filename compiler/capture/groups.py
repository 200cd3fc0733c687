"""Which ranks stand behind the process-group names of a traced graph, and the mesh they form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed import distributed_c10d as c10d

from compiler.capture.rank_traces import Ranks
from compiler.errors import MeshError
from compiler.ir.mesh import Mesh, ReplicaGroups

DEFAULT_AXIS = "tp"
UNSAID = ("", "undefined", "default_pg", "mesh_default")
"""Group descriptions that torch itself gives."""


@dataclass(frozen=True)
class Resolved:
    """The groups of a graph on one mesh.

    Attributes:
        mesh: resolves every name below.
        names: this process's group name -> name on the mesh.
        assumed: what was inferred about ranks that could not be asked.
    """

    mesh: Mesh
    names: Mapping[str, str]
    assumed: tuple[str, ...]


def members(name: str) -> tuple[int, ...] | None:
    """Return the ranks of the process group ``name`` in the default group, None without it."""
    group = process_group(name)
    return None if group is None else tuple(dist.get_process_group_ranks(group))


def process_group(name: str) -> ProcessGroup | None:
    """Return this process's group of that name."""
    if not dist.is_initialized():
        return None
    find: Callable[[str], ProcessGroup] = vars(c10d)["_resolve_process_group"]
    try:
        return find(name)
    except (RuntimeError, ValueError, KeyError):
        return None


def sizes(mesh: Mesh | None) -> tuple[Callable[[str], int], str]:
    """Return how many ranks a group of some name has, and the name of the group of all ranks.

    A name that neither ``mesh`` nor this process knows raises MeshError.
    """

    def ranks_of(name: str) -> int:
        if mesh is not None and (name in mesh.groups or process_group(name) is None):
            return mesh.group(name).axis_size
        if (listed := members(name)) is None:
            raise unresolved(name)
        return len(listed)

    everyone = str(dist.group.WORLD.group_name) if dist.group.WORLD is not None else ""
    return ranks_of, everyone or (next(iter(mesh.axes)) if mesh and len(mesh.axes) == 1 else "")


def unresolved(name: str) -> MeshError:
    """Return the error that a group has no name here."""
    return MeshError(
        f"group name {name!r} does not resolve",
        found="no process group of that name here, and no mesh that has it",
        remedy="create the process groups before capture, or pass mesh= with this name",
    )


def label(name: str) -> str:
    """Return the mesh dimension of a process group, or what its creator called it, or nothing."""
    group = process_group(name)
    description = str(getattr(group, "group_desc", "") or "")
    return "" if description in UNSAID else description.removeprefix("mesh_")


def resolve(where: Ranks, mesh: Mesh | None) -> Resolved:
    """Put the ranks' own group names on ``mesh``, or on one that is built from the groups.

    Raises:
        MeshError: groups that do not partition the ranks, or that the mesh does not have.
    """
    mine = where.descriptions[where.rank]
    replica_groups: dict[str, ReplicaGroups] = {}
    assumed: list[str] = []
    names: dict[str, str] = {}
    for place, name in enumerate(mine.uses):
        if name in names or name in replica_groups:
            continue
        if name not in where.groups[where.rank]:
            if mesh is None or name not in mesh.groups:
                called = f" ({mine.labels[name]})" if mine.labels.get(name) else ""
                raise MeshError(
                    f"process group {name!r}{called} has ranks outside the group that compiles",
                    found=f"the model uses it; {where.size} ranks compile",
                    remedy="pass group= with all ranks that the model communicates with, or leave "
                    "it out: then it is all ranks of the job",
                )
            names[name] = mesh.aliases(name)
            continue
        uses = {rank: description.uses[place] for rank, description in where.descriptions.items()}
        group_of = {r: where.groups[r][u] for r, u in uses.items() if u in where.groups[r]}
        replica_groups[name], inferred = partition(name, group_of, where.size)
        if inferred:
            ranks = list(group_of[where.rank])
            assumed.append(f"group {name!r}: ranks {ranks} repeat over {where.size} ranks")
    mesh = mesh or built_mesh(replica_groups, mine.labels, where.size)
    for name, groups in replica_groups.items():
        names[name] = _name_on(mesh, name, groups)
    return Resolved(mesh, names, tuple(assumed))


def partition(
    name: str, group_of: Mapping[int, tuple[int, ...]], size: int
) -> tuple[ReplicaGroups, bool]:
    """Return the replica groups that ranks' groups belong to, and whether others are inferred.

    Ranks not asked are taken to form groups of the same stride, block after block.

    Raises:
        MeshError: the groups do not partition the ranks, or do not repeat in that way.
    """
    if set(range(size)) <= set().union(*group_of.values()):
        return ReplicaGroups.of(name, set(group_of.values()), size), False
    repeated = _repeated(next(iter(group_of.values())), size)
    if not set(group_of.values()) <= repeated:
        raise MeshError(
            f"the replica groups of {name!r} cannot be told from one rank",
            found=f"{sorted(set(group_of.values()))} of {size} ranks",
            remedy="pass mesh= with groups={name: [[ranks], …]}",
        )
    return ReplicaGroups.of(name, repeated, size), True


def _repeated(group: tuple[int, ...], size: int) -> set[tuple[int, ...]]:
    """Return the groups of the stride of ``group``, block after block; none if they do not fit."""
    step = _step(group)
    block = step * len(group)
    if step < 1 or size % block:
        return set()
    return {
        tuple(range(start, start + block, step))
        for corner in range(0, size, block)
        for start in range(corner, corner + step)
    }


def _step(group: tuple[int, ...]) -> int:
    return group[1] - group[0] if len(group) > 1 else 1


def _name_on(mesh: Mesh, name: str, wanted: ReplicaGroups) -> str:
    for name_on_mesh, groups in mesh.groups.items():
        if groups == wanted:
            return name_on_mesh
    raise MeshError(
        f"the mesh must have a group of the ranks behind process group {name!r}",
        found=f"{[list(g) for g in wanted.ranks]}; the mesh is {mesh!r}",
        remedy="pass the mesh the model was sharded on, or leave mesh= out",
    )


def built_mesh(
    replica_groups: Mapping[str, ReplicaGroups], labels: Mapping[str, str], size: int
) -> Mesh:
    """Build a mesh with an axis for every group that is a dimension of one grid of the ranks.

    Groups that are not (a product of axes, or no regular pattern) become explicit groups. Grid
    dimensions that no group spans become axes ``rest``, ``rest2``, ….
    """
    distinct: dict[ReplicaGroups, str] = {}
    for name, groups in replica_groups.items():
        distinct.setdefault(groups, name)
    in_order = sorted(distinct, key=lambda groups: groups.axis_size)
    axes: list[ReplicaGroups] = []
    for groups in in_order:
        if groups.axis_size > 1 and _grid([*axes, groups], size) is not None:
            axes.append(groups)
    called: dict[ReplicaGroups, str] = {}
    for i, groups in enumerate(g for g in distinct if g in axes):
        default = DEFAULT_AXIS if len(axes) == 1 else f"g{i}"
        called[groups] = _fresh(labels.get(distinct[groups], "") or default, called.values())
    sizes: dict[str, int] = {}
    for spanned, extent in _grid(axes, size) or []:
        rest = _fresh("rest", sizes) if axes else "world" if len(replica_groups) else DEFAULT_AXIS
        sizes[rest if spanned is None else called[spanned]] = extent
    plain = Mesh(sizes or {DEFAULT_AXIS: 1})
    others = {
        _fresh(labels.get(name, "") or f"group_{name}", sizes): groups.ranks
        for groups, name in distinct.items()
        if groups not in plain.groups.values()
    }
    return Mesh(plain.axes, groups=others)


def _fresh(name: str, taken: Iterable[str]) -> str:
    used = set(taken)
    numbered = (f"{name}{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain((name,), numbered) if n not in used)


def _grid(
    axes: Sequence[ReplicaGroups], size: int
) -> list[tuple[ReplicaGroups | None, int]] | None:
    """Return dimensions of a row-major grid of ranks, outermost first, with ``axes`` among them."""
    strided = {groups: _stride(groups) for groups in axes}
    if None in strided.values():
        return None
    extent = size
    grid: list[tuple[ReplicaGroups | None, int]] = []
    for groups, stride in sorted(strided.items(), key=lambda item: -(item[1] or 0)):
        assert stride is not None, "irregular groups were sorted out above"
        block = stride * groups.axis_size
        if extent % block:
            return None
        grid += [(None, extent // block)] if extent > block else []
        grid.append((groups, groups.axis_size))
        extent = stride
    return [*grid, (None, extent)] if extent > 1 or not grid else grid


def _stride(groups: ReplicaGroups) -> int | None:
    """Return the distance of neighbours if all groups are one grid dimension, else None."""
    first = groups.ranks[0]
    return _step(first) if _repeated(first, len(groups.group_of)) == set(groups.ranks) else None
