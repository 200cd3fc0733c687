"""One function by several names: products, sums, views, tables."""

from __future__ import annotations

import pytest

from tests.compiler.check.forms import Case

CASES = {
    "rows replaced": Case(
        "f64[4, 8] = aten.slice_scatter(%0, %1, 0, 0, 4)\n%2",
        """
        f64[1, 8] = aten.slice.Tensor(%1, 0, 0, 1)
        f64[8] = aten.select.int(%1, 0, 3)
        f64[2, 8] = aten.slice.Tensor(%1, 0, 1, 3)
        f64[4, 8] = aten.slice_scatter(%0, %2, 0, 0, 1)
        f64[4, 8] = aten.select_scatter(%5, %3, 0, -1)
        f64[4, 8] = aten.slice_scatter(%6, %4, 0, 1, -1)
        %7""",
        (
            """
            f64[1, 8] = aten.slice.Tensor(%1, 0, 0, 1)
            f64[8] = aten.select.int(%1, 0, 3)
            f64[2, 8] = aten.slice.Tensor(%1, 0, 1, 3)
            f64[4, 8] = aten.slice_scatter(%0, %2, 0, 0, 1)
            f64[4, 8] = aten.select_scatter(%5, %3, 0, 2)
            f64[4, 8] = aten.slice_scatter(%6, %4, 0, 1, -1)
            %7""",
        ),
    ),
    "heads repeated": Case(
        "f64[8, 8] = aten.repeat_interleave.self_int(%0, 2, 0)\n%2",
        """
        f64[4, 1, 8] = aten.unsqueeze(%0, 1)
        f64[4, 2, 8] = aten.expand(%2, [4, 2, 8])
        f64[8, 8] = aten.reshape(%3, [8, 8])
        %4""",
        ("f64[8, 8] = aten.repeat(%0, [2, 1])\n%2",),
    ),
    "all rows repeated": Case(
        "f64[8, 8] = aten.repeat(%0, [2, 1])\n%2",
        "f64[8, 8] = aten.cat([%0, %0])\n%2",
        ("f64[8, 8] = aten.cat([%0, %1])\n%2",),
    ),
    "a product and its sum": Case(
        """
        f64[4, 8] = aten.mul.Tensor(%0, %1)
        f64[8] = aten.sum.dim_IntList(%2, [0])
        %3""",
        'f64[8] = aten.einsum("td,td->d", [%0, %1])\n%2',
        ('f64[4] = aten.einsum("td,td->t", [%0, %1])\nf64[8] = aten.repeat(%2, [2])\n%3',),
    ),
    "a transposed weight": Case(
        "f64[4, 4] = aten.linear(%0, %1)\n%2",
        "f64[8, 4] = aten.t(%1)\nf64[4, 4] = aten.mm(%0, %2)\n%3",
        ("f64[8, 4] = aten.view(%1, [8, 4])\nf64[4, 4] = aten.mm(%0, %2)\n%3",),
    ),
    "a product of what is joined": Case(
        """
        f64[8, 8] = aten.mm(%0, %1)
        f64[8, 8] = aten.mm(%2, %3)
        f64[8, 8] = aten.add.Tensor(%4, %5)
        %6""",
        """
        f64[8, 8] = aten.cat([%0, %2], 1)
        f64[8, 8] = aten.cat([%1, %3])
        f64[8, 8] = aten.mm(%4, %5)
        %6""",
        (
            """
            f64[8, 8] = aten.cat([%0, %2], 1)
            f64[8, 8] = aten.cat([%3, %1])
            f64[8, 8] = aten.mm(%4, %5)
            %6""",
        ),
        '%0 "a": f64[8, 4] {tp: V}, %1 "b": f64[4, 8], '
        '%2 "c": f64[8, 4] {tp: V}, %3 "d": f64[4, 8]',
    ),
    "a norm and its square": Case(
        "f64[4, 8] = aten.mul.Tensor(%0, %0)\nf64[] = aten.sum(%2)\n%3",
        """
        f64[] = aten.linalg_vector_norm(%0)
        f64[] = aten.pow.Tensor_Scalar(%2, 2)
        %3""",
        ("f64[] = aten.linalg_vector_norm(%0)\n%2",),
    ),
    "products of a batch, one after the other": Case(
        "f64[2, 4, 3] = aten.bmm(%0, %1)\n%2",
        """
        f64[4, 8] = aten.select.int(%0, 0, 0)
        f64[8, 3] = aten.select.int(%1, 0, 0)
        f64[4, 3] = aten.mm(%2, %3)
        f64[4, 8] = aten.select.int(%0, 0, 1)
        f64[8, 3] = aten.select.int(%1, 0, 1)
        f64[4, 3] = aten.mm(%5, %6)
        f64[2, 4, 3] = aten.stack([%4, %7])
        %8""",
        (
            """
            f64[4, 8] = aten.select.int(%0, 0, 0)
            f64[8, 3] = aten.select.int(%1, 0, 1)
            f64[4, 3] = aten.mm(%2, %3)
            f64[2, 4, 3] = aten.stack([%4, %4])
            %5""",
        ),
        '%0 "x": f64[2, 4, 8] {tp: V}, %1 "w": f64[2, 8, 3] {tp: V}',
    ),
    "rows of a batch and of all": Case(
        "f64[2, 4, 3] = aten.matmul(%0, %1)\n%2",
        """
        f64[8, 8] = aten.view(%0, [8, 8])
        f64[8, 3] = aten.mm(%2, %1)
        f64[2, 4, 3] = aten.view(%3, [2, 4, 3])
        %4""",
        (
            """
            f64[4, 2, 8] = aten.transpose.int(%0, 0, 1)
            f64[8, 8] = aten.reshape(%2, [8, 8])
            f64[8, 3] = aten.mm(%3, %1)
            f64[2, 4, 3] = aten.view(%4, [2, 4, 3])
            %5""",
        ),
        '%0 "x": f64[2, 4, 8] {tp: V}, %1 "w": f64[8, 3] {tp: V}',
    ),
    "a sum of all, in any order": Case(
        "f64[] = aten.sum(%0)\n%2",
        "f64[8] = aten.sum.dim_IntList(%0, [0])\nf64[] = aten.sum(%2)\n%3",
        ("f64[8] = aten.sum.dim_IntList(%0, [0])\nf64[] = aten.mean(%2)\n%3",),
    ),
    "a sum of a view": Case(
        "f64[] = aten.sum(%0)\n%2",
        "f64[32] = aten.view(%0, [32])\nf64[] = aten.sum(%2)\n%3",
        ("f64[32] = aten.view(%0, [32])\nf64[] = aten.mean(%2)\n%3",),
    ),
    "names of one function": Case(
        "f64[4, 8] = aten.relu(%0)\nf64[4, 8] = aten.silu(%2)\n%3",
        """
        f64[4, 8] = aten.clamp_min(%0, 0)
        f64[4, 8] = aten.sigmoid(%2)
        f64[4, 8] = aten.mul.Tensor(%3, %2)
        %4""",
        (
            """
            f64[4, 8] = aten.clamp_max(%0, 0)
            f64[4, 8] = aten.sigmoid(%2)
            f64[4, 8] = aten.mul.Tensor(%3, %2)
            %4""",
            """
            f64[4, 8] = aten.clamp_min(%0, 0)
            f64[4, 8] = aten.sigmoid(%2)
            f64[4, 8] = aten.mul.Tensor(%3, %0)
            f64[4, 8] = aten.mul.Tensor(%4, %2)
            %5""",
        ),
    ),
    "rows of a table": Case(
        "f64[2, 3, 8] = aten.embedding(%0, %1)\n%2",
        "f64[2, 3, 8] = aten.index.Tensor(%0, [%1])\n%2",
        (
            """
            i64[3, 2] = aten.t(%1)
            i64[2, 3] = aten.reshape(%2, [2, 3])
            f64[2, 3, 8] = aten.embedding(%0, %3)
            %4""",
        ),
        '%0 "w": f64[4, 8] {tp: V}, %1 "i": i64[2, 3]',
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_function_by_another_name_is_proved_and_others_are_not(name: str) -> None:
    CASES[name].holds()
