"""Placements: per axis, as text, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.errors import PlacementError
from compiler.ir.mesh import Mesh
from compiler.ir.placement import (
    Partial,
    Placement,
    Replicate,
    Shard,
    Varying,
    parse_placement,
    placements_on,
)

GRID = Mesh({"dp": 2, "tp": 2})
TEXTS = {"R": Replicate(), "V": Varying(), "P": Partial(), "P(avg)": Partial("avg"),
         "S(0)": Shard(0), "S(12)": Shard(12)}  # fmt: skip


@pytest.mark.parametrize(("text", "placement"), TEXTS.items())
def test_text_round_trip(text: str, placement: Placement) -> None:
    assert str(placement) == text
    assert parse_placement(text) == placement


@pytest.mark.parametrize("text", ["", "r", "S", "S(-1)", "S(x)", "P()", "R(0)", "R "])
def test_text_that_is_no_placement(text: str) -> None:
    with pytest.raises(PlacementError) as caught:
        parse_placement(text)
    assert str(caught.value) == (
        f"not a placement\n  found: {text!r}\n  remedy: write R, V, P, P(op) or S(dim)"
    )


def test_one_placement_per_axis() -> None:
    assert placements_on(GRID, {"tp": Shard(1)}, "x") == (Replicate(), Shard(1))
    assert placements_on(GRID, Varying(), "x") == (Varying(), Varying())
    assert placements_on(GRID, {}, "x") == (Replicate(), Replicate())
    assert placements_on(Mesh({"tp": 4}), Shard(1), "x") == (Shard(1),)
    assert placements_on(Mesh({"pp": 1, "tp": 4}), Partial(), "x") == (Partial(), Partial())


@pytest.mark.parametrize("dim", ["0", None, 0.5])
def test_shard_of_what_is_no_dimension(dim: Any) -> None:
    with pytest.raises(PlacementError) as caught:
        Shard(dim)
    assert str(caught.value) == (
        "the dimension of a Shard must be an integer\n"
        f"  found: Shard({dim!r})\n"
        "  remedy: count dimensions from 0, for example Shard(0)"
    )


@pytest.mark.parametrize("op", ["foo", "SUM", 3, None])
def test_partial_of_what_is_no_reduction(op: Any) -> None:
    with pytest.raises(PlacementError) as caught:
        Partial(op)
    assert str(caught.value) == (
        "the reduction of a Partial is not known\n"
        f"  found: Partial({op!r})\n"
        "  remedy: one of sum, avg, product, min, max, band, bor, bxor"
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"ep": Varying(), "pp": Varying()},
            "the placement of 'x' names an unknown axis\n"
            "  found: ['ep', 'pp'], the mesh has ['dp', 'tp']\n"
            "  remedy: name axes of the mesh",
        ),
        (
            Shard(0),
            "the placement of 'x' does not say which axis it is about\n"
            "  found: S(0) on a mesh with axes ['dp', 'tp']\n"
            "  remedy: pass {axis: Shard(dim=0)}",
        ),
        (
            {"tp": "S(0)"},
            "the placement of 'x' is not a placement\n"
            "  found: 'S(0)'\n"
            "  remedy: use Replicate(), Shard(dim), Partial(op) or Varying()",
        ),
        (
            {"tp": Shard(-1)},
            "the placement of 'x' shards a negative dimension\n"
            "  found: S(-1)\n"
            "  remedy: count dimensions from 0",
        ),
    ],
)
def test_errors(given: Any, text: str) -> None:
    with pytest.raises(PlacementError) as caught:
        placements_on(GRID, given, "x")
    assert str(caught.value) == text
