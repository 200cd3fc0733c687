"""Names of ops and constants in the text form, read and written from the same tables."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from compiler.ir.collectives import OPS, WAIT

DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "f8e4m3fn": torch.float8_e4m3fn,
    "f8e4m3fnuz": torch.float8_e4m3fnuz,
    "f8e5m2": torch.float8_e5m2,
    "f8e5m2fnuz": torch.float8_e5m2fnuz,
    "f8e8m0fnu": torch.float8_e8m0fnu,
    "f4e2m1fn_x2": torch.float4_e2m1fn_x2,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "u16": torch.uint16,
    "u32": torch.uint32,
    "u64": torch.uint64,
    "b8": torch.bool,
    "c32": torch.complex32,
    "c64": torch.complex64,
    "c128": torch.complex128,
}

WORDS: Mapping[str, Any] = {
    **DTYPES,
    "none": None,
    "true": True,
    "false": False,
    "inf": math.inf,
    "nan": math.nan,
    "strided": torch.strided,
    "sparse_coo": torch.sparse_coo,
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
"""Constants written as a bare word."""

CONSTANTS: Mapping[Any, str] = {
    item: word
    for word, item in WORDS.items()
    if isinstance(item, torch.dtype | torch.layout | torch.memory_format)
}

PYTHON: Mapping[str, Callable[..., Any]] = {
    **{
        name.strip("_"): getattr(operator, name)
        for name in (
            *("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "getitem"),
            *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "lshift", "rshift"),
        )
    },
    **{
        name: getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum")
    },
    "ceil": math.ceil,
    "floor": math.floor,
    "trunc": math.trunc,
}
"""Python functions on numbers that occur in graphs, written ``py.name``."""

PYTHON_NAMES = {function: f"py.{name}" for name, function in PYTHON.items()}

COMM = {f"comm.{kind}": op for op, kind in OPS.items()}
COMM_NAMES: Mapping[object, str] = {op: name for name, op in COMM.items()}
COMM_STARTS = {f"{name}_start": op for name, op in COMM.items()}
"""Collectives that are not directly followed by their only use, a wait."""

COMM_WAIT = "comm.wait"

ATTRIBUTES: Mapping[str, str] = {
    "reduce_op": "op",
    "group_size": "group_size",
    "output_split_sizes": "output_splits",
    "input_split_sizes": "input_splits",
    "src": "src",
}
"""Schema argument of a collective -> its attribute in the text; ``group_name`` is apart."""


def op_name(target: object) -> str | None:
    """``namespace.op``, with the overload unless it is ``default``; None for no printable op."""
    if target is WAIT:
        return COMM_WAIT
    if isinstance(target, OpOverload):
        name: str = target._schema.name.replace("::", ".")
        overload: str = target._schema.overload_name
        return f"{name}.{overload}" if overload else name
    return PYTHON_NAMES.get(target) if callable(target) else None


def find_op(name: str) -> Callable[..., Any]:
    """The op that ``op_name`` calls ``name``.

    Raises:
        LookupError: no such op; its arguments are what there is instead, and a remedy.
    """
    namespace, op, *overload = name.split(".")
    if name == COMM_WAIT:
        return WAIT
    if namespace == "comm":
        raise LookupError(f"the collectives are {', '.join(COMM)}", "")
    if namespace == "py":
        if op not in PYTHON or overload:
            raise LookupError(f"the Python functions are {', '.join(PYTHON)}", "")
        return PYTHON[op]
    packet = getattr(getattr(torch.ops, namespace), op, None)
    if packet is None or len(overload) > 1:
        raise LookupError(
            f"torch.ops.{namespace} has no {'.'.join((op, *overload))!r}",
            "import the library that registers the op before parsing",
        )
    wanted = overload[0] if overload else "default"
    if wanted not in packet.overloads() or overload == ["default"]:
        known = [op_name(getattr(packet, x)) or "" for x in packet.overloads()]
        raise LookupError(f"the overloads are {', '.join(known)}", "")
    return getattr(packet, wanted)  # type: ignore[no-any-return]


def quoted(text: str) -> str:
    """``text`` as a string of the text form."""
    return json.dumps(text, ensure_ascii=False)


def name_text(text: str) -> str:
    """``text`` bare where it is an identifier, else quoted."""
    return text if re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII) else quoted(text)


def float_text(number: float) -> str:
    """A float such that it reads back as the same float, never as an integer."""
    return repr(float(number))
