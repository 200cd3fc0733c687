"""The layer that is captured, on a terminal alone."""

import time

import pytest
from rich.console import Console
from torch import nn

from compiler.cli.inputs import load_model
from compiler.cli.render.layer_progress import LayerProgress
from compiler.cli.render.progress import Stages


def test_layers_in_order_and_what_is_left(monkeypatch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Identity()) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                clock[0] += 2.0
                x = layer(x)
            return self.layers[1](x)

    clock, texts = [0.0], list[str]()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    progress, model = LayerProgress(texts.append), Model()
    for rank in range(2):
        progress(f"rank {rank}")
        progress.watch(model)
        with progress.watching():
            model(1)
    model(1)
    assert texts == [
        text
        for rank in range(2)
        for text in (
            f"rank {rank}",
            f"rank {rank}: layer 1 of 4",
            f"rank {rank}: layer 2 of 4",
            f"rank {rank}: layer 3 of 4, about 4 s left",
            f"rank {rank}: layer 4 of 4, about 2 s left",
        )
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_capture_tells_its_layers_on_a_terminal(factories, monkeypatch, terminal):
    class Told(Stages):
        def stage(self, name, detail=""):
            return ShownStage()

    class ShownStage:
        def __enter__(self):
            return texts.append

        def __exit__(self, *_):
            pass

    texts = list[str]()
    monkeypatch.setattr(load_model, "stderr", lambda: Console(force_terminal=terminal))
    options = load_model.InputOptions(tp=2)
    graph = load_model.load(f"{factories}:layers", options, Told()).graph
    assert ("tracing the model as rank 1 of 2: layer 2 of 2" in texts) == terminal
    assert len(graph.graph.nodes) > 10
