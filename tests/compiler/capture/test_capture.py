from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import fx, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from compiler.capture import Fixed, capture
from compiler.capture.fake_ranks import fake_process_group
from compiler.errors import MeshError, PlacementError
from compiler.ir import access, collectives, placement
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate, Varying
from tests.compiler.capture.models import HIDDEN, NORM, Cached, Stack

ALL_REDUCE = collectives.c10d.all_reduce.default
X = torch.randn(6, HIDDEN)


@pytest.fixture
def ranks():
    """This process is rank 1 of 4, the others do not exist."""
    with fake_process_group(1, 4):
        yield


def ops(captured):
    return [n.target for n in captured.graph.graph.nodes if n.op == "call_function"]


def folded(captured):
    """The ops, with copy(x, y) of one shape and type replaced by y."""
    graph = captured.graph.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.copy.default:
            target, source = access.operands(node)
            assert access.dtype(target) == access.dtype(source)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    index = {node: i for i, node in enumerate(graph.nodes)}
    return [(n.target, [index[x] for x in n.all_input_nodes]) for n in graph.nodes]


@pytest.mark.usefixtures("ranks")
def test_in_place_and_functional_collectives_give_one_graph():
    functional, inplace = (capture(Stack(inplace=flag), (X,)) for flag in (False, True))
    assert len(ops(inplace)) == len(ops(functional)) + 2
    assert folded(inplace) == folded(functional)
    assert functional.graph.mesh == Mesh({"tp": 4})
    assert collectives.all_group_names(functional.graph.graph) == ("tp",)
    assert functional.groups == {"tp": dist.group.WORLD.group_name}


@pytest.mark.usefixtures("ranks")
def test_every_value_names_its_layer_and_line():
    graph = capture(Stack(), (X,)).graph.graph
    reduces = [n for n in graph.nodes if n.target is ALL_REDUCE]
    assert [access.layer_path(n) for n in reduces] == ["layers.0", "layers.1"]
    assert all(access.source_line(n).startswith("models.py:") for n in reduces)
    norm = next(n for n in graph.nodes if n.target is torch.ops.aten.rms_norm.default)
    assert access.layer_path(norm) == "layers.0.norm"
    assert access.source_line(norm).startswith("models.py:")


def test_mutations_results_and_constants_are_told_apart():
    captured = capture(Cached(), (X, torch.zeros(6, HIDDEN)), {"scale": 2.0})
    assert captured.arguments == ("x", "history", Fixed(2.0))
    assert captured.state == {
        "p_up_weight": "up.weight", "b_cache": "cache", "b_total": "total",
    }  # fmt: skip
    assert sorted(captured.mutations.values()) == ["b_cache", "b_total", "history"]
    y, tokens, none = captured.results
    assert none == Fixed(None)
    outputs = captured.graph.module(
        *(torch.zeros(n.meta["val"].shape[:0] + shape) for n, shape in _shapes(captured, 5))
    )
    assert outputs[tokens] == 5
    assert outputs[y].shape == (5, HIDDEN)


def _shapes(captured, tokens):
    for node in access.node_of(captured.graph.graph, "placeholder"):
        yield node, tuple(access.concrete(s, tokens) for s in access.shape(node))


def test_sizes_of_two_and_more_are_symbolic_where_the_model_allows():
    captured = capture(nn.Linear(HIDDEN, 2), (X,))
    (x,) = (n for n in access.node_of(captured.graph.graph, "placeholder") if n.name == "input_1")
    tokens, hidden = access.shape(x)
    assert captured.ranges == {str(tokens): (2, None)}
    assert hidden == HIDDEN


@pytest.mark.parametrize("tokens", [0, 1])
def test_sizes_of_zero_and_one_are_static(tokens):
    captured = capture(nn.Linear(HIDDEN, 2), (torch.zeros(tokens, HIDDEN),))
    assert captured.ranges == {}
    assert access.shape(access.results(access.output(captured.graph.graph))[0]) == (tokens, 2)


