"""Which value is named first where models differ."""

from __future__ import annotations

import pytest

from compiler.check.single_device.compare import check_single_device
from tests.compiler.check.single_device.twins import RANKS, aten, graph, reduced, shapes_on_ranks

T, H = 4, 8
SHAPES = {"x": (T, H), "w1": (H, H), "w2": (H, H)}


def layers(b, v, wrong=None):
    """Two row-parallel products, each added to what it reads; one may go wrong."""
    x = v["x"]
    for number, name in enumerate(("w1", "w2")):
        inner = b.call(aten.relu.default, b.call(aten.linear.default, x, v[name]))
        part = b.call(aten.linear.default, inner, b.call(aten.t.default, v[name]))
        if b.mesh.size > 1 and (number, "missing") != wrong:
            part = reduced(b, part, "avg" if (number, "averaged") == wrong else "sum")
        if (number, "double") == wrong:
            part = reduced(b, part)
        x = b.call(aten.add.Tensor, x, part)
    return x


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ((0, "missing"), "%add_tensor = aten.add.Tensor(%x, %linear_default_1) is not a value"),
        ((1, "missing"), "%add_tensor_1 = aten.add.Tensor(%add_tensor, %linear_default_3) is no"),
        ((0, "double"), "%all_reduce_default_1 = _c10d_functional.all_reduce.default("),
        ((1, "averaged"), "%all_reduce_default_1 = _c10d_functional.all_reduce.default("),
    ],
)
def test_the_first_wrong_value_is_named(wrong, named):
    single = graph(layers, SHAPES)
    shapes = shapes_on_ranks(SHAPES, {"w1": 0, "w2": 0})
    parallel = graph(lambda b, v: layers(b, v, wrong), shapes, RANKS)
    report = check_single_device(single, parallel)
    assert not report.verdict.runs
    assert named in report.explanation
    unsummed = wrong[1] in ("missing", "averaged")
    assert ("a partial sum that ranks have not added up" in report.explanation) is unsummed
