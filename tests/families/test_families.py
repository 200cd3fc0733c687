"""Decoders of transformers, sharded by their own plans over four ranks: merged, proved, right."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import fx

from compiler.capture.export import localised
from compiler.capture.fake_ranks import fake_process_group
from compiler.check import Verdict
from compiler.ir.collectives import OPS, WAIT
from compiler.ir.remark import RemarkKind
from compiler.ir.rules import RULES
from compiler.optimize import optimize_captured
from compiler.plan.planner_options import PlannerOptions
from tests.families.families import FAMILIES
from tests.families.measured import DECODE, PREFILL, Measured, captured, measured
from tests.families.sharding import ON_DTENSORS, WORLD_SIZE, sharded

ROW_BYTES = 32 * 2
TOKENS = PREFILL[0] * PREFILL[1]
SUM = TOKENS * ROW_BYTES
"""Payload of one all_reduce of hidden states."""

MERGED = {
    # Family -> all_reduces and the bytes they carry, before and after.
    "GLM4-MoE": ((6, 6 * SUM), (5, 5 * SUM)),
    "dots1": ((6, 6 * SUM), (5, 5 * SUM)),
    "ernie4.5-MoE": ((6, 6 * SUM), (5, 5 * SUM)),
    "DeepSeek-V2": ((6, 6 * SUM), (5, 5 * SUM)),
    "DeepSeek-V3": ((4, 4 * SUM), (3, 3 * SUM)),
    "Kimi-Linear": ((4, 4 * SUM), (3, 3 * SUM)),
    # No experts: attention and MLP stand beside each other.
    "Cohere2": ((5, 5 * SUM), (3, 3 * SUM)),
    # The routed experts' sum is over [experts * tokens, hidden], four times as much.
    "Llama4": ((6, 9 * SUM), (5, 5 * SUM)),
    "Qwen3-Next": ((6, 6 * SUM), (4, 4 * SUM)),
}
ALONE = {
    # Family -> all_reduces. Between any two of them stands a norm: nothing meets.
    "Llama": 5, "Qwen3": 5, "Gemma-3": 5, "Mixtral": 5, "Qwen3-MoE": 5, "gpt-oss": 4,
}  # fmt: skip


@lru_cache
def optimized(name: str) -> Measured:
    return measured(FAMILIES[name])


def sums(statistics: Any) -> tuple[int, int]:
    held = [c for c in statistics.collectives if str(c.kind) == "all_reduce"]
    return len(held), sum(c.payload_bytes for c in held)


def without_rule(graph: fx.Graph) -> Counter[str]:
    """Return the ops on tensors that have no rule; sizes are computed beside them."""
    called = [
        n.target
        for n in graph.nodes
        if n.op == "call_function" and not isinstance(n.meta.get("val"), torch.SymInt)
    ]
    return Counter(str(x) for x in called if x not in RULES and x not in OPS and x is not WAIT)


@pytest.mark.parametrize("name", MERGED)
def test_sums_that_meet_are_merged(name: str) -> None:
    found = optimized(name)
    assert (sums(found.report.before), sums(found.report.after)) == MERGED[name]
    assert found.report.verdict is Verdict.EQUIVALENT
    assert any(r.kind is RemarkKind.PASSED for r in found.report.remarks)


@pytest.mark.parametrize("name", ALONE)
def test_sums_that_do_not_meet_stay_and_say_why(name: str) -> None:
    found = optimized(name)
    count = ALONE[name]
    assert sums(found.report.before) == sums(found.report.after) == (count, count * SUM)
    assert found.report.verdict is Verdict.EQUIVALENT
    kept = [r.reason for r in found.report.remarks if r.kind is RemarkKind.MISSED]
    assert len(kept) == count
    assert all(reason.startswith("all_reduce kept: ") for reason in kept)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_rank_computes_what_the_unsharded_model_does(name: str) -> None:
    found = optimized(name)
    assert found.moved < 1e-12
    assert found.sharded < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_every_op_has_a_rule(name: str) -> None:
    assert not without_rule(optimized(name).captured.graph.graph)
    assert not [n for n, m in optimized(name).captured.graph.meanings.items() if m is None]


def test_sizes_are_symbolic() -> None:
    (ids,) = (n for n in optimized("GLM4-MoE").captured.graph.graph.nodes if n.target == "ids")
    assert isinstance(ids.meta["val"].shape[1], torch.SymInt)


def test_one_token_of_each_sequence() -> None:
    found = measured(FAMILIES["GLM4-MoE"], DECODE)
    assert (sums(found.report.before)[0], sums(found.report.after)[0]) == (6, 5)
    assert found.report.verdict is Verdict.EQUIVALENT
    assert found.sharded < 1e-5


UNINTERPRETED = {
    # In graphs that are not functional; capture makes them so.
    **dict.fromkeys(
        ("add_.Tensor", "div_.Tensor", "copy_.default", "scatter_.value", "scatter_.src",
         "clamp_.default", "masked_fill_.Scalar", "index_put_.default"), "writes to its operand"
    ),
    "_assert_tensor_metadata.default": "has no result; capture drops it",
}  # fmt: skip
"""ATen ops without a rule that may occur, and why."""

DISTINCT = (
    ("GLM4-MoE", "grouped_mm"),
    ("Llama4", ""),
    ("Qwen3-Next", "batched_mm"),
    ("gpt-oss", "grouped_mm"),
)
"""Families and implementations of experts that together hold every op."""


@pytest.mark.parametrize(("name", "experts"), DISTINCT)
def test_ops_of_every_form_have_rules(name: str, experts: str) -> None:
    """As exported, and decomposed to the ops that back ends see; the form between is recorded."""
    with fake_process_group(1, WORLD_SIZE), torch.no_grad():
        model = sharded(FAMILIES[name], torch.bfloat16, experts, without=ON_DTENSORS)
        with localised(model):
            ids = torch.zeros(PREFILL, dtype=torch.int64)
            exported = torch.export.export(model, (ids,), strict=False)
            forms = (exported, exported.run_decompositions())
            found = {op for form in forms for op in without_rule(form.graph)}
    assert found <= {f"aten.{name}" for name in UNINTERPRETED}


@pytest.mark.parametrize("name", ["GLM4-MoE", "gpt-oss"])
def test_grouped_products_merge_alike(name: str) -> None:
    """Their kernel is not of float64: planned and proved, not run."""
    ids = torch.zeros(PREFILL, dtype=torch.int64)
    found, _ = captured(FAMILIES[name], ids, experts="grouped_mm")
    assert not without_rule(found.graph.graph)
    _, report = optimize_captured(found, PlannerOptions())
    alone = (ALONE.get(name, 0), ALONE.get(name, 0) * SUM)
    assert (sums(report.before), sums(report.after)) == MERGED.get(name, (alone, alone))
    assert report.verdict is Verdict.EQUIVALENT
