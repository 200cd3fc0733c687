"""How ranks hold tensors: as declared, or as shapes say."""

import pytest

from compiler.check.single_device.layouts import Layout, Packed, layout, listed
from compiler.errors import PlacementError
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Partial, Replicate, Shard

FOUR, GRID = Mesh({"tp": 4}), Mesh({"dp": 2, "tp": 4})


def test_equal_shapes_are_replicated():
    assert layout("w", (8, 2), (8, 2), FOUR) == Layout()


def test_a_smaller_dimension_is_sharded():
    own = layout("w", (8, 2), (2, 2), FOUR)
    assert own.dim == 0
    assert own.segments == (((0, 2),), ((2, 2),), ((4, 2),), ((6, 2),))
    assert own.text == "S(0)"


def test_neighbours_hold_one_block_where_there_are_fewer_than_ranks():
    own = layout("k", (4, 2), (2, 2), FOUR)
    assert own.segments == (((0, 2),), ((0, 2),), ((2, 2),), ((2, 2),))
    assert own.text == "S(0) in 2 blocks"


def test_parts_are_cut_each_by_itself():
    own = layout("both", (16, 2), (4, 2), FOUR, Packed(0, (8, 8)))
    assert own.segments[1] == ((2, 2), (10, 2))
    assert listed({"both": own, "w": Layout()}, ["both"]) == (
        "1 R, 1 S(0) of each of 2 parts (both: S(0) of each of 2 parts)"
    )


def test_the_axis_whose_size_fits_is_taken():
    own = layout("w", (8, 2), (2, 2), GRID)
    assert own.segments[:4] == own.segments[4:]
    declared = layout("w", (8, 2), (4, 2), GRID, {"dp": Shard(0)})
    assert declared.segments == (((0, 4),),) * 4 + (((4, 4),),) * 4


def test_two_dimensions_are_cut_over_the_axes_that_fit():
    own = layout("w", (8, 8), (2, 4), GRID)
    assert str(own) == "S(1) S(0)"
    assert own.cuts[1] == (((0, 4),),) * 4 + (((4, 4),),) * 4
    assert own.cuts[0][:4] == own.cuts[0][4:] == (((0, 2),), ((2, 2),), ((4, 2),), ((6, 2),))
    assert layout("w", (8, 8), (2, 4), GRID, {"dp": Shard(1), "tp": Shard(0)}).cuts == own.cuts
    assert layout("w", (8, 8), (2, 4), GRID, own) == own


def test_one_dimension_is_cut_over_all_axes_from_the_outermost_in():
    for declared in (None, {"dp": Shard(0), "tp": Shard(0)}):
        own = layout("w", (8, 2), (1, 2), GRID, declared)
        assert own.cuts == {0: tuple(((r, 1),) for r in range(8))}


@pytest.mark.parametrize(
    ("whole", "part", "declared"),
    [((8, 8, 8), (2, 4, 4), None), ((8, 8), (2, 2), None), ((8, 8), (2, 4), {"tp": Shard(0)}),
     ((8, 8), (2, 4), Layout(0, (((0, 2),),) * 8))],
)  # fmt: skip
def test_shapes_that_do_not_fit_two_axes(whole, part, declared):
    with pytest.raises(PlacementError, match="do not fit"):
        layout("w", whole, part, GRID, declared)


@pytest.mark.parametrize(
    ("whole", "part", "declared"),
    [
        ((8, 2), (2, 1), None),
        ((8, 2), (8,), None),
        ((8, 2), (2, 2), Replicate()),
        ((8, 2), (2, 2), Shard(1)),
        ((8, 2), (8, 2), Partial()),
        ((9, 2), (3, 2), None),
        ((16, 2), (4, 2), Packed(0, (8, 4))),
        ((8, 2), (4, 2), Packed(0, (7, 1))),
        ((8, 2), (2, 2), Layout(0, (((0, 2),),) * 3)),
        ((8, 2), (2, 2), Layout(0, (((7, 2),),) * 4)),
        ((8, 2), (2, 2), Layout(0, (((0, 1),),) * 4)),
        ((8, 2), (2, 2), Layout()),
    ],
)
def test_shapes_that_do_not_fit(whole, part, declared):
    with pytest.raises(PlacementError, match="do not fit"):
        layout("w", whole, part, FOUR, declared)


def test_an_axis_that_nothing_names():
    with pytest.raises(PlacementError, match="over which axis"):
        layout("w", (8, 2), (4, 2), Mesh({"a": 2, "b": 2}))
