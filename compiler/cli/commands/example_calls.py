"""A typical call of an op, found by trying: rules speak of calls, and a list needs one of each.

Every dimension has the same size, so that shapes agree whatever they must have in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx

from compiler.ir.rules import Call

EXTENT = 4
RANKS = (2, 3, 4, 1, 0)
"""Numbers of dimensions of tensors, in the order in which they are tried."""

ATTEMPTS = 200
"""Calls of one op that are tried before it is given up."""

INTEGERS = ("index", "indices", "repeats")
BOOLEANS = ("mask", "condition")
"""Names of arguments that are no floating-point numbers."""

VALUES: dict[str, tuple[Any, ...]] = {
    "int": (0, 1, 2),
    "SymInt": (0, 1, 2),
    "float": (0.5,),
    "number": (2,),
    "bool": (False,),
    "str": ("ij,jk->ik", "sum", "none", "floor", "valid"),
    "ScalarType": (torch.float32,),
    "Device": (torch.device("meta"),),
    "List[int]": ([0], [1, 0], [1], [EXTENT], [EXTENT, EXTENT], [0, 1], [2, 2], [1, 3], [2, -1]),
    "List[SymInt]": ([EXTENT, EXTENT], [EXTENT], [1], [0], [2, 1], [1, 3], [0, 1], [1, 1]),
}
"""Type of an argument -> values that are tried for it, if it has no default."""


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@cache
def _written() -> dict[str, tuple[Any, ...]]:
    """Positional arguments where the first ones that work are not typical, or none do."""
    bytes_, rows = torch.float8_e4m3fn, _meta(4, 4)
    factors = _meta(16, 16, dtype=bytes_), _meta(16, 16, dtype=bytes_).t()
    mask, some = _meta(4, 4, dtype=torch.bool), _meta(4, dtype=torch.int64)
    scale, cube, half = _meta(), _meta(4, 4, 4, 4, 4), torch.bfloat16
    experts = _meta(16, 16, dtype=half), _meta(4, 16, 16, dtype=half)
    return {
        "_grouped_mm.default": (*experts, _meta(4, dtype=torch.int32)),
        "_scaled_mm.default": (*factors, scale, scale),
        "_scaled_mm_v2.default": (*factors, [scale], [0], [0], [scale], [0], [0], None, half),
        "clamp.default": (rows, 0.5),
        "clamp.Tensor": (rows, rows),
        "conv3d.default": (cube, cube),
        "conv3d.padding": (cube, cube),
        "convolution.default": (cube[0, 0], cube[0, 0], None, [1], [0], [1], False, [0], 1),
        "norm.ScalarOpt_dim_dtype": (rows, 2, [0], False, torch.float32),
        "norm.ScalarOpt_dtype": (rows, 2, torch.float32),
        "one_hot.default": (_meta(4, 4, dtype=torch.int64), 4),
        "index_add.default": (rows, 0, some, rows),
        "index_copy.default": (rows, 0, some, rows),
        "index_fill.int_Scalar": (rows, 0, some, 0),
        "masked_fill.Scalar": (rows, mask, 0),
        "mean.dim": (rows, [0]),
        "sum.dim_IntList": (rows, [0]),
        "swapaxes.default": (rows, 0, 1),
        "swapdims.default": (rows, 0, 1),
        "transpose.int": (rows, 0, 1),
        "transpose_copy.int": (rows, 0, 1),
        "where.ScalarOther": (mask, rows, 0),
        "where.ScalarSelf": (mask, 0, rows),
        "view_as_complex.default": (_meta(4, 2),),
        "view_as_real.default": (_meta(4, 4, dtype=torch.complex64),),
    }


def typical(op: Any) -> Call | None:
    """A call of ``op`` that works on the meta device; None if none was found."""
    if not hasattr(op, "_schema"):
        return None
    if (written := _written().get(str(op).removeprefix("aten."))) is not None:
        return _call(op, op._schema.arguments[: len(written)], written)
    arguments = [a for a in op._schema.arguments if not a.has_default_value()]
    choices = [list(_values(str(a.type))) for a in arguments]
    ranks = [_ranks(str(a.type)) for a in arguments]
    uniform = ([r if len(found) > 1 else None for found in ranks] for r in RANKS)
    tried = itertools.product(
        itertools.chain(uniform, itertools.product(*ranks)), itertools.product(*choices)
    )
    for held, given in itertools.islice(tried, ATTEMPTS):
        values = [
            _tensors(a.name, str(a.type), rank) if rank is not None else value
            for a, rank, value in zip(arguments, held, given, strict=True)
        ]
        if (call := _call(op, arguments, values)) is not None:
            return call
    return None


def _is_tensor(kind: str) -> bool:
    return "Tensor" in kind


def _values(kind: str) -> Iterator[Any]:
    if _is_tensor(kind) or kind.startswith("Optional"):
        yield None
    else:
        yield from VALUES.get(kind, ())


def _ranks(kind: str) -> tuple[int | None, ...]:
    return RANKS if _is_tensor(kind) and not kind.startswith("Optional[Tensor]") else (None,)


def _tensors(name: str, kind: str, rank: int) -> Any:
    dtype = torch.int64 if name in INTEGERS else torch.bool if name in BOOLEANS else torch.float32
    one = _meta(*(EXTENT,) * rank, dtype=dtype)
    return [one, one] if kind == "List[Tensor]" else [one] if kind.startswith("List") else one


def _call(op: Any, arguments: Sequence[Any], values: Sequence[Any]) -> Call | None:
    """The call with these values as a node's, None if the op refuses them."""
    graph = fx.Graph()

    def placeholder(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        node = graph.placeholder("x")
        node.meta["val"] = x
        return node

    def argument(value: Any) -> Any:
        return [placeholder(x) for x in value] if isinstance(value, list) else placeholder(value)

    positional = [v for a, v in zip(arguments, values, strict=True) if not a.kwarg_only]
    named = {a.name: v for a, v in zip(arguments, values, strict=True) if a.kwarg_only}
    try:
        found = op(*positional, **named)
    except Exception:
        return None
    node = graph.call_function(
        op, tuple(map(argument, positional)), {k: argument(v) for k, v in named.items()}
    )
    node.meta["val"] = found
    return Call.of(node)
