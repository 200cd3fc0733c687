"""Plans as data: JSON and digest."""

from __future__ import annotations

import json
from dataclasses import replace

from compiler.ir.comm_plan import CommPlan, PlacedReduction, Stage

PLAN = CommPlan(
    "cost",
    None,
    (
        Stage(
            group="tp",
            kind="sum",
            unreduced=(1, 3, 4),
            reductions=(
                PlacedReduction(4, "aten.add.Tensor", "layers.0.mlp", 256, 2),
                PlacedReduction(9, "aten.mm.default", "", 128, 0),
            ),
            before=3,
            before_payload_bytes=768,
        ),
        Stage("dp", "avg", (), (), 0, 0),
    ),
)


def test_json_holds_all_that_was_decided() -> None:
    held = json.loads(PLAN.to_json())
    assert (held["policy"], held["tokens"], held["rows"]) == ("cost", None, [])
    first, second = held["stages"]
    assert (first["unreduced"], first["before_payload_bytes"]) == ([1, 3, 4], 768)
    assert [r["payload_bytes"] for r in first["reductions"]] == [256, 128]
    assert (second["group"], second["kind"], second["scatters"]) == ("dp", "avg", False)


def test_digest_tells_plans_apart() -> None:
    first, second = PLAN.stages
    others = (
        replace(PLAN, tokens=1),
        replace(PLAN, policy="merge"),
        replace(PLAN, stages=(second, first)),
        replace(PLAN, stages=(replace(first, unreduced=(1, 3)), second)),
    )
    assert len({plan.digest for plan in (PLAN, *others)}) == 5
    assert len(PLAN.digest) == 32
