from __future__ import annotations

import math

import pytest
import torch

from compiler.ir.text.spelling import CONSTANTS, DTYPES, PYTHON, constant, find_op, op_name

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("aten.mm", aten.mm.default),
        ("aten.add.Tensor", aten.add.Tensor),
        ("aten.add", aten.add.default),
        ("aten.sym_size.int", aten.sym_size.int),
        ("aten.sym_size", aten.sym_size.default),
        ("prims.convert_element_type", torch.ops.prims.convert_element_type.default),
        ("_c10d_functional.all_reduce_", torch.ops._c10d_functional.all_reduce_.default),
        ("comm.wait", torch.ops._c10d_functional.wait_tensor.default),
        ("py.floor", math.floor),
    ],
)
def test_ops_have_one_name(name: str, op: object) -> None:
    assert op_name(op) == name
    assert find_op(name) is op


def test_python_functions_are_told_apart() -> None:
    assert all(find_op(op_name(function) or "") is function for function in PYTHON.values())


@pytest.mark.parametrize("op", [aten.mm, torch.relu, torch.cond, "relu", 3])
def test_what_is_no_op(op: object) -> None:
    assert op_name(op) is None


def test_element_types_are_told_apart() -> None:
    assert all(CONSTANTS[dtype] == name for name, dtype in DTYPES.items())


@pytest.mark.parametrize("number", [0.0, -0.0, 1.0, 1e-06, 1e300, 0.1, math.inf, -math.inf])
def test_floats_read_back(number: float) -> None:
    text = constant(number) or ""
    assert float(text) == number
    assert not text.lstrip("-").isdecimal()
