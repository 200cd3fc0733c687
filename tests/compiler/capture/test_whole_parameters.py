import pytest
import torch

from compiler.capture import capture
from compiler.capture.fake_ranks import fake_process_group
from compiler.capture.whole_parameters import met_by_same
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate, Varying
from tests.support.graphs import Builder, aten

GRID = Mesh({"dp": 2, "tp": 2})


@pytest.mark.parametrize(
    ("met", "axes"),
    [
        (lambda build, x, y, z: x, set()),
        (lambda build, x, y, z: y, {"dp"}),
        (lambda build, x, y, z: z, {"dp", "tp"}),
        (lambda build, x, y, z: build.all_reduce(x), {"tp"}),
        (lambda build, x, y, z: build.call(aten.zeros_like.default, z), {"dp", "tp"}),
        (lambda build, x, y, z: build.call(aten.zeros_like.default, y), {"dp"}),
        (
            lambda build, x, y, z: build.call(
                aten.add.Tensor, build.call(aten.zeros_like.default, x), 1
            ),
            set(),
        ),
        (lambda build, x, y, z: build.all_reduce(build.call(aten.zeros_like.default, x)), {"tp"}),
        (lambda build, x, y, z: build.call(aten.rand_like.default, z), set()),
        (lambda build, x, y, z: build.call(aten.digamma.default, z), set()),
    ],
)
def test_a_parameter_is_as_whole_as_what_it_meets(met, axes):
    build = Builder(GRID)
    weight = build.input("weight", 4, varies=("dp", "tp"))
    x, y = build.input("x", 4, varies=("dp", "tp")), build.input("y", 4, varies=("tp",))
    other = met(build, x, y, build.input("z", 4))
    graph = build.finish(build.call(aten.mul.Tensor, build.call(aten.neg.default, weight), other))
    required = met_by_same(graph, {"weight": True})
    assert {name: set(found) for name, (found, _) in required.items()} == (
        {"weight": axes} if axes else {}
    )
    assert met_by_same(graph, {"weight": False}) == met_by_same(graph, {}) == {}


class Writes(torch.nn.Module):
    """Adds a function of the argument to a buffer."""

    def __init__(self, function):
        super().__init__()
        self.register_buffer("total", torch.zeros(3), persistent=False)
        self.function = function

    def forward(self, x):
        self.total.copy_(self.function(x))
        return x + 1


@pytest.mark.parametrize(
    ("function", "placement"), [(torch.tanh, Replicate()), (torch.digamma, Varying())]
)
def test_a_buffer_written_by_an_op_without_a_rule_may_differ(function, placement):
    with fake_process_group(1, 4):
        captured = capture(Writes(function), (torch.ones(3),))
    assert captured.graph.inputs["b_total"] == (placement,)
