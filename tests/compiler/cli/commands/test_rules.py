"""``commplan rules``."""

import json

import pytest

from compiler.cli.commands.rules import listed
from compiler.ir.rules import RULES

UNSHOWN = {
    "operator.getitem": "takes a tuple",
    "aten._scaled_grouped_mm.default": "no kernel to ask for its result",
    "aten._scaled_grouped_mm_v2.default": "no kernel to ask for its result",
    "aten.randint_like.Tensor_generator": "takes a generator",
    **dict.fromkeys(
        ("aten.bincount.default", "aten.masked_select.default", "aten.nonzero.default",
         "aten.repeat_interleave.self_Tensor", "aten.unique_dim.default"),
        "the size of the result is data",
    ),
}  # fmt: skip

SHOWN = {
    "aten.mm.default": ("einsum(self, mat2)", "m k, k n -> m n"),
    "aten.add.Tensor": ("self + other", "a b, a b -> a b"),
    "aten.sub.Tensor": ("self + -1 · other", "a b, a b -> a b"),
    "aten.div.Tensor": ("divide[other](self)", "a b, a b -> a b"),
    "aten.silu.default": ("uninterpreted, element by element", "a b -> a b"),
    "aten._softmax.default": ("uninterpreted", "_ b -> _ b"),
    "aten.sum.dim_IntList": ("sum(self)", "a b -> b"),
    "aten.transpose.int": ("permute(self)", "a b -> b a"),
    "aten.cat.default": ("cat(tensors0) + cat(tensors1)", "_ b, _ b -> _ b"),
    "aten.index_add.default": (
        "self + accumulate[index](source)", "_ b, _, _ b -> _ b",
    ),
    "aten.where.ScalarOther": ("choose[condition](self)", "a b, a b -> a b"),
    "aten.ones_like.default": ("1", "a b -> a b"),
    "aten.zeros_like.default": ("0", "a b -> a b"),
    "aten.rand.default": ("random", "all whole"),
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return {row.op: row for row in listed()}


def test_every_op_is_listed_once_with_a_typical_call(rows):
    assert len(rows) == len(RULES)
    unshown = {op for op, row in rows.items() if row.operands is None}
    assert unshown <= set(UNSHOWN)
    assert all(row.terms and row.factors for row in rows.values())


@pytest.mark.parametrize("op", SHOWN)
def test_terms_and_factors(rows, op):
    assert (rows[op].terms, rows[op].factors) == SHOWN[op]


def test_table_has_one_line_for_each_op(run):
    found = run("rules", "index_")
    lines = [line.split() for line in found.out.splitlines() if line.strip().startswith("aten.")]
    assert found.code == 0
    assert sorted(line[0] for line in lines) == sorted(row.op for row in listed("index_"))
    assert f"{len(lines)} of {len(RULES)} ops" in found.err


def test_json_of_a_glob(run):
    found = run("rules", "aten.mm.*", "--format", "json")
    assert json.loads(found.out) == [
        {
            "op": "aten.mm.default",
            "operands": [2, 2],
            "terms": "einsum(self, mat2)",
            "factors": "m k, k n -> m n",
        }
    ]


def test_unknown_op(run):
    found = run("rules", "no_such_op")
    assert found.code == 3
    assert "no op of that name has a rule" in found.err
    assert "'no_such_op'" in found.err
