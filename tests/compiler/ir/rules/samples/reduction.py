"""Calls of ops that reduce or accumulate."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from compiler.ir.rules.builders import overloads
from compiler.ir.rules.reduction import COMBINED, TABLE, reduced
from tests.compiler.ir.rules.laws import Sample, counts, masks, reals, rough, sample

aten = torch.ops.aten
CONVERTED = "the operand is converted on the way in"
CONTRACTS = "an uninterpreted function cannot be a sum of blocks"


def sums() -> Iterator[Sample]:
    for op in (aten.sum, aten.mean):
        yield sample(op.default, reals(6, 4))
        yield sample(getattr(op, "dim_IntList" if op is aten.sum else "dim"), reals(6, 4, 2), [-2])
        yield sample(
            getattr(op, "dim_IntList" if op is aten.sum else "dim"), reals(6, 4, 2), [0, 2], True
        )
        yield sample(getattr(op, "dim_IntList" if op is aten.sum else "dim"), reals(6, 4), None)
        yield sample(getattr(op, "dim_IntList" if op is aten.sum else "dim"), reals(6, 4), [])
    yield sample(aten.sum.default, masks(6, 4), refuses=CONVERTED, holds=CONTRACTS)
    yield sample(aten.sum.dim_IntList, counts(6, 4).int(), [1], refuses=CONVERTED, holds=CONTRACTS)
    yield sample(aten.mean.dim, reals(6, 4).bfloat16(), [1], dtype=torch.float32,
                 refuses=CONVERTED)  # fmt: skip
    yield sample(aten.cumsum.default, reals(6, 4), -1)
    yield sample(aten.cumsum.default, counts(6, 4).int(), 0, refuses=CONVERTED)


def mostly(*shape: int) -> torch.Tensor:
    """True but for one element."""
    return torch.where(hardly(*shape) == 0, rough(*shape), 0)


def hardly(*shape: int) -> torch.Tensor:
    """False but for one element."""
    found = torch.zeros(shape, dtype=torch.float64)
    found.view(-1)[1] = 1
    return found


def reductions() -> Iterator[Sample]:
    """Every overload of every name, over all, one and two dimensions where it has a choice."""
    for op in overloads(*TABLE[reduced], *(n for names in COMBINED.values() for n in names)):
        named = {a.name: a for a in op._schema.arguments}
        given = {}
        if "p" in named:
            given["p"] = 2
        if "dtype" in named and not named["dtype"].has_default_value():
            given["dtype"] = torch.float64
        if "keepdim" in named and not named["keepdim"].has_default_value():
            given["keepdim"] = True
        name = str(op).removeprefix("aten.").split(".")[0]
        source = {"all": mostly, "any": hardly}.get(name, rough)
        if "dim" not in named:
            yield sample(op, source(6, 4), **given)
            continue
        kind = str(named["dim"].type)
        yield sample(op, source(6, 4, 2), dim=[1] if "List" in kind else 1, **given)
        if "List" in kind:
            yield sample(op, source(6, 4, 2), dim=[0, -1], **given)
            if name not in ("all", "any", "logsumexp"):  # they do not take it for all dimensions
                yield sample(op, source(6, 4), dim=[], **given)
        if named["dim"].has_default_value():
            yield sample(op, source(6, 4), **given)
        if "Optional" in kind:
            yield sample(op, source(6, 4), dim=None, **given)


SAMPLES = (*sums(), *reductions())
