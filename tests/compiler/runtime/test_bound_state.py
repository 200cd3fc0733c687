"""What graphs read besides arguments: looked up once, read at every call, held for compilers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import fx, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from compiler.runtime import bound_state
from compiler.runtime.bound_state import BoundState, GraphWithState, compilers_read_modules, slot


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(2))
        self.plain = torch.full((2,), 5.0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("key", ["scale", "layers.1.weight", "layers.0.count", "layers.1.plain"])
def test_a_slot_gives_what_the_model_holds_now(key: str) -> None:
    model = Model()
    owner, name = slot(model, key)
    path, _, attribute = key.rpartition(".")
    module, new = model.get_submodule(path), torch.ones(1)
    assert owner[name] is getattr(module, attribute)
    setattr(module, attribute, nn.Parameter(new) if attribute in ("weight", "scale") else new)
    assert owner[name] is getattr(module, attribute)


def test_state_then_constants_in_the_order_of_their_names() -> None:
    model, constant = Model(), torch.ones(3)
    found = BoundState(model, {"w": "layers.0.weight", "s": "scale"}, {"c": constant})
    assert found.names == ("w", "s", "c")
    got = found.tensors()
    assert all(
        a is b for a, b in zip(got, (model.layers[0].weight, model.scale, constant), strict=True)
    )
    assert found.tensors() is got
    model.scale = nn.Parameter(torch.zeros(1))
    assert found.tensors() is got, "whoever watches the model says when to look"
    found.refresh()
    assert found.tensors()[1] is model.scale
    assert got[1] is not model.scale


def test_a_graph_may_read_constants_alone() -> None:
    constant = torch.ones(3)
    (found,) = BoundState(Model(), {}, {"c": constant}).tensors()
    assert found is constant


def local_parts(group: dist.ProcessGroup) -> list[list[float]]:
    model, parts = nn.Linear(1, 4, bias=False), []
    mesh = DeviceMesh.from_group(group, "cpu")
    first, second = (
        DTensor.from_local(torch.full((2, 1), n + group.rank()), mesh, [Shard(0)]) for n in (0.0, 5)
    )
    model.weight = nn.Parameter(first, requires_grad=False)
    found = BoundState(model, {"w": "weight"}, {})
    for _ in range(2):
        (part,) = found.tensors()
        assert not isinstance(part, DTensor)
        parts.append(part.flatten().tolist())
        torch.utils.swap_tensors(model.weight, nn.Parameter(second, requires_grad=False))
    return parts


def test_of_dtensors_the_part_of_this_rank(gloo_pool: Any) -> None:
    ranks = gloo_pool(2).run(local_parts)
    assert ranks == [[[0.0, 0.0], [5.0, 5.0]], [[1.0, 1.0], [6.0, 6.0]]]


def scaled() -> fx.GraphModule:
    """``(x * w + c) * k``: an argument between tensors that are held, and a constant of its own."""
    graph = fx.Graph()
    w, x, c = (graph.placeholder(name) for name in ("w", "x", "c"))
    total = graph.call_function(torch.add, (graph.call_function(torch.mul, (x, w)), c))
    graph.output((graph.call_function(torch.mul, (total, graph.get_attr("k"))),))
    return fx.GraphModule({"k": torch.tensor(2.0)}, graph)


X = torch.tensor([1.0, 2.0])


def test_holds_some_inputs_and_takes_the_others() -> None:
    source = scaled()
    graph = GraphWithState(source, ("c", "w"))
    graph.hold([torch.tensor(1.0), torch.tensor(3.0)])
    assert graph(X)[0].tolist() == [8.0, 14.0]
    graph.hold([torch.tensor(0.0), torch.tensor(1.0)])
    assert graph(X)[0].tolist() == [2.0, 4.0]
    assert source(torch.tensor(1.0), X, torch.tensor(0.0))[0].tolist() == [2.0, 4.0]
    with pytest.raises(ValueError, match="zip"):
        graph.hold([torch.tensor(1.0)])


def test_compilers_read_what_is_held_and_need_not_copy_it() -> None:
    torch._dynamo.reset()
    seen: list[list[bool]] = []

    def backend(module: fx.GraphModule, _: Any) -> Any:
        inputs = (
            n.meta.get("tensor_dict", {}) for n in module.graph.nodes if n.op == "placeholder"
        )
        seen.append(["_dynamo_static_input_type" in known for known in inputs])
        return module.forward

    graph = GraphWithState(scaled(), ("w", "c"))
    run = torch.compile(graph, backend=backend)
    for scale in (3.0, 4.0):
        graph.hold([torch.tensor(scale), torch.tensor(1.0)])
        assert run(X)[0].tolist() == [2 * scale + 2, 4 * scale + 2]
    assert [sorted(static) for static in seen] == [[False, True, True, True]]


class Configuration:
    inline_inbuilt_nn_modules = False


def test_compilers_that_take_modules_for_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compilers_read_modules()
        monkeypatch.setattr(bound_state.torch._dynamo, "config", Configuration)
        assert not compilers_read_modules()
        monkeypatch.setattr(bound_state.torch._dynamo, "config", object())
        assert compilers_read_modules()
