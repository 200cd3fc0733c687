"""Meshes: groups of axes, every refusal, names of groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from compiler.errors import MeshError
from compiler.ir.mesh import Mesh, ReplicaGroups


def test_axes_are_groups_in_row_major_order() -> None:
    mesh = Mesh({"dp": 2, "tp": 3})
    assert mesh.size == 6
    assert mesh.group("tp").ranks == ((0, 1, 2), (3, 4, 5))
    assert mesh.group("dp").ranks == ((0, 3), (1, 4), (2, 5))
    assert mesh.along("dp", "tp").ranks == ((0, 1, 2, 3, 4, 5),)
    assert mesh.along().ranks == ((0,), (1,), (2,), (3,), (4,), (5,))
    assert (mesh.group("tp").axis_size, mesh.group("dp").axis_size) == (3, 2)
    assert mesh.group("tp").group_of[4] == (3, 4, 5)


def test_groups_keep_the_order_of_shards_but_not_of_groups() -> None:
    listed = ReplicaGroups.of("g", [[3, 2], [0, 1]], 4)
    assert listed.ranks == ((0, 1), (3, 2))
    assert listed == ReplicaGroups.of("g", [[0, 1], [3, 2]], 4)
    assert listed != ReplicaGroups.of("g", [[0, 1], [2, 3]], 4)


def test_names_of_the_same_ranks() -> None:
    mesh = Mesh({"dp": 2, "tp": 2}, {"7": [[0, 1], [2, 3]], "all": [[0, 1, 2, 3]],
                                     "8": [[0, 1, 2, 3]], "odd": [[0, 3], [1, 2]]})  # fmt: skip
    assert [mesh.aliases(n) for n in ("tp", "7", "8", "odd")] == ["tp", "tp", "all", "odd"]
    assert [mesh.axes_of(n) for n in ("tp", "7", "8", "odd")] == [
        ("tp",), ("tp",), ("dp", "tp"), None
    ]  # fmt: skip


def test_axes_of_one_rank_span_nothing() -> None:
    assert Mesh({"tp": 4, "pp": 1}).axes_of("pp") == ()


def test_equality_hash_and_text() -> None:
    mesh = Mesh({"dp": 2, "tp": 2}, {"x": [[0, 3], [1, 2]]})
    same = Mesh({"dp": 2, "tp": 2}, {"x": [(1, 2), (0, 3)], "tp": [[0, 1], [2, 3]]})
    assert mesh == same
    assert hash(mesh) == hash(same)
    assert mesh != Mesh({"dp": 2, "tp": 2})
    assert mesh != "mesh"
    assert repr(mesh) == "Mesh({'dp': 2, 'tp': 2}, groups={'x': [[0, 3], [1, 2]]})"
    assert str(mesh) == "<dp = 2, tp = 2>"


def test_the_order_of_axes_counts_and_that_of_groups_does_not() -> None:
    pairs, both = {"pairs": [[0, 3], [1, 2]]}, {"both": [[0, 1, 2, 3]]}
    mesh, other = (Mesh({"dp": 2, "tp": 2}, g) for g in (pairs | both, both | pairs))
    assert (mesh, hash(mesh)) == (other, hash(other))
    assert mesh.extends(other)
    assert mesh.extends(Mesh({"dp": 2, "tp": 2}, both))
    assert not Mesh({"dp": 2, "tp": 2}, both).extends(mesh)
    line, turned = Mesh({"one": 1, "tp": 2}), Mesh({"tp": 2, "one": 1})
    assert line.groups == turned.groups
    assert line != turned
    assert not turned.extends(line)


@pytest.mark.parametrize(
    ("axes", "groups", "text"),
    [
        ({}, {}, 'a mesh needs at least one axis\n  remedy: for example Mesh({"tp": 8})'),
        ({"tp": 0}, {}, "axis 'tp' has no ranks\n  found: 0\n  remedy: a size of >= 1"),
        (
            {"tp": 4},
            {"g": [[0, 1], [1, 2]]},
            "the replica groups of 'g' do not list every rank exactly once\n"
            "  found: ranks [0, 1, 1, 2] for a mesh of 4\n"
            "  remedy: give groups that partition the ranks 0 .. 3",
        ),
        (
            {"tp": 2},
            {"g": [[0, 1], [2, 3]]},
            "the replica groups of 'g' do not list every rank exactly once\n"
            "  found: ranks [0, 1, 2, 3] for a mesh of 2\n"
            "  remedy: give groups that partition the ranks 0 .. 1",
        ),
        (
            {"tp": 4},
            {"g": [[0, 1, 2], [3]]},
            "the replica groups of 'g' differ in size\n"
            "  found: sizes [3, 1]\n"
            "  remedy: give groups of one size",
        ),
        (
            {"dp": 2, "tp": 2},
            {"tp": [[0, 2], [1, 3]]},
            "group 'tp' is also an axis and denotes other ranks\n"
            "  found: ((0, 2), (1, 3)), axis ((0, 1), (2, 3))\n"
            "  remedy: rename the group or the axis",
        ),
    ],
)
def test_errors(axes: dict[str, int], groups: dict[str, list[list[int]]], text: str) -> None:
    with pytest.raises(MeshError) as caught:
        Mesh(axes, groups)
    assert str(caught.value) == text


AXES = '  remedy: for example Mesh({"tp": 8})'


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        ("tp", f"the axes of a mesh must be a mapping of names\n  found: 'tp'\n{AXES}"),
        (8, f"the axes of a mesh must be a mapping of names\n  found: 8\n{AXES}"),
        (
            [("tp", 8)],
            f"the axes of a mesh must be a mapping of names\n  found: [('tp', 8)]\n{AXES}",
        ),
        ({8: 8}, f"the axes of a mesh must be named by strings\n  found: 8\n{AXES}"),
        (
            {"tp": "8"},
            "the size of axis 'tp' must be an integer\n  found: '8'\n  remedy: a size of >= 1",
        ),
        (
            {"tp": 8.0},
            "the size of axis 'tp' must be an integer\n  found: 8.0\n  remedy: a size of >= 1",
        ),
        (
            {"tp": None},
            "the size of axis 'tp' must be an integer\n  found: None\n  remedy: a size of >= 1",
        ),
    ],
)
def test_axes_that_are_none(axes: Any, text: str) -> None:
    with pytest.raises(MeshError) as caught:
        Mesh(axes)
    assert str(caught.value) == text


@pytest.mark.parametrize("listed", [[0, 1], [["a", "b"]], None, [[0.5, 1]]])
def test_groups_that_are_no_lists_of_ranks(listed: Any) -> None:
    with pytest.raises(MeshError) as caught:
        Mesh({"tp": 2}, {"g": listed})
    assert str(caught.value) == (
        "the replica groups of 'g' must be lists of ranks\n"
        f"  found: {listed!r}\n"
        "  remedy: list the ranks of each group, for example [[0, 1], [2, 3]]"
    )


def test_groups_without_names() -> None:
    with pytest.raises(MeshError) as caught:
        Mesh({"tp": 2}, [[0, 1]])  # type: ignore[arg-type]
    assert str(caught.value) == (
        "groups= must be a mapping of names\n"
        "  found: [[0, 1]]\n"
        '  remedy: for example groups={"pairs": [[0, 1], [2, 3]]}'
    )


def test_ranks_may_be_any_integers() -> None:
    assert Mesh({"tp": 4}, {"g": torch.arange(4).view(2, 2)}).group("g").ranks == ((0, 1), (2, 3))  # type: ignore[dict-item]


def test_a_group_may_be_named_by_axes() -> None:
    mesh = Mesh({"dp": 2, "tp": 2}, groups={"0": "tp", "1": "dp*tp", "2": "0"})
    assert mesh.group("0") == mesh.group("2") == mesh.group("tp")
    assert mesh.group("1").ranks == ((0, 1, 2, 3),)
    with pytest.raises(MeshError, match="group name 'pp' does not resolve"):
        Mesh({"tp": 2}, groups={"0": "pp"})


@pytest.mark.parametrize("read", [Mesh.group, Mesh.axes_of, Mesh.aliases])
def test_unknown_name(read: object) -> None:
    with pytest.raises(MeshError) as caught:
        read(Mesh({"tp": 2}), "pp")  # type: ignore[operator]
    assert str(caught.value) == (
        "group name 'pp' does not resolve\n"
        "  found: the mesh knows ['tp']\n"
        "  remedy: name its ranks, for example those of an axis: "
        "Mesh(…, groups={'pp': 'tp'}), or --group pp=tp"
    )


@pytest.fixture
def fake_world() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("fake_world")
def test_from_process_groups() -> None:
    world = dist.group.WORLD
    assert world is not None
    mesh = Mesh.from_process_group(world, "ep")
    assert mesh.axes == {"ep": 8}
    assert mesh.group(world.group_name) == mesh.group("ep")


@pytest.mark.usefixtures("fake_world")
@pytest.mark.parametrize("names", [("dp", "tp"), None])
def test_from_device_mesh(names: tuple[str, str] | None) -> None:
    device_mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=names)
    mesh = Mesh.from_device_mesh(device_mesh)
    outer, inner = names or ("dim0", "dim1")
    assert mesh.axes == {outer: 2, inner: 4}
    for i, axis in enumerate((outer, inner)):
        assert mesh.aliases(device_mesh.get_group(i).group_name) == axis


def test_products_of_orthogonal_groups_have_names() -> None:
    mesh = Mesh({"dp": 2, "tp": 2}, groups={"pairs": [[0, 3], [1, 2]]})
    assert mesh.group("dp*tp").ranks == ((0, 1, 2, 3),)
    assert mesh.group("tp*dp") == mesh.group("dp*tp") == mesh.group("pairs*tp")
    assert mesh.aliases("dp*tp") == "dp*tp"
    for name in ("tp*tp", "tp*", "*tp", "dp*pp"):
        with pytest.raises(MeshError, match="does not resolve"):
            mesh.group(name)
    larger = Mesh({"pp": 2, "dp": 2, "tp": 2})
    assert larger.group("pp*dp*tp").ranks == (tuple(range(8)),)
    assert larger.group("pp*tp") == larger.along("pp", "tp")
