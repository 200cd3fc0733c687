"""A few ranks stand for all; on fewer, graphs agree that differ: examples of ``docs/ranks.md``."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from compiler.check import Verdict, check
from compiler.check.compare import compared
from compiler.check.interpret import Interpreter
from compiler.check.rank_axes import RankAxes
from compiler.check.representatives import Representatives
from compiler.check.sizes import RowSizes
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, aten

N = 64
TP = Mesh({"tp": N})
META = torch.device("meta")


def on(kept: int, graph: SpmdGraph) -> tuple[bool, Representatives]:
    """Whether both outputs are equal on so many coordinates, and these."""
    axes = RankAxes.of(graph.mesh, map(graph.mesh.group, graph.mesh.axes))
    ranks = Representatives(axes, [min(kept, n) for n in axes.sizes])
    values = Interpreter(graph, {}, RowSizes.of([graph], axes), None, ranks).run()
    left, right = (values[x].data for x in graph.graph.output_node().args[0])  # type: ignore[union-attr]
    return bool((left == right).all()), ranks


def needed(graph: SpmdGraph) -> int:
    """How many coordinates of the only axis decide, as counted on few."""
    ranks = on(5, graph)[1]
    assert not ranks.decide or max(ranks.needed()) <= 5
    return max(ranks.needed())


class Formula(Builder):
    """A graph over ``tp`` with an input ``x`` that differs between ranks; two outputs."""

    def __init__(self, mesh: Mesh = TP, rows: int = 4) -> None:
        super().__init__(mesh)
        self.x = self.input("x", rows, varies=tuple(mesh.axes))

    def times(self, x: fx.Node, by: float | fx.Node) -> fx.Node:
        return self.call(aten.mul.Tensor, x, by)

    def over(self, x: fx.Node, by: int) -> fx.Node:
        return self.call(aten.div.Tensor, x, by)

    def power(self, x: fx.Node, exponent: int) -> fx.Node:
        return x if exponent == 1 else self.times(x, self.power(x, exponent - 1))

    def minus(self, x: fx.Node, *others: fx.Node) -> fx.Node:
        for y in others:
            x = self.call(aten.sub.Tensor, x, y)
        return x

    def silu(self, x: fx.Node) -> fx.Node:
        return self.call(aten.silu.default, x)

    def zero_where(self, *values: fx.Node) -> fx.Node:
        """Zero on every rank on which one of ``values`` is, and the functions of them are so."""
        none = self.times(values[0], 0)
        factors = [self.minus(self.silu(x), self.silu(none)) for x in values]
        result = factors[0]
        for factor in factors[1:]:
            result = self.times(result, factor)
        return result

    def versus_zero(self, value: fx.Node) -> SpmdGraph:
        return self.finish(value, self.times(value, 0))


def test_sums_multiplied_with_each_other_need_a_rank_each() -> None:
    """Of two values that occur 1 and n - 1 times, central moments obey a law that three break."""
    f = Formula()
    centred = f.minus(f.x, f.over(f.all_reduce(f.x), N))
    second, third = (f.all_reduce(f.power(centred, k)) for k in (2, 3))
    graph = f.finish(
        f.times(f.power(third, 2), N * (N - 1)), f.times(f.power(second, 3), (N - 2) ** 2)
    )
    assert [on(kept, graph)[0] for kept in (2, 3)] == [True, False]
    assert needed(graph) == 3 * (2 + 1) + 2


def test_one_rank_does_not_stand_for_those_it_is_added_to() -> None:
    f = Formula()
    cubes = f.power(f.all_reduce(f.x), 3), f.times(f.all_reduce(f.power(f.x, 3)), N * N)
    graph = f.finish(*cubes)
    assert [on(kept, graph)[0] for kept in (1, 2)] == [True, False]
    assert needed(graph) == 3 + 2


def test_a_rank_is_not_told_by_what_the_others_add_up_to() -> None:
    """On two ranks, either is the sum less the other: one more is needed than there are sums."""
    f = Formula()
    own, total = f.silu(f.x), f.all_reduce(f.silu(f.x))
    sum_ = f.all_reduce(f.x)
    other_of_first = f.silu(f.over(f.minus(sum_, f.x), N - 1))
    other_of_last = f.silu(f.minus(sum_, f.times(f.x, N - 1)))
    graph = f.versus_zero(
        f.zero_where(
            f.minus(total, own, f.times(other_of_first, N - 1)),
            f.minus(total, f.times(own, N - 1), other_of_last),
        )
    )
    assert [on(kept, graph)[0] for kept in (2, 3)] == [True, False]
    assert needed(graph) == 1 + 2


class RowFormula(Formula):
    """Values of one number per rank, as rows: of all ranks, or each rank's own in all of them."""

    def __init__(self) -> None:
        super().__init__(rows=1)
        self.ones = self.call(aten.full.default, [4], 1.0, dtype=torch.float64, device=META)
        self.own = self.times(self.all_gather(self.ones), self.x)
        self.shared = self.all_gather(self.times(self.ones, self.x))