class Even(nn.Module):
    def forward(self, x):
        return x.view(x.shape[0] // 2, 2, -1)


def test_what_the_trace_assumed_of_sizes_is_kept_as_guards():
    captured = capture(Even(), (X,))
    (x,) = access.node_of(captured.graph.graph, "placeholder")

    def holds(tokens):
        sizes = {s.node.expr: n for s, n in zip(access.shape(x), (tokens, HIDDEN), strict=True)}
        return all(bool(guard.subs(sizes)) for guard in captured.guards)

    assert [holds(tokens) for tokens in (6, 7, 8)] == [True, False, True]


class Chunked(nn.Module):
    """A loop over chunks of the sequence, whose length turns out to be that of another input."""

    def forward(self, x, y):
        padded = x.shape[0] + -x.shape[0] % 64
        for chunk in range(padded // 64):
            x = x + chunk
        return x + y


@pytest.mark.parametrize("mode", ["record", "export"])
def test_guards_on_a_size_that_equals_another_end_its_range(mode):
    captured = capture(Chunked(), (X, X.clone()), capture=mode)
    assert list(captured.ranges.values()) == [(2, 64), (2, None)]  # rows, columns


def test_models_of_fake_tensors():
    with FakeTensorMode():
        model = nn.Linear(HIDDEN, 2)
    captured = capture(model, (X,))
    assert list(captured.state.values()) == ["weight", "bias"]


@pytest.mark.usefixtures("ranks")
def test_exported_programs_and_their_modules():
    model = Stack()
    program = torch.export.export(model, (X,), strict=False)
    direct = capture(model, (X,))
    for form, args in ((program, ()), (program.module(), (X,))):
        captured = capture(form, args)
        assert ops(captured) == ops(direct)
        assert captured.state == direct.state
        assert captured.groups == direct.groups


def hand_built(group):
    """all_reduce(x + w), with w an attribute."""
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(HIDDEN))
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.get_attr("w")
    y = graph.call_function(torch.ops.aten.add.Tensor, (x, w))
    reduced = graph.call_function(ALL_REDUCE, (y, "sum", group))
    wait = graph.call_function(collectives.WAIT, (reduced,))
    graph.output({"sum": wait, "none": None})
    for node in (x, y, reduced, wait):
        node.meta["val"] = torch.empty(6, HIDDEN, device="meta")
    w.meta["val"] = torch.empty(HIDDEN, device="meta")
    return fx.GraphModule(module, graph)


def test_a_graph_of_functional_ops_is_taken_as_it_is():
    captured = capture(hand_built("tp"), mesh=Mesh({"tp": 4}))
    assert captured.state == {"p_w": "w"}
    assert captured.arguments == ("x",)
    assert captured.results == (0, Fixed(None))
    assert captured.graph.inputs == {"x": (Replicate(),), "p_w": (Replicate(),)}
    assert any("p_w" in why or "'w'" in why for why in captured.assumed)


def test_a_group_that_does_not_resolve_is_refused():
    with pytest.raises(MeshError, match="group name 'nowhere' does not resolve"):
        capture(hand_built("nowhere"))


@pytest.mark.usefixtures("ranks")
def test_a_mesh_of_another_size_is_refused():
    with pytest.raises(MeshError, match="a mesh of 8, a process group of 4 ranks"):
        capture(Stack(), (X,), mesh=Mesh({"tp": 8}))


@pytest.mark.usefixtures("ranks")
def test_without_other_ranks_the_capture_says_so():
    captured = capture(Stack(), (X,))
    assert "no other ranks to compare with" in captured.remarks[0]
    assert any("argument 'x'" in why for why in captured.assumed)


@pytest.mark.usefixtures("ranks")
def test_dimensions_of_a_device_mesh_name_the_axes():
    device_mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    captured = capture(Stack(device_mesh.get_group("tp")), (X,))
    assert captured.graph.mesh.axes == {"tp": 2}
    assert captured.groups == {"tp": device_mesh.get_group("tp").group_name}


@pytest.mark.usefixtures("ranks")
def test_dtensors_are_localised_and_declare_their_placement():
    model = Stack()
    device_mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
    weight = model.layers[0].up.weight
    model.layers[0].up.weight = nn.Parameter(
        DTensor.from_local(weight.data, device_mesh, [Shard(0)], run_check=False)
    )
    captured = capture(model, (X,))
    placed = {key: captured.graph.inputs[name] for name, key in captured.state.items()}
    assert placed["layers.0.up.weight"] == (placement.Shard(0),)
    assert isinstance(model.layers[0].up.weight, DTensor)


@pytest.mark.usefixtures("ranks")
def test_state_that_is_written_is_replicated_only_if_what_is_written_is():
    captured = capture(Cached(), (X, torch.zeros(6, HIDDEN)))
    assert captured.graph.inputs["history"] == (Varying(),)
    assert captured.graph.inputs["x"] == (Replicate(),)


class Planned(Stack):
    tp_plan: ClassVar = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}


@pytest.mark.usefixtures("ranks")
def test_a_plan_declares_all_parameters():
    captured = capture(Planned(), (X,))
    placed = {key: captured.graph.inputs[name] for name, key in captured.state.items()}
    assert placed["layers.1.up.weight"] == (placement.Shard(0),)
    assert placed["layers.1.down.weight"] == (placement.Shard(1),)
    assert placed[NORM] == (Replicate(),)


@pytest.mark.usefixtures("ranks")
def test_the_caller_overrides_the_plan():
    captured = capture(Planned(), (X,), inputs={NORM: Varying(), "x": Varying()})
    assert captured.graph.inputs["p_layers_0_norm_weight"] == (Varying(),)
    assert captured.graph.inputs["x"] == (Varying(),)


@pytest.mark.usefixtures("ranks")
def test_wrong_declarations_are_refused():
    model = Planned()
    model.tp_plan = {"layers.*.up": "packed_colwise"}
    with pytest.raises(PlacementError, match="unknown style for 'layers"):
        capture(model, (X,))
    with pytest.raises(PlacementError, match="'absent'"):
        capture(Stack(), (X,), inputs={"absent": Replicate()})


@pytest.mark.usefixtures("ranks")
def test_patterns_that_name_nothing_are_remarked():
    model = Planned()
    model.tp_plan = {"layers.*.gate": "colwise"}
    assert "tp_plan: 'layers.*.gate' names no tensor" in "\n".join(capture(model, (X,)).remarks)


class AddsOne(nn.Module):
    """Norms by hand, weights used through functions of them alone."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(HIDDEN))
        self.shift = nn.Parameter(torch.zeros(1, HIDDEN))
        self.columns = nn.Parameter(torch.zeros(HIDDEN, HIDDEN))
        self.single = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        y = x * (1 + self.scale.float()) - self.shift
        part = (y @ self.columns) * self.single
        return funcol.all_reduce(part, "sum", dist.group.WORLD)


@pytest.mark.usefixtures("ranks")
def test_only_tensors_of_the_whole_size_are_taken_to_be_replicated():
    captured = capture(AddsOne(), (X,))
    placed = {key: captured.graph.inputs[name] for name, key in captured.state.items()}
    assert placed["scale"] == placed["shift"] == (Replicate(),)
    assert placed["columns"] == placed["single"] == (Varying(),)
