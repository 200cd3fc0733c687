"""A write where a mask is set is a choice."""

import torch

from compiler.check import check
from compiler.check.simulate import simulate
from compiler.check.single_device.masked_writes import with_choices
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder

aten = torch.ops.aten


def written(mask_shape, number=(), dtype=torch.float64):
    b = Builder(Mesh({"tp": 1}))
    x, mask = b.input("x", 3, 4), b.input("mask", *mask_shape, dtype=torch.bool)
    return b.finish(
        b.call(aten.index_put.default, x, [mask], b.input("number", *number, dtype=dtype))
    )


def test_the_choice_computes_what_the_write_does():
    for mask_shape in ((3,), (3, 4)):
        source = written(mask_shape)
        target = with_choices(source)
        assert aten.where.self in {n.target for n in target.graph.nodes}
        mask = torch.arange(12).reshape(3, 4).remainder(2).bool()
        drawn = {
            "x": [torch.randn(3, 4, dtype=torch.float64)],
            "mask": [mask if mask_shape == (3, 4) else mask[:, 1]],
            "number": [torch.tensor(7.0, dtype=torch.float64)],
        }
        before, after = (simulate(graph, drawn)[0][0] for graph in (source, target))
        assert torch.equal(before, after)


def test_other_writes_stay():
    for source in (written((3,), number=(4,)), written((3, 4), dtype=torch.float32)):
        assert with_choices(source) is source or check(source, with_choices(source)).verdict.runs
        assert aten.where.self not in {n.target for n in with_choices(source).graph.nodes}