def test_a_rank_s_own_rows_are_not_those_of_others() -> None:
    f = RowFormula()
    graph = f.finish(f.own, f.shared)
    assert [on(kept, graph)[0] for kept in (1, 2)] == [True, False]
    assert needed(graph) == 4


def test_rows_of_others_are_told_by_rank_and_block() -> None:
    """On three ranks, the third is the sum less a rank's own and less the rank's of a block."""
    f = RowFormula()

    def third(own: fx.Node, shared: fx.Node, counts: tuple[int, int]) -> fx.Node:
        return f.minus(f.all_reduce(own), *map(f.times, (own, shared), counts))

    values = [f.minus(f.own, f.shared)]
    for *counts, left in ((1, 1, N - 2), (1, N - 2, 1), (N - 2, 1, 1)):
        other = f.silu(f.over(third(f.own, f.shared, counts), left))
        hashed = third(f.silu(f.own), f.silu(f.shared), counts)
        values.append(f.minus(hashed, f.times(other, left)))
    graph = f.versus_zero(f.zero_where(*values))
    assert [on(kept, graph)[0] for kept in (3, 4)] == [True, False]
    assert needed(graph) == 1 + 4


def test_sums_over_blocks_of_rows_count() -> None:
    summed, mixed, gathered = RowFormula(), RowFormula(), RowFormula()
    total = summed.call(aten.sum.dim_IntList, summed.shared, [0], True)
    assert needed(summed.finish(summed.power(total, 3), total)) == 3 + 4
    order = mixed.call(aten.cumsum.default, mixed.shared, 0)
    assert needed(mixed.finish(mixed.times(order, order), order)) == 2 * 2 + 4
    twice = gathered.all_gather(gathered.shared)
    assert needed(gathered.finish(twice, twice)) == 6


def test_an_op_without_a_rule_and_no_collective_needs_one_rank() -> None:
    f = Formula()
    assert needed(f.versus_zero(f.call(aten.sinc.default, f.x))) == 1


def test_of_axes_that_are_kept_whole_nothing_is_counted() -> None:
    axes = RankAxes.of(Mesh({"dp": 2, "tp": 12}), ())
    assert list(Representatives(axes, (2, 5)).needed()) == [2, 1]


# -- what is given to the checker --------------------------------------------------------------


def layers(mesh: Mesh, *, merged: bool = False, scale: float = 1, axis: str = "tp") -> SpmdGraph:
    """Layers of two branches, whose sums are reduced apart or together; the last may be scaled."""
    f = Formula(mesh)
    value = f.call(aten.sum.dim_IntList, f.input("tokens", 4, 4), [0])
    for i in range(6):
        square = f.silu(f.times(value, value))
        left, right = (
            f.times(f.times(square, value), f.input(f"{side}{i}", 4, varies=tuple(mesh.axes)))
            for side in "ab"
        )
        right = f.times(right, scale) if i == 5 and scale != 1 else right
        if merged:
            total = f.all_reduce(f.call(aten.add.Tensor, left, right), axis)
        else:
            total = f.call(aten.add.Tensor, *(f.all_reduce(y, axis) for y in (left, right)))
        value = f.call(aten.add.Tensor, value, total)
    return f.finish(value)


