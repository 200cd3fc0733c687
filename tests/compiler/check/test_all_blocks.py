"""Rewrites that take tensors apart and join them: right ones are proved, wrong ones are not.

Each case is one function in several forms. ``check`` finds counterexamples first, so that a law
that is wrong is caught only where the comparison in blocks is asked itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from compiler.check import Verdict, check
from compiler.check.all_blocks import equal_in_blocks
from compiler.ir.graph import SpmdGraph
from tests.support.graphs import agree, function

XY = '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}'


@dataclass(frozen=True)
class Case:
    """A function, written in another way, and what looks like it and is not."""

    source: str
    right: str
    wrong: tuple[str, ...]
    inputs: str = XY
    mesh: str = "mesh <tp = 4>"

    def graph(self, text: str) -> SpmdGraph:
        """The function ``text``: values are numbered on from the inputs, the last are returned."""
        *calls, returned = [line.strip() for line in text.strip().splitlines()]
        first = self.inputs.count("%")
        lines = [f"%{first + i}: {call}" for i, call in enumerate(calls)]
        return function(self.inputs, *lines, f"return {returned}", mesh=self.mesh)


def all_reduce(x: str, op: str = "sum", axis: str = "tp") -> str:
    return f"comm.all_reduce({x}) {{axis = {axis}, op = {op}}}"


def all_gather(x: str, axis: str = "tp") -> str:
    return f"comm.all_gather({x}) {{axis = {axis}}}"


def reduce_scatter(x: str) -> str:
    return f"comm.reduce_scatter({x}) {{axis = tp, op = sum}}"


def all_to_all(x: str, rows: int = 1) -> str:
    splits = [rows] * 4
    return f"comm.all_to_all({x}) {{axis = tp, input_splits = {splits}, output_splits = {splits}}}"


TWO_SUMS = f"""
    f64[4, 8] = {all_reduce("%0")}
    f64[4, 8] = {all_reduce("%1")}
    %2, %3"""


def columns(x: int, first: int) -> str:
    """Columns of %x gathered, in seven values from %first on."""
    parts = [first + 2 + i for i in range(4)]
    picked = "\n".join(f"f64[4, 8] = %{first + 1}[{i}]" for i in range(4))
    return f"""
    f64[16, 8] = {all_gather(f"%{x}")}
    (f64[4, 8], f64[4, 8], f64[4, 8], f64[4, 8]) = aten.split.Tensor(%{first}, 4)
    {picked}
    f64[4, 32] = aten.cat([{", ".join(f"%{n}" for n in parts)}], 1)"""


CASES = {
    "a bucket of rows": Case(
        TWO_SUMS,
        f"""
        f64[8, 8] = aten.cat([%0, %1])
        f64[8, 8] = {all_reduce("%2")}
        (f64[4, 8], f64[4, 8]) = aten.split.Tensor(%3, 4)
        f64[4, 8] = %4[0]
        f64[4, 8] = %4[1]
        %5, %6""",
        (
            f"""
            f64[8, 8] = aten.cat([%0, %1])
            f64[8, 8] = {all_reduce("%2")}
            (f64[4, 8], f64[4, 8]) = aten.split.Tensor(%3, 4)
            f64[4, 8] = %4[0]
            f64[4, 8] = %4[1]
            %6, %5""",
            f"""
            f64[8, 8] = aten.cat([%0, %1])
            f64[8, 8] = {all_reduce("%2")}
            f64[4, 8] = aten.slice.Tensor(%3, 0, 0, 4)
            f64[4, 8] = aten.slice.Tensor(%3, 0, 3, 7)
            %4, %5""",
        ),
    ),
    "a flat bucket of maxima": Case(
        TWO_SUMS.replace("sum", "max"),
        f"""
        f64[32] = aten.view(%0, [32])
        f64[32] = aten.view(%1, [32])
        f64[64] = aten.cat([%2, %3])
        f64[64] = {all_reduce("%4", "max")}
        f64[32] = aten.slice.Tensor(%5, 0, 0, 32)
        f64[32] = aten.slice.Tensor(%5, 0, 32, 64)
        f64[4, 8] = aten.view(%6, [4, 8])
        f64[4, 8] = aten.view(%7, [4, 8])
        %8, %9""",
        (
            f"""
            f64[8, 4] = aten.t(%0)
            f64[32] = aten.reshape(%2, [32])
            f64[32] = aten.view(%1, [32])
            f64[64] = aten.cat([%3, %4])
            f64[64] = {all_reduce("%5", "max")}
            f64[32] = aten.slice.Tensor(%6, 0, 0, 32)
            f64[32] = aten.slice.Tensor(%6, 0, 32, 64)
            f64[4, 8] = aten.view(%7, [4, 8])
            f64[4, 8] = aten.view(%8, [4, 8])
            %9, %10""",
        ),
    ),
    "a stack of two": Case(
        TWO_SUMS,
        f"""
        f64[4, 2, 8] = aten.stack([%0, %1], 1)
        f64[4, 2, 8] = {all_reduce("%2")}
        f64[4, 8] = aten.select.int(%3, 1, 0)
        f64[4, 8] = aten.select.int(%3, 1, -1)
        %4, %5""",
        (
            f"""
            f64[4, 2, 8] = aten.stack([%0, %1], 1)
            f64[4, 2, 8] = {all_reduce("%2")}
            f64[4, 8] = aten.select.int(%3, 1, 0)
            f64[4, 8] = aten.select.int(%3, 1, -2)
            %4, %5""",
        ),
    ),
    "a sum in chunks, each reduced as soon as it is there": Case(
        f"""
        f64[4, 8] = aten.mm(%0, %1)
        f64[4, 8] = {all_reduce("%2")}
        %3""",
        f"""
        f64[1, 8] = aten.slice.Tensor(%0, 0, 0, 1)
        f64[3, 8] = aten.slice.Tensor(%0, 0, 1, 4)
        f64[1, 8] = aten.mm(%2, %1)
        f64[3, 8] = aten.mm(%3, %1)
        f64[1, 8] = {all_reduce("%4")}
        f64[3, 8] = {all_reduce("%5")}
        f64[4, 8] = aten.cat([%6, %7])
        %8""",
        (
            f"""
            f64[1, 8] = aten.slice.Tensor(%0, 0, 0, 1)
            f64[3, 8] = aten.slice.Tensor(%0, 0, 1, 4)
            f64[1, 8] = aten.mm(%2, %1)
            f64[3, 8] = aten.mm(%3, %1)
            f64[1, 8] = {all_reduce("%4")}
            f64[3, 8] = {all_reduce("%5")}
            f64[4, 8] = aten.cat([%7, %6])
            %8""",
        ),
        '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[8, 8] {tp: V}',
    ),
    "two gathers in one": Case(
        f"""
        f64[16, 8] = {all_gather("%0")}
        f64[16, 8] = {all_gather("%1")}
        %2, %3""",
        f"""
        f64[8, 8] = aten.cat([%0, %1])
        f64[32, 8] = {all_gather("%2")}
        f64[4, 8, 8] = aten.view(%3, [4, 8, 8])
        f64[4, 4, 8] = aten.slice.Tensor(%4, 1, 0, 4)
        f64[4, 4, 8] = aten.slice.Tensor(%4, 1, 4, 8)
        f64[16, 8] = aten.reshape(%5, [16, 8])
        f64[16, 8] = aten.reshape(%6, [16, 8])
        %7, %8""",
        (
            f"""
            f64[8, 8] = aten.cat([%0, %1])
            f64[32, 8] = {all_gather("%2")}
            f64[16, 8] = aten.slice.Tensor(%3, 0, 0, 16)
            f64[16, 8] = aten.slice.Tensor(%3, 0, 16, 32)
            %4, %5""",
        ),
    ),
    "a gather of padded rows": Case(
        f"""
        f64[16, 8] = {all_gather("%0")}
        %2""",
        f"""
        f64[6, 8] = aten.constant_pad_nd(%0, [0, 0, 0, 2], 0.0)
        f64[24, 8] = {all_gather("%2")}
        f64[4, 6, 8] = aten.view(%3, [4, 6, 8])
        f64[4, 4, 8] = aten.slice.Tensor(%4, 1, 0, 4)
        f64[16, 8] = aten.reshape(%5, [16, 8])
        %6""",
        (
            f"""
            f64[6, 8] = aten.constant_pad_nd(%0, [0, 0, 0, 2], 0.0)
            f64[24, 8] = {all_gather("%2")}
            f64[16, 8] = aten.slice.Tensor(%3, 0, 0, 16)
            %4""",
            f"""
            f64[6, 8] = aten.constant_pad_nd(%0, [0, 0, 1, 1], 0.0)
            f64[24, 8] = {all_gather("%2")}
            f64[4, 6, 8] = aten.view(%3, [4, 6, 8])
            f64[4, 4, 8] = aten.slice.Tensor(%4, 1, 0, 4)
            f64[16, 8] = aten.reshape(%5, [16, 8])
            %6""",
        ),
    ),
    "columns gathered, and what is done to each element": Case(
        columns(0, 2) + "\nf64[4, 32] = aten.tanh(%8)\n%9",
        f"""
        f64[4, 8] = aten.tanh(%0)
        f64[16, 8] = {all_gather("%2")}
        f64[4, 4, 8] = aten.view(%3, [4, 4, 8])
        f64[4, 4, 8] = aten.permute(%4, [1, 0, 2])
        f64[4, 32] = aten.reshape(%5, [4, 32])
        %6""",
        (
            f"""
            f64[4, 8] = aten.tanh(%0)
            f64[16, 8] = {all_gather("%2")}
            f64[4, 32] = aten.view(%3, [4, 32])
            %4""",
        ),
    ),
    "sums of gathered columns": Case(
        columns(0, 2) + columns(1, 9) + "\nf64[4, 32] = aten.add.Tensor(%8, %15)\n%16",
        "f64[4, 8] = aten.add.Tensor(%0, %1)" + columns(2, 3) + "\n%9",
        ("f64[4, 8] = aten.sub.Tensor(%0, %1)" + columns(2, 3) + "\n%9",),
    ),
    "a sum of columns dealt out": Case(
        f"""
        f64[4, 8] = {all_reduce("%0")}
        f64[4, 2] = aten.narrow(%2, 1, rank(0, 2, 4, 6), 2)
        %3""",
        f"""
        f64[8, 4] = aten.t(%0)
        f64[2, 4] = {reduce_scatter("%2")}
        f64[4, 2] = aten.t(%3)
        %4""",
        (
            f"""
            f64[1, 8] = {reduce_scatter("%0")}
            f64[4, 2] = aten.view(%2, [4, 2])
            %3""",
        ),
    ),
    "a sum of what is gathered": Case(
        f"""
        f64[4, 8] = {all_reduce("%0")}
        %2""",
        f"""
        f64[16, 8] = {all_gather("%0")}
        f64[4, 4, 8] = aten.view(%2, [4, 4, 8])
        f64[4, 8] = aten.sum.dim_IntList(%3, [0])
        %4""",
        (
            f"""
            f64[16, 8] = {all_gather("%0")}
            f64[4, 4, 8] = aten.view(%2, [4, 4, 8])
            f64[4, 8] = aten.sum.dim_IntList(%3, [1])
            %4""",
            f"""
            f64[16, 8] = {all_gather("%0")}
            f64[4, 4, 8] = aten.view(%2, [4, 4, 8])
            f64[4, 8] = aten.mean.dim(%3, [0])
            %4""",
        ),
    ),
    "a sum dealt out, by an exchange": Case(
        f"""
        f64[1, 8] = {reduce_scatter("%0")}
        %2""",
        f"""
        f64[4, 8] = {all_to_all("%0")}
        f64[1, 8] = aten.sum.dim_IntList(%2, [0], true)
        %3""",
        (
            """
            f64[1, 8] = aten.sum.dim_IntList(%0, [0], true)
            %2""",
        ),
    ),
    "an exchange there and back": Case(
        "f64[4, 8] = aten.mul.Tensor(%0, 1.0)\n%2",
        f"""
        f64[4, 8] = {all_to_all("%0")}
        f64[4, 8] = {all_to_all("%2")}
        %3""",
        (f"f64[4, 8] = {all_to_all('%0')}\n%2",),
    ),
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
    "the largest of what all hold": Case(
        "f64[4, 8] = aten.mul.Tensor(%0, 1.0)\n%2",
        f"f64[4, 8] = {all_reduce('%0', 'min')}\n%2",
        (f"f64[4, 8] = {all_reduce('%0', 'product')}\n%2",),
        '%0 "x": f64[4, 8], %1 "y": f64[4, 8] {tp: V}',
    ),
    "the largest of pairs that hold the same": Case(
        f"f64[4, 8] = {all_reduce('%0', 'max', 'tp')}\n%2",
        f"f64[4, 8] = {all_reduce('%0', 'max', 'both')}\n%2".replace(
            "axis = both", 'group = "both"'
        ),
        (f"f64[4, 8] = {all_reduce('%0', 'max', 'dp')}\n%2",),
        '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}',
        'mesh <dp = 2, tp = 2>\ngroup "both" = [[0, 1, 2, 3]]',
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
    "largest of what is gathered": Case(
        f"f64[4, 8] = {all_reduce('%0', 'max')}\n%2",
        f"""
        f64[16, 8] = {all_gather("%0")}
        f64[4, 4, 8] = aten.view(%2, [4, 4, 8])
        f64[4, 8] = aten.amax(%3, [0])
        %4""",
        (
            f"""
            f64[16, 8] = {all_gather("%0")}
            f64[4, 4, 8] = aten.view(%2, [4, 4, 8])
            f64[4, 8] = aten.amax(%3, [1])
            %4""",
        ),
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
    "a weight gathered, or what it makes": Case(
        f"""
        f64[4, 6] = aten.mm(%0, %1)
        f64[6, 4] = aten.t(%2)
        f64[24, 4] = {all_gather("%3")}
        f64[4, 24] = aten.t(%4)
        %5""",
        f"""
        f64[6, 8] = aten.t(%1)
        f64[24, 8] = {all_gather("%2")}
        f64[4, 24] = aten.linear(%0, %3)
        %4""",
        (
            f"""
            f64[32, 6] = {all_gather("%1")}
            f64[24, 8] = aten.reshape(%2, [24, 8])
            f64[4, 24] = aten.linear(%0, %3)
            %4""",
        ),
        '%0 "x": f64[4, 8], %1 "w": f64[8, 6] {tp: V}',
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
    "rows gathered over two axes, the inner one last": Case(
        'f64[16, 8] = comm.all_gather(%0) {group = "both"}\n%2',
        f"""
        f64[8, 8] = {all_gather("%0", "dp")}
        f64[16, 8] = {all_gather("%2")}
        f64[2, 2, 4, 8] = aten.view(%3, [2, 2, 4, 8])
        f64[2, 2, 4, 8] = aten.transpose.int(%4, 0, 1)
        f64[16, 8] = aten.reshape(%5, [16, 8])
        %6""",
        (f"f64[8, 8] = {all_gather('%0', 'dp')}\nf64[16, 8] = {all_gather('%2')}\n%3",),
        '%0 "x": f64[4, 8] {dp: V, tp: V}, %1 "y": f64[4, 8] {dp: V, tp: V}',
        'mesh <dp = 2, tp = 2>\ngroup "both" = <dp, tp>',
    ),
    "columns reduced in steps over three axes": Case(
        'f64[8, 8] = comm.all_reduce(%0) {group = "inner", op = sum}\n%2',
        """
        f64[8, 8] = aten.t(%0)
        f64[4, 8] = comm.reduce_scatter(%2) {axis = tp, op = sum}
        f64[4, 8] = comm.all_reduce(%3) {axis = dp, op = sum}
        f64[8, 8] = comm.all_gather(%4) {axis = tp}
        f64[8, 8] = aten.t(%5)
        %6""",
        (
            """
            f64[8, 8] = aten.t(%0)
            f64[4, 8] = comm.reduce_scatter(%2) {axis = tp, op = sum}
            f64[4, 8] = comm.all_reduce(%3) {axis = pp, op = sum}
            f64[8, 8] = comm.all_gather(%4) {axis = tp}
            f64[8, 8] = aten.t(%5)
            %6""",
        ),
        '%0 "x": f64[8, 8] {pp: R, dp: V, tp: V}, %1 "y": f64[8] {pp: R, dp: V, tp: V}',
        'mesh <pp = 2, dp = 2, tp = 2>\ngroup "inner" = <dp, tp>',
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_right_rewrites_are_proved_and_wrong_ones_are_not(name: str) -> None:
    case = CASES[name]
    source, right = case.graph(case.source), case.graph(case.right)
    assert agree(source, right)
    assert check(source, right).verdict is Verdict.EQUIVALENT
    for text in case.wrong:
        wrong = case.graph(text)
        assert not agree(source, wrong)
        assert not equal_in_blocks(source, wrong, {})
