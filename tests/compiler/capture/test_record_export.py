"""The recorder against torch.export, row by row: ops, types, numbers, source lines and layers."""

import operator

import pytest
import sympy
import torch
import torch.utils._pytree as pytree
from torch import fx

from compiler.capture.export import trace
from compiler.capture.fake_ranks import fake_process_group
from compiler.capture.record import Shared, record
from compiler.ir import access
from models.step3p5 import entry
from tests.families.families import FAMILIES
from tests.families.sharding import ON_DTENSORS, WORLD_SIZE, sharded

SIZES = (
    torch.ops.aten.sym_size.int, operator.add, operator.sub, operator.mul, operator.floordiv,
    operator.mod,
)  # fmt: skip
SAME = (torch.ops.aten.view.default, torch.ops.aten.clone.default)


def rows(traced, views=True):
    """(op, arguments, type, line, layer) per value, sizes written as expressions.

    Left out are views of the same shape, which DTensor makes of local tensors, copies, which
    export makes of what dropout leaves as it is, and all views where ``views`` is False.
    """
    named, symbols, listed = {}, {}, []

    def size(x):
        for symbol in sorted(x.node.expr.free_symbols, key=str):
            symbols.setdefault(symbol, sympy.Symbol(f"n{len(symbols)}"))
        return str(x.node.expr.xreplace(symbols))

    def argument(x):
        if isinstance(x, fx.Node):
            return named[x]
        return (type(x).__name__, x) if isinstance(x, int | float) else str(x)

    for node in traced.graph.nodes:
        val = node.meta.get("val")
        if node.target in SIZES and isinstance(val, torch.SymInt):
            named[node] = size(val)
            continue
        same = node.target in SAME and val.shape == node.args[0].meta["val"].shape
        if same or (node.target is torch.ops.aten.view.default and not views):
            named[node] = named[node.args[0]]
            continue
        named[node] = f"%{len(listed)}"
        types = [
            (str(x.dtype), *(s if isinstance(s, int) else size(s) for s in x.shape))
            if isinstance(x, torch.Tensor) else str(type(x)) for x in pytree.tree_leaves(val)
        ]  # fmt: skip
        call = pytree.tree_map(argument, (node.args, node.kwargs))
        target = "" if node.op == "output" else str(node.target)
        listed.append((target, call, types, access.source_line(node), access.layer_path(node)))
    return listed


def check_equal(recorded, exported, exactly=True):
    """Check that the traces agree.

    Not ``exactly``: calls over several lines have one of them in either, and what was written to is
    viewed again at its next use, in the module where that is, or at once.
    """
    a, b = rows(recorded, exactly), rows(exported, exactly)
    if not exactly:
        a, b = ([(*row[:3], row[4]) for row in listed] for listed in (a, b))
    for i, (one, other) in enumerate(zip(a, b, strict=False)):
        assert one == other, f"value {i}"
    assert len(a) == len(b)
    assert sorted(recorded.ranges.values()) == sorted(exported.ranges.values())
    for field in ("mutations", "results"):
        assert getattr(recorded, field) == getattr(exported, field)
    assert recorded.state.keys() == exported.state.keys()
    assert flags(recorded) == flags(exported)


def flags(traced):
    """The ``training`` flags that the forward read."""
    owners = traced.reads.owners.values()
    return {
        owner.label(key): value
        for owner in owners
        for key, value in owner.values.items()
        if key == "training"
    }


@pytest.mark.parametrize(("kind", "cache"), [("prefill", True), ("decode", None)])
def test_the_real_model(kind, cache):
    shared = Shared()
    traces = []
    for rank in (0, 7):
        with fake_process_group(rank, 8):
            options = {"layers": 4} if cache is None else {"layers": 4, "cache": cache}
            model, args = getattr(entry, kind)(**options)
            traces.append(record(model, args, {}, shared))
            if rank == 0:
                check_equal(traces[0], trace(model, args, {}))
    first, last = ([(op, types) for op, _, types, *_ in rows(one)] for one in traces)
    assert first == last


@pytest.mark.parametrize("name", ["Qwen3-MoE", "GLM4-MoE", "Gemma-3"])
def test_families_of_transformers(name):
    ids = torch.randint(3, 64, (1, 8), generator=torch.Generator().manual_seed(0))
    with fake_process_group(0, WORLD_SIZE):
        model = sharded(FAMILIES[name], torch.bfloat16, "batched_mm", without=ON_DTENSORS)
        check_equal(record(model, (ids,), {}), trace(model, (ids,), {}), exactly=False)
