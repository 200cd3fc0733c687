import pytest
import torch

from compiler.analysis.replication import replicated_over, replication
from compiler.capture import capture
from compiler.capture.fake_ranks import fake_process_group
from compiler.capture.whole_parameters import same_values
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate, Varying
from tests.support.graphs import Builder, aten
from tests.support.random_graphs import rank_int, seeded
from tests.support.seeds import share

GRID = Mesh({"dp": 2, "tp": 2})


def replicated(graph):
    """Per input, the axes along which it is the same."""
    axes = graph.mesh.axes
    return {
        name: frozenset(a for a, p in zip(axes, held, strict=True) if p == Replicate())
        for name, held in graph.inputs.items()
    }


def test_what_is_the_same():
    build = Builder(GRID)
    x, y = build.input("x", 4, varies=("dp", "tp")), build.input("y", 4, varies=("tp",))
    z = build.input("z", 4)
    expected = {
        build.all_reduce(x): {"tp"},
        build.all_reduce(y): {"dp", "tp"},
        build.all_gather(x, "dp"): {"dp"},
        build.broadcast(y, 0): {"dp", "tp"},
        build.reduce_scatter(z): {"dp"},
        build.call(aten.mul.Tensor, y, z): {"dp"},
        build.call(aten.narrow.default, z, 0, rank_int(0, 1, 0, 1), 2): {"dp"},
        build.call(aten.copy.default, x, z): {"dp", "tp"},
        build.call(aten.rand_like.default, z): set(),
        build.call(aten.digamma.default, z): set(),
        build.call(aten.frexp.Tensor, z): set(),
    }
    graph = build.finish(*expected)
    found = same_values(graph.graph, GRID, replicated(graph))
    assert {n.name: found[n] for n in expected} == {n.name: a for n, a in expected.items()}


def test_what_is_the_same_is_replicated():
    agreed = 0
    for seed in range(share(120)):
        graph = seeded(seed)
        same, classes = same_values(graph.graph, graph.mesh, replicated(graph)), replication(graph)
        for node, held in classes.items():
            for axis in same[node]:
                assert replicated_over(held, graph.mesh.groups[axis]), (seed, node.name, axis)
            agreed += len(same[node])
    assert agreed > share(1000)


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
