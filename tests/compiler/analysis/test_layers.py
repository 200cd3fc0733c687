from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compiler.analysis.layers import (
    LayerMetadata,
    layer_index,
    layer_metadata,
    layers_text,
    ranges_text,
)
from compiler.capture import capture
from compiler.errors import CommPlanError


class Routed(nn.Module):
    def forward(self, x):
        weights, chosen = x.topk(2)
        return x.scatter_add(1, chosen, weights)


class Model(nn.Module):
    """Dense, routed, routed."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), Routed(), Routed()])

    def forward(self, x):
        for layer in self.layers[:]:
            x = layer(x)
        return x


@pytest.fixture(scope="module")
def graph():
    return capture(Model(), (torch.ones(3, 4),)).graph


def kinds(graph, **options):
    return [layer.kind for layer in layer_metadata(graph, **options)]


@pytest.mark.parametrize(
    ("path", "index"),
    [("model.layers.3.moe", 3), ("layers.12", 12), ("h.4.mlp.experts.7", 4), ("model.norm", None)],
)
def test_the_outermost_number_is_the_layer(path, index):
    assert layer_index(path) == index


def test_layers_that_rank_scores_are_sparse(graph):
    assert layer_metadata(graph) == (
        LayerMetadata(0, "dense", None, "sparse"),
        LayerMetadata(1, "sparse", "dense", "sparse"),
        LayerMetadata(2, "sparse", "sparse", None),
    )


@pytest.mark.parametrize(
    "config",
    [
        {"mlp_layer_types": ["sparse", "dense", "sparse"]},
        {"num_hidden_layers": 3, "moe_layers_enum": "0,2"},
        {"num_hidden_layers": 3, "moe_layers_enum": [0, 2]},
        {"num_hidden_layers": 3, "decoder_sparse_step": 1, "mlp_only_layers": [1]},
    ],
)
def test_conventions_of_configs(graph, config):
    assert kinds(graph, config=SimpleNamespace(**config)) == ["sparse", "dense", "sparse"]


def test_the_first_layers_may_be_dense(graph):
    config = SimpleNamespace(num_hidden_layers=3, first_k_dense_replace=2)
    assert kinds(graph, config=config) == ["dense", "dense", "sparse"]


def test_every_nth_layer_may_be_sparse(graph):
    config = SimpleNamespace(num_hidden_layers=3, decoder_sparse_step=2)
    assert kinds(graph, config=config) == ["dense", "sparse", "dense"]


def test_the_caller_overrides_the_config(graph):
    config = SimpleNamespace(num_hidden_layers=3, first_k_dense_replace=0)
    assert kinds(graph, config=config, layers=["dense"] * 3) == ["dense"] * 3
    one = [LayerMetadata(1, "dense")]
    assert kinds(graph, config=config, layers=one) == ["sparse", "dense", "sparse"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["dense", "spare", "dense"], "layer 1 a kind there is not"),
        ([LayerMetadata(9, "dense")], "layer 9, which the graph does not have"),
    ],
)
def test_what_the_graph_does_not_have_is_refused(graph, layers, message):
    with pytest.raises(CommPlanError, match=message):
        layer_metadata(graph, layers=layers)


def test_numbers_as_ranges():
    assert ranges_text([5, 1, 0, 2, 7, 8]) == "0-2, 5, 7-8"


def test_paths_that_differ_in_the_layer_are_one():
    paths = ["m.layers.3.moe", "embed", "m.layers.4.moe", "", "m.layers.7"]
    assert layers_text(paths) == "m.layers.{3-4}.moe, embed, m.layers.7"
