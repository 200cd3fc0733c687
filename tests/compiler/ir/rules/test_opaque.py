"""What is known of a declared op: cut dimensions, linear arguments, ranks that differ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler import OpaqueOp, Verdict, register_ops
from compiler.check import check
from compiler.errors import CommPlanError
from compiler.ir.dialects.registry import REGISTERED
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules import Meaning
from tests.support import foreign_ops
from tests.support.graphs import function

INPUTS = '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[8, 6] {tp: V}'
ROWS = "t k, k n -> t n"
CALL = "%2: f64[4, 6] = foreign.mixed(%0, %1)"


@pytest.fixture(autouse=True)
def _own_entries() -> Iterator[None]:
    with foreign_ops.forgotten_entries():
        yield


def rule(entry: OpaqueOp, call: str = CALL) -> Meaning:
    register_ops({"foreign::mixed": entry})
    graph = function(INPUTS, call, "return %2")
    (meaning,) = graph.meanings.values()
    assert meaning is not None
    return meaning


@pytest.mark.parametrize(
    ("dims", "linear", "operands", "result"),
    [
        (ROWS, (), (("t", None), (None, "n")), ("t", "n")),
        (ROWS, ("x",), (("t", "k"), ("k", "n")), ("t", "n")),
        ("t _, _ n -> t n", ("x", "y"), (("t", None), (None, "n")), ("t", "n")),
        ("x: t * -> t *", (), (("t", None), (None, None)), ("t", None)),
        ("t *, * -> t *", (), (("t", None), (None, None)), ("t", None)),
        ("... _, * -> ... _", (), (("...1", None), (None, None)), ("...1", None)),
        ("t k, k t -> t k", (), ((None, None), (None, None)), (None, None)),  # of unequal sizes
    ],
)
def test_dimensions(
    dims: str, linear: tuple[str, ...], operands: tuple[object, ...], result: tuple[object, ...]
) -> None:
    """One that results lack is kept only where all that is linear carries it."""
    meaning = rule(OpaqueOp(dims, linear))
    assert meaning.dims is not None
    assert (meaning.dims.operands, meaning.dims.results) == (operands, (result,))
    assert bool(meaning.terms) == bool(linear)


@pytest.mark.parametrize("dims", ["t k -> t k", "t k, k -> t n", "t k, k n -> t n, t n"])
def test_names_that_do_not_fit_a_call_say_nothing(dims: str) -> None:
    assert rule(OpaqueOp(dims)).dims is None


@pytest.mark.parametrize("dims", ["t *", "t * * -> t", "t t -> t", "t -> t -> t", "x: t, t -> t"])
def test_names_that_cannot_be_read(dims: str) -> None:
    with pytest.raises(CommPlanError, match="the dimensions of an op cannot be read"):
        OpaqueOp(dims)


def verdict(entry: OpaqueOp | None, source: tuple[str, ...], target: tuple[str, ...]) -> Verdict:
    REGISTERED.pop("foreign::mixed", None)
    if entry is not None:
        register_ops({"foreign::mixed": entry})

    def graph(lines: tuple[str, ...]) -> SpmdGraph:
        return function('%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[8, 6]', *lines, "return %3")

    return check(graph(source), graph(target)).verdict


REDUCED_AFTER = (CALL, "%3: f64[4, 6] = comm.all_reduce(%2) {axis = tp, op = sum}")
REDUCED_BEFORE = ("%2: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
                  "%3: f64[4, 6] = foreign.mixed(%2, %1)")  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (OpaqueOp(ROWS, linear=("x",)), Verdict.EQUIVALENT),
        (OpaqueOp(ROWS), Verdict.UNPROVED),
        (OpaqueOp(ROWS, linear=("x",), per_rank=True), Verdict.UNPROVED),
    ],
)
def test_reductions_move_across_what_is_linear_and_alike(entry: OpaqueOp, wanted: Verdict) -> None:
    assert verdict(entry, REDUCED_AFTER, REDUCED_BEFORE) is wanted


TWICE = ("%2: f64[4, 6] = foreign.mixed(%1, %1)", "%3: f64[4, 6] = aten.mul.Tensor(%2, 2)")


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [(OpaqueOp(ROWS), Verdict.EQUIVALENT), (OpaqueOp(ROWS, per_rank=True), Verdict.UNPROVED)],
)
def test_what_differs_per_rank_is_not_alike_of_equal_operands(
    entry: OpaqueOp, wanted: Verdict
) -> None:
    """A maximum over ranks of equal values is the value."""
    line = "%2: f64[4, 6] = foreign.mixed(%0, %1)"
    lines = (line, "%3: f64[4, 6] = comm.all_reduce(%2) {axis = tp, op = avg}")
    register_ops({"foreign::mixed": entry})
    graphs = [
        function('%0 "x": f64[4, 8], %1 "y": f64[8, 6]', *body)
        for body in ((*lines, "return %3"), (line, "return %2"))
    ]
    assert check(*graphs).verdict is wanted
