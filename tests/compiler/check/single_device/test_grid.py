"""Blocks: grouped by size, joined, spread, permuted."""

import numpy as np
import pytest

from compiler.check import algebra
from compiler.check.single_device import grid
from compiler.check.single_device.grid import Permutations


def key(*parts):
    return repr(parts).encode()


def blocks(*sizes, name="x", ranks=1):
    counts = tuple(map(len, sizes))
    keys = [[f"{name} {r} {at}".encode() for at in np.ndindex(*counts)] for r in range(ranks)]
    return grid.shaped(algebra.random_vectors(keys), counts)


ROWS, COLUMNS = (2, 2, 2), (3, 5)


def test_blocks_are_grouped_by_size():
    assert grid.by_size([ROWS, (4,)]) == {(2, 4): [0, 1, 2]}
    assert grid.by_size([ROWS, COLUMNS]) == {(2, 3): [0, 2, 4], (2, 5): [1, 3, 5]}
    assert grid.by_size([]) == {(): [0]}


def test_joining_keeps_constants_and_tells_orders_apart():
    one = np.broadcast_to(algebra.constant(1)[0, 0], (1, 3, 1, *grid.CELL))
    assert (grid.joined(key, one, [ROWS, (4,)], [0])[0, 0, 0] == algebra.constant(1)[0, 0]).all()
    x = blocks(ROWS, (4,))
    turned = x[:, [1, 0, 2]]
    joined = [grid.joined(key, y, [ROWS, (4,)], [0]) for y in (x, turned)]
    assert joined[0].shape == (1, 1, 1, *grid.CELL)
    assert (joined[0] != joined[1]).any()


def test_joining_is_linear_and_acts_on_every_other_block():
    x, y = (blocks(ROWS, COLUMNS, name=n) for n in "xy")
    join = [grid.joined(key, z, [ROWS, COLUMNS], [0]) for z in (x, y, algebra.added(x, y))]
    assert (algebra.added(join[0], join[1]) == join[2]).all()
    first = grid.joined(key, x[:, :, :1], [ROWS, (3,)], [0])
    assert (first == join[0][:, :, :1]).all(), "a map says nothing about columns beside"


def test_spreading_makes_the_blocks_that_are_missing():
    x = blocks((6,), COLUMNS)
    spread = grid.spread(key, x, [ROWS, COLUMNS])
    assert grid.fits(spread, [ROWS, COLUMNS])
    assert len({cell.tobytes() for cell in grid.flat(spread)[0]}) == 6
    assert (grid.spread(key, spread, [ROWS, COLUMNS]) == spread).all()


def test_permutations_compose():
    moved = Permutations()
    x = blocks((2,), (3,), (4,))
    there = moved.permuted(key, x, [(2,), (3,), (4,)], (2, 0, 1))
    back = moved.permuted(key, there, [(4,), (2,), (3,)], (1, 2, 0))
    assert (there != x).any()
    assert (back.reshape(x.shape) == x).all()
    once = moved.permuted(key, x, [(2,), (3,), (4,)], (0, 2, 1))
    twice = moved.permuted(key, there, [(4,), (2,), (3,)], (1, 0, 2))
    assert (once == twice).all()


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1)])
def test_dimensions_of_one_row_move_freely(order):
    x = blocks((2,), (1, 1), (4,)) if order == (2, 0, 1) else blocks((2,), (1, 1), (1,))
    sizes = [(2,), (1, 1), (4,)] if order == (2, 0, 1) else [(2,), (1, 1), (1,)]
    moved = Permutations().permuted(key, x, sizes, order)
    same = (
        grid.flat(moved) == grid.flat(np.transpose(x, [0, *(1 + d for d in order), 4, 5]))
    ).all()
    assert same is np.bool_(order == (0, 2, 1))
