"""``commplan rules``."""

import json

import pytest

from compiler.cli.commands.rules import rules_of
from compiler.ir.rules import RULES

SAID = {
    "aten.add.Tensor": "Sum of ``sign * argument``, the argument ``scaled`` times alpha. "
    "(scaled = other, self = 1, other = 1)",
    "aten.silu.default": "A function of the elements at one place: a sum of ``terms``, "
    "uninterpreted without them.",
    "aten.sum.dim_IntList": "Sum over dimensions: a contraction with ones.",
    "operator.getitem": "getitem: one result of an op of several, element by element.",
}


@pytest.fixture(scope="module")
def rows():
    return {row["op"]: row["rule"] for row in rules_of()}


def test_every_op_is_listed_once_with_what_its_rule_says(rows):
    assert len(rows) == len(RULES)
    assert not {op for op, rule in rows.items() if len(rule) < len("-self.")}


@pytest.mark.parametrize("op", SAID)
def test_rules(rows, op):
    assert rows[op] == SAID[op]


def test_a_rule_that_serves_several_ops_names_their_arguments(rows):
    assert rows["aten.mm.default"].endswith("(left = self, right = mat2)")
    assert rows["aten.maximum.default"].endswith("(combine = max)")
    assert "Args" not in rows["aten.ones_like.default"]
    assert rows["aten.ones_like.default"].endswith("(value = 1, like = True)")


def test_table_has_every_op(run):
    table = run("rules", "index_")
    names = [line.split()[0] for line in table.out.splitlines() if line.startswith(" aten.")]
    assert table.code == 0
    assert names == [row["op"] for row in rules_of("index_")]
    assert f"{len(names)} of {len(RULES)} ops" in table.err


def test_json_of_a_glob(run):
    (row,) = json.loads(run("rules", "aten.neg.*", "--format", "json").out)["rules"]
    assert row["op"] == "aten.neg.default"
    assert row["rule"].endswith("(self = -1)")


def test_unknown_op(run):
    refused = run("rules", "no_such_op")
    assert refused.code == 3
    assert "no op of that name has a rule" in refused.err
    assert "'no_such_op'" in refused.err
