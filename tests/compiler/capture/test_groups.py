import pytest

from compiler.capture.groups import built_mesh, partition, resolve
from compiler.capture.rank_traces import Description, Ranks
from compiler.errors import MeshError
from compiler.ir.mesh import Mesh, ReplicaGroups

ROWS = ((0, 1, 2, 3), (4, 5, 6, 7))
COLUMNS = ((0, 4), (1, 5), (2, 6), (3, 7))
ALL = (tuple(range(8)),)
IRREGULAR = ((0, 1), (2, 4), (3, 5), (6, 7))


def groups(ranks):
    return ReplicaGroups.of("g", ranks, sum(map(len, ranks)))


@pytest.mark.parametrize("ranks", [ROWS, COLUMNS, ALL])
def test_one_rank_tells_a_regular_partition(ranks):
    found, inferred = partition("g", {0: ranks[0]}, 8)
    assert found == groups(ranks)
    assert inferred == (len(ranks) > 1)


def test_all_ranks_tell_any_partition():
    known = {rank: group for group in IRREGULAR for rank in group}
    assert partition("g", known, 8) == (groups(IRREGULAR), False)


@pytest.mark.parametrize("known", [{0: (0, 1), 2: (2, 4)}, {0: (0, 3, 4)}, {0: (1, 0)}])
def test_an_irregular_partition_is_not_guessed(known):
    with pytest.raises(MeshError, match="cannot be told from one rank"):
        partition("g", known, 8)


def test_groups_that_overlap_are_refused():
    with pytest.raises(MeshError, match="exactly once"):
        partition("g", {0: (0, 1), 1: (1, 2), 2: (2, 0)}, 3)


def test_one_group_of_all_ranks_is_one_axis():
    assert built_mesh({"0": groups(ALL)}, {}, 8) == Mesh({"tp": 8})
    assert built_mesh({"0": groups(ALL)}, {"0": "ep"}, 8) == Mesh({"ep": 8})


def test_orthogonal_groups_are_axes_in_the_order_of_ranks():
    found = {"5": groups(ROWS), "9": groups(COLUMNS)}
    assert list(built_mesh(found, {"5": "tp", "9": "dp"}, 8).axes.items()) == [("dp", 2), ("tp", 4)]
    assert list(built_mesh(found, {}, 8).axes.items()) == [("g1", 2), ("g0", 4)]


def test_a_product_of_axes_is_a_group():
    mesh = built_mesh({"1": groups(ALL), "5": groups(ROWS), "9": groups(COLUMNS)}, {}, 8)
    assert sorted(mesh.axes.values()) == [2, 4]
    assert mesh.axes_of("group_1") == tuple(mesh.axes)


def test_dimensions_that_no_group_spans_are_axes_of_their_own():
    assert built_mesh({"5": groups(ROWS)}, {}, 8).axes == {"rest": 2, "tp": 4}
    assert built_mesh({"9": groups(COLUMNS)}, {}, 8).axes == {"tp": 2, "rest": 4}


def test_irregular_groups_are_explicit():
    mesh = built_mesh({"7": groups(IRREGULAR)}, {}, 8)
    assert mesh.axes == {"world": 8}
    assert mesh.group("group_7") == groups(IRREGULAR)


def test_no_group_at_all():
    assert built_mesh({}, {}, 1) == Mesh({"tp": 1})


def ranks(groups, *, size, rank=0):
    """Ranks of the mesh, each with a collective over its one group."""
    traced = {r: Description((), (), named, {}, tuple(named)) for r, named in groups.items()}
    return Ranks(size, rank, traced, {r: r for r in range(size)})


def test_names_that_differ_between_ranks_are_one_group():
    groups = {0: {"a": (0, 1)}, 1: {"a": (0, 1)}, 2: {"b": (2, 3)}, 3: {"b": (2, 3)}}
    found = resolve(ranks(groups, size=4, rank=2), Mesh({"dp": 2, "tp": 2}))
    assert found.names == {"b": "tp"}
    assert found.assumed == ()


def test_what_one_rank_infers_of_others_is_listed():
    found = resolve(ranks({0: {"a": (0, 1)}}, size=4), Mesh({"dp": 2, "tp": 2}))
    assert found.assumed == ("group 'a': ranks [0, 1] repeat over 4 ranks",)


def test_a_mesh_without_the_group_is_refused():
    with pytest.raises(MeshError, match="must have a group of the ranks behind process group 'a'"):
        resolve(ranks({0: {"a": (0, 1)}}, size=4), Mesh({"tp": 4}))
