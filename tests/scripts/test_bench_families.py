"""The table of scripts/bench_families: what counts as wrong, and how it is written."""

import pytest

pytest.importorskip("transformers.distributed.expert_parallel")

from scripts.bench_families import COLUMNS, merged, rows, wrong
from scripts.doors import Outcome


def outcome(**figures):
    return Outcome(
        **{
            "all_reduces": {"fp32": (6, 5), "bf16": (6, 5), "dynamic": (192, 160)},
            "differences": {"fp32": 1e-6, "bf16": 1e-2},
            "tokens": {"dynamic": True},
            "seconds": {"eager": 0.02, "door": 3.4, "door cpu": 2.1},
            "graphs": 3,
            "verdicts": ["EQUIVALENT", "IDENTICAL", "EQUIVALENT"],
            **figures,
        }
    )


def test_a_line_per_model_and_door():
    (line,) = rows("GLM4-MoE", 2, "compile", outcome(breaks=1))
    assert dict(zip(COLUMNS, line, strict=True)) == {
        "model": "GLM4-MoE",
        "ranks": "2",
        "door": "compile",
        "all_reduces a call": "6 → 5",
        "of dynamic generate": "192 → 160",
        "of static generate": "",
        "logits fp32": "1.0e-06",
        "bf16": "1.0e-02",
        "tokens": "same",
        "first result, s (CPU)": "3.4 (2.1)",
        "eager, s": "0.02",
        "graphs": "3, 1 breaks",
        "verdicts": "2 EQUIVALENT, 1 IDENTICAL",
    }


def test_a_line_per_error():
    failed = Outcome(errors={"fp32": "A: b | c", "bf16": "A: b | c", "static": "D: e"})
    _, first, second = rows("Llama", 4, "optimize", failed)
    assert first[3] == "fp32, bf16: A: b \\| c"
    assert second[3] == "static: D: e"
    assert len(first) == len(COLUMNS)


@pytest.mark.parametrize(
    "figures",
    [
        {"differences": {"fp32": 1e-3}},
        {"differences": {"on again bf16": 1.0}},
        {"tokens": {"dynamic": True, "static": False}},
        {"errors": {"static": "D: e"}},
        {"verdicts": ["EQUIVALENT", "fell back: C: d"]},
    ],
)
def test_what_is_wrong(figures):
    assert not wrong(outcome())
    assert wrong(outcome(**figures))


def test_no_rank_is_left_out():
    other = outcome(differences={"fp32": 1.0}, tokens={"dynamic": False}, errors={"static": "D: e"})
    both = merged([outcome(), other])
    assert both.differences == {"fp32": 1.0, "bf16": 1e-2}
    assert both.tokens == {"dynamic": False}
    assert both.errors == {"static": "D: e"}