MESHES = {
    "tp": (Mesh({"tp": 1024}), "tp"),
    "dp x tp": (Mesh({"dp": 128, "tp": 8}), "tp"),
    "tp x ep x dp": (Mesh({"dp": 4, "tp": 16, "ep": 16}), "tp"),
    "both": (Mesh({"tp": 32, "ep": 32}), "tp*ep"),
    "halves": (Mesh({"tp": 64}, {"half": [range(32), range(32, 64)]}), "half"),
    "strided": (Mesh({"tp": 64}, {"even": [range(0, 64, 2), range(1, 64, 2)]}), "even"),
    "four of eight": (
        Mesh({"tp": 64}, {"g": [[r + k for k in (0, 1, 4, 5)] for r in range(64) if not r & 5]}),
        "g",
    ),
}


@pytest.mark.parametrize("name", MESHES)
def test_few_ranks_decide_for_many(name: str) -> None:
    mesh, axis = MESHES[name]
    source, names = layers(mesh, axis=axis), {}
    target = layers(mesh, axis=axis, merged=True)
    assert check(source, target).verdict is Verdict.EQUIVALENT
    found = compared(source, target, names)
    assert not found.apart
    assert len(found.kept) <= 5**2
    wrong = compared(source, layers(mesh, axis=axis, merged=True, scale=2), names)
    assert wrong.unequal == [0]


def told_apart(mesh: Mesh, tell: str, *, scale: float = 1) -> SpmdGraph:
    """Rows that ranks share and something that tells the ranks of ``tp`` apart by number."""
    f = Formula(mesh)
    rows = f.input("rows", 4 * mesh.axes["tp"])
    shared = f.all_gather(f.reduce_scatter(f.times(rows, f.call(aten.sum.default, f.x))))
    half = 2 * mesh.axes["tp"]
    if tell == "slice":
        shared = f.call(aten.slice.Tensor, shared, 0, 0, half)
    elif tell == "maximum":
        shared = f.all_reduce(shared, op="max")
    elif tell == "numbers":
        start = access.RankInt(0, tuple(half * (r // 4 % 2) for r in range(mesh.size)))
        shared = f.call(aten.narrow.default, shared, 0, start, half)
    else:
        shared = f.all_gather(f.reduce_scatter(shared, "dp"), "dp")
    return f.finish(f.times(shared, scale))


@pytest.mark.parametrize(
    ("tell", "axes", "why"),
    [
        ("slice", {"tp": 12}, "a slice takes rows by number"),
        (
            "maximum",
            {"tp": 12},
            "a maximum, minimum or product over ranks counts those that differ",
        ),
        ("numbers", {"dp": 12, "tp": 4}, "a slice takes rows by numbers of ranks"),
        ("other ranks", {"dp": 12, "tp": 12}, "rows of one size are shared among different ranks"),
    ],
)
def test_ranks_told_apart_by_number_are_all_interpreted_and_the_report_says_so(
    tell: str, axes: dict[str, int], why: str
) -> None:
    mesh = Mesh(axes)
    source, target = told_apart(mesh, tell), told_apart(mesh, tell, scale=1.0)
    report = check(source, told_apart(mesh, tell, scale=2))
    assert not report.verdict.runs
    found = compared(source, target, {})
    assert not found.unequal
    many = [axis for axis, n in axes.items() if n == 12]
    lines = {f"12 of 12 ranks along {axis} are interpreted: {why}" for axis in many}
    assert set(found.many_ranks()) == set(report.many_ranks) == lines


def test_groups_that_are_no_product_of_axes_take_all_ranks() -> None:
    odd = [[3 * g + k for k in range(3)] for g in range(4)]
    odd[0][2], odd[1][2] = odd[1][2], odd[0][2]
    mesh = Mesh({"tp": 12}, {"odd": odd})
    source, target = (layers(mesh, axis="odd", merged=merged) for merged in (False, True))
    report = check(source, target)
    assert report.verdict is Verdict.EQUIVALENT
    (line,) = report.many_ranks
    assert line.startswith("12 of 12")
    assert "not a product of axes" in line
