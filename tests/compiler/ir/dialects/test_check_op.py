"""Wrong claims about an op are refuted by its kernel."""

from __future__ import annotations

import pytest
import torch

from compiler import ComposedOp, OpaqueOp, check_op, register_ops
from compiler.errors import CommPlanError
from compiler.ir.dialects.known import OPS, rms_norm
from compiler.ir.dialects.registry import Entry
from tests.support import foreign_ops

X, LOGITS = torch.ones(4, 8), torch.ones(4, 3)
CALLS = {
    "vllm_ir::rms_norm": (X, torch.ones(8), 1e-6),
    "foreign::rotate": (torch.arange(4), X, X),
    "vllm::moe_forward_shared": (X, LOGITS, None, "layers.0"),
    "foreign::mixed": (X, torch.ones(8, 6)),
}


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("vllm_ir::rms_norm", ComposedOp(rms_norm)),
        ("vllm_ir::rms_norm", OpaqueOp("... _, _ -> ... _")),
        ("foreign::rotate", ComposedOp(foreign_ops.rotate)),
        ("foreign::rotate", OpaqueOp("t, t h, t h -> t h, t h", linear=("query", "key"))),
        ("vllm::moe_forward_shared", OpaqueOp("t *, t * -> t *, t *")),
        ("vllm::moe_forward_shared", OPS["vllm::moe_forward_shared"]),
        ("foreign::mixed", OpaqueOp("t k, k n -> t n", linear=("x",))),
        ("foreign::mixed", OpaqueOp("t k, k n -> t n", linear=("y",))),
    ],
)
def test_what_is_true_stands(name: str, entry: Entry) -> None:
    register_ops({name: entry})
    assert check_op(name, *CALLS[name])


@pytest.mark.parametrize(
    ("name", "entry", "why"),
    [
        ("vllm_ir::rms_norm", ComposedOp(lambda x, weight, epsilon, variance_size: x), "results"),
        ("vllm_ir::rms_norm", OpaqueOp("... h, h -> ... h"), "blocks of 'h'"),
        ("vllm_ir::rms_norm", OpaqueOp("... _, _ -> ... _", linear=("x",)), "linear"),
        ("foreign::rotate", ComposedOp(lambda positions, query, key: None), "results"),
        ("foreign::rotate", OpaqueOp("t, t h, t h -> t h"), "dimensions"),
        ("vllm::moe_forward_shared", OpaqueOp(linear=("nobody",)), "linear"),
        ("foreign::mixed", OpaqueOp("t k, k n -> t n", linear=("x", "y")), "linear"),
        ("foreign::mixed", OpaqueOp("t k, t k -> t k"), "dimensions"),
    ],
)  # fmt: skip
def test_what_is_not_is_refuted(name: str, entry: Entry, why: str) -> None:
    register_ops({name: entry})
    with pytest.raises(CommPlanError, match="does otherwise than is declared") as error:
        check_op(
            name, *(torch.ones(4, 8), torch.ones(8, 4)) if "_ t" in str(entry) else CALLS[name]
        )
    assert error.value.what.endswith(why) or f": {why}" in error.value.what


def test_an_op_without_a_kernel_here_is_compared_by_shapes() -> None:
    (tried,) = check_op("vllm::all_gather", X, -1, 4, "no group", ranks=4)
    assert tried.startswith("shapes and types of the results, without data")
    with pytest.raises(CommPlanError, match="shapes"):
        check_op("vllm::all_gather", X, -1, 4, "no group", ranks=2)


def test_unknown_ops() -> None:
    with pytest.raises(CommPlanError, match="is not installed"):
        check_op("vllm::no_such_op", X)
    with pytest.raises(CommPlanError, match="is not declared"):
        check_op("foreign::fused_allreduce", X, "c")
