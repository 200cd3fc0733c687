"""Layer metadata from the graph, from a config, from the caller."""

from types import SimpleNamespace

import pytest

from compiler.analysis.layers import LayerMetadata, layer_index, layer_metadata
from compiler.errors import CommPlanError
from compiler.ir.graph import SpmdGraph
from tests.graphs import function


def two_layers() -> SpmdGraph:
    graph = function(
        '%0 "x": f64[4, 8]',
        "%1: f64[4, 8] = aten.silu(%0)",
        "%2: (f64[4, 2], i64[4, 2]) = aten.topk(%1, 2)",
        "%3: f64[4, 2] = %2[0]",
        "return %3",
    )
    paths = {"silu": "model.layers.0.mlp", "topk": "model.layers.1.moe.gate"}
    for node in graph.graph.nodes:
        for op, path in paths.items():
            if op in str(node.target):
                node.meta["nn_module_stack"] = {path: (path, "Module")}
    return graph


@pytest.mark.parametrize(
    ("path", "index"),
    [("model.layers.12.moe", 12), ("h.3", 3), ("layers3.norm", None), ("", None), ("5", 5)],
)
def test_layer_index(path: str, index: int | None) -> None:
    assert layer_index(path) == index


def test_a_layer_that_routes_is_sparse() -> None:
    assert layer_metadata(two_layers()) == (
        LayerMetadata(0, "dense", None, "sparse"),
        LayerMetadata(1, "sparse", "dense", None),
    )


@pytest.mark.parametrize(
    "config",
    [
        SimpleNamespace(mlp_layer_types=["sparse", "dense", "sparse"]),
        SimpleNamespace(num_hidden_layers=2, moe_layers_enum="0,"),
    ],
)
def test_the_config_overrides_the_graph(config: object) -> None:
    assert [m.kind for m in layer_metadata(two_layers(), config=config)] == ["sparse", "dense"]


def test_first_k_dense_replace() -> None:
    config = SimpleNamespace(num_hidden_layers=2, first_k_dense_replace=2)
    assert [m.kind for m in layer_metadata(two_layers(), config=config)] == ["dense", "dense"]


def test_the_caller_overrides_both() -> None:
    config = SimpleNamespace(mlp_layer_types=["dense", "dense"])
    found = layer_metadata(two_layers(), config=config, layers=[LayerMetadata(0, "sparse")])
    assert [m.kind for m in found] == ["sparse", "dense"]


def test_refusals() -> None:
    with pytest.raises(CommPlanError, match="layers= names layer 2, which the graph does not have"):
        layer_metadata(two_layers(), layers=["dense", "dense", "sparse"])
    with pytest.raises(CommPlanError, match="gives layer 1 a kind there is not\n  found: 'moe'"):
        layer_metadata(two_layers(), layers=["dense", "moe"])
