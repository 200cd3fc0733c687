"""Graphs in few ops compute the same, and their metadata is true."""

from __future__ import annotations

import pytest
import torch

from compiler.check.metadata import check_metadata
from compiler.check.primitive_form import primitive_form
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import parse_graph
from tests.support.graphs import agree, function

X = '%0 "x": f64[4, 6] {tp: V}, %1 "y": f64[4, 6] {tp: V}, %2 "w": f64[6, 3], %3 "b": f64[3]'
SPLITS = "input_splits = [2, 2], output_splits = [2, 2]"

CALLS = {
    "split": ("(f64[4, 4], f64[4, 2]) = aten.split.Tensor(%0, 4, -1)", "f64[4, 2] = %4[1]"),
    "unbind": ("(f64[6], f64[6], f64[6], f64[6]) = aten.unbind.int(%0)", "f64[6] = %4[2]"),
    "select": ("f64[4] = aten.select.int(%0, -1, -2)",),
    "stack": ("f64[4, 6, 2] = aten.stack([%0, %1], -1)",),
    "slice_scatter": (
        "f64[4, 2] = aten.slice.Tensor(%1, 1, 0, 2)",
        "f64[4, 6] = aten.slice_scatter(%0, %4, 1, -3, -1)",
    ),
    "select_scatter": (
        "f64[6] = aten.select.int(%1, 0, 1)",
        "f64[4, 6] = aten.select_scatter(%0, %4, 0, -1)",
    ),
    "pad": ("f64[5, 5] = aten.constant_pad_nd(%0, [-2, 1, 1, 0], 3.0)",),
    "pad with zeros": ("f64[4, 7] = aten.pad(%0, [0, 1])",),
    "repeat": ("f64[2, 4, 18] = aten.repeat(%0, [2, 1, 3])",),
    "repeat_interleave": ("f64[4, 12] = aten.repeat_interleave.self_int(%0, 2, -1)",),
    "sum": ("f64[] = aten.sum(%0)",),
    "sum along several": ("f64[1, 1] = aten.sum.dim_IntList(%0, [0, -1], true)",),
    "mean": ("f64[6] = aten.mean.dim(%0, [0])",),
    "mean of all": ("f64[] = aten.mean(%0)",),
    "mm": ("f64[4, 3] = aten.mm(%0, %2)",),
    "mm transposed": ("f64[3, 6] = aten.t(%2)", "f64[4, 3] = aten.linear(%0, %4)"),
    "addmm": ("f64[4, 3] = aten.addmm(%3, %0, %2, beta = 2, alpha = 0.5)",),
    "linear": (
        "f64[3, 6] = aten.permute(%2, [1, 0])",
        "f64[4, 3] = aten.linear(%0, %4, %3)",
    ),
    "einsum": ('f64[6, 4] = aten.einsum("td,td->dt", [%0, %1])',),
    "einsum of crossed orders": ('f64[6] = aten.einsum("td,dn,td->d", [%0, %2, %1])',),
    "outer": (
        "f64[6] = aten.select.int(%0, 0, 0)",
        "f64[6, 3] = aten.outer(%4, %3)",
    ),
    "dot": (
        "f64[6] = aten.select.int(%0, 0, 0)",
        "f64[6] = aten.select.int(%1, 0, 1)",
        "f64[] = aten.dot(%4, %5)",
    ),
    "embedding": (
        "i64[2, 2] = aten.full([2, 2], 3, dtype = i64)",
        "f64[2, 2, 6] = aten.embedding(%0, %4)",
    ),
    "clamp_max": ("f64[4, 6] = aten.clamp_max(%0, 0.5)",),
    "relu": ("f64[4, 6] = aten.relu(%0)",),
    "batched product": (
        "f64[2, 2, 6] = aten.view(%0, [2, 2, 6])",
        "f64[2, 2, 3] = aten.matmul(%4, %2)",
    ),
    "sum of a view": (
        "f64[2, 12] = aten.view(%0, [2, 12])",
        "f64[2] = aten.sum.dim_IntList(%4, [1])",
    ),
    "all_to_all": (f"f64[4, 6] = comm.all_to_all(%0) {{axis = tp, {SPLITS}}}",),
    "all_slice": ('f64[4, 3] = commplan.all_slice(%0, 1, 2, "tp")',),
}
LEFT = {
    torch.ops.aten.cat.default, torch.ops.aten.slice.Tensor, torch.ops.aten.reshape.default,
    torch.ops.aten.expand.default, torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor,
    torch.ops.aten.sum.dim_IntList, torch.ops.aten.div.Tensor, torch.ops.aten.permute.default,
    torch.ops.aten.narrow.default, torch.ops.aten.clamp.default,
    torch.ops.aten.index_select.default, torch.ops.aten.full.default,
    torch.ops.aten.new_full.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
    torch.ops._c10d_functional.wait_tensor.default,
}  # fmt: skip


def graph(*calls: str) -> SpmdGraph:
    lines = [f"%{4 + i}: {call}" for i, call in enumerate(calls)]
    return function(X, *lines, f"return %{3 + len(calls)}", mesh="mesh <tp = 2>")


@pytest.mark.parametrize("name", CALLS)
def test_a_form_is_the_same_function_in_few_ops(name: str) -> None:
    source = graph(*CALLS[name])
    form = primitive_form(source)
    form.graph.eliminate_dead_code()
    check_metadata(form, form)
    assert agree(source, form)
    assert {n.target for n in form.graph.nodes if n.op == "call_function"} <= LEFT


def test_calls_on_open_sizes_stay() -> None:
    text = """
    mesh <tp = 2>
    sym s0 in [4, 64]
    func @main(%0 "x": f64[s0, 6] {tp: V}) {
      %1: f64[6] = aten.select.int(%0, 0, 1)
      %2: f64[s0, 6] = aten.slice_scatter(%0, %0, 0)
      %3: f64[6] = aten.mean.dim(%2, [0])
      return %1, %3
    }"""
    source = parse_graph("\n".join(line.strip() for line in text.strip().splitlines()))
    targets = [n.target for n in source.graph.nodes]
    assert [n.target for n in primitive_form(source).graph.nodes] == targets
