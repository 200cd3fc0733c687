"""Graphs behind AOTAutograd as functional ones."""

from typing import Any

import pytest
import torch
from torch import fx

from compiler.backend.aot_graphs import functional
from compiler.errors import CaptureError

aten = torch.ops.aten


def traced(build: Any) -> fx.GraphModule:
    """A graph of two inputs, ``x`` and ``cache``; ``build`` gives its outputs."""
    graph = fx.Graph()
    inputs = [graph.placeholder(name) for name in ("x", "cache")]

    def call(op: Any, *args: Any) -> fx.Node:
        node = graph.call_function(op, args)
        node.meta["val"] = torch.ones(2)
        return node

    for node in inputs:
        node.meta["val"] = torch.ones(2)
    graph.output(build(call, *inputs))
    return fx.GraphModule(torch.nn.Module(), graph)


def written_at_the_end(call: Any, x: fx.Node, cache: fx.Node) -> Any:
    new = call(aten.add.Tensor, x, cache)
    call(aten.copy_.default, cache, new)
    return (call(aten.neg.default, x), None)


def test_writes_become_outputs_behind_the_results() -> None:
    module, written = functional(traced(written_at_the_end))
    assert written == ("cache",)
    assert [node.target for node in module.graph.output_node().args[0]] == [
        aten.neg.default,
        aten.add.Tensor,
    ]


def test_bounds_of_sizes_and_assertions_are_kept() -> None:
    def build(call: Any, x: fx.Node, cache: fx.Node) -> Any:
        call(aten._assert_async.default, x).meta.clear()
        return (call(torch.sym_max, x, cache),)

    module, written = functional(traced(build))
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert (targets, written) == ([aten._assert_async.default, torch.sym_max], ())


def written_inside(call: Any, x: fx.Node, cache: fx.Node) -> Any:
    new = call(aten.neg.default, x)
    call(aten.copy_.default, new, cache)
    return (new,)


def read_later(call: Any, x: fx.Node, cache: fx.Node) -> Any:
    call(aten.copy_.default, cache, x)
    return (call(aten.neg.default, cache),)


def opaque(call: Any, x: fx.Node, cache: fx.Node) -> Any:
    return (call(torch.sin, x),)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (written_inside, "op aten.copy_.default writes to a value"),
        (read_later, "op aten.neg.default reads an input after a write to it"),
        (opaque, "ops that are not functional ATen ops or collectives\n  found: <built-in method"),
    ],
)
def test_what_has_no_functional_form_is_refused(build: Any, message: str) -> None:
    with pytest.raises(CaptureError) as caught:
        functional(traced(build))
    assert message in str(caught.value)
