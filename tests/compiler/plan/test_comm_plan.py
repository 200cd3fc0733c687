"""Plans as data: JSON round trip, digest, and what is no plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from compiler.errors import PlanError
from compiler.plan.comm_plan import CommPlan, PlacedReduction, Stage

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


def test_json_round_trip() -> None:
    for plan in (PLAN, CommPlan("off", 96)):
        assert CommPlan.from_json(plan.to_json()) == plan
        assert CommPlan.from_json(plan.to_json()).digest == plan.digest


def test_payload_after_is_that_of_the_planned_reductions() -> None:
    assert [stage.after_payload_bytes for stage in PLAN.stages] == [384, 0]


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


def without(key: str) -> str:
    found = json.loads(PLAN.to_json())
    del found["stages"][0][key]
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("{}", "'stages'"),
        ("[]", "cannot be interpreted as an integer"),
        ('{"stages": []}', "missing 2 required positional arguments: 'policy' and 'tokens'"),
        ('{"stages": [], "policy": "off", "tokens": 1, "x": 2}', "unexpected keyword argument 'x'"),
        (without("unreduced"), "'unreduced'"),
        (without("kind"), "missing 1 required positional argument: 'kind'"),
    ],
)
def test_what_is_no_plan(text: str, found: str) -> None:
    with pytest.raises(PlanError) as caught:
        CommPlan.from_json(text)
    assert caught.value.what == "not a communication plan"
    assert caught.value.remedy == "pass what to_json returned"
    assert found in caught.value.found
