"""Models as their authors wrote them: no finding, and one for a reduction that is taken away."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import fx

from compiler.capture import Capture, capture, capture_ranks
from compiler.capture.fake_ranks import fake_process_group
from compiler.ir.collectives import WAIT, Kind, collective, insert
from compiler.ir.graph import SpmdGraph
from compiler.linter import findings
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM

CONFIG = Step3p5Config.small(num_hidden_layers=3)


def mutable_copy(graph: SpmdGraph) -> SpmdGraph:
    copy = graph.own_copy()
    return SpmdGraph(graph.root, copy.graph, graph.mesh, graph.inputs)


def reduced(graph: SpmdGraph) -> list[fx.Node]:
    """Every all_reduce, waited for."""
    waits = [n for n in graph.graph.nodes if n.target is WAIT]
    return [n for n in waits if (c := collective(n)) is not None and c.kind is Kind.ALL_REDUCE]


def model(experts: str) -> Step3p5ForCausalLM:
    group = dist.group.WORLD
    return Step3p5ForCausalLM(CONFIG, group=group, experts=experts, dtype=torch.bfloat16)


def call() -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    return (torch.zeros(1, 8, dtype=torch.int64), torch.arange(8)[None]), {}


@pytest.fixture(scope="module")
def sliced() -> Capture:
    """Every expert sliced; as one rank traces it, whose offsets nobody compares."""
    with fake_process_group(1, 2):
        return capture(model("tp"), *call())


def test_no_finding(sliced: Capture) -> None:
    dealt = capture_ranks(lambda: model("ep"), call, 8)
    for one in (sliced, dealt):
        assert [str(found) for found in findings(one.graph, one.mutations)] == []


def test_a_reduction_taken_away_is_missed_where_its_sum_is_used(sliced: Capture) -> None:
    """All but the embedding's, whose rows are picked by an index of unknown meaning."""
    count = len(reduced(sliced.graph))
    places = []
    for i in range(1, count):
        wrong = mutable_copy(sliced.graph)
        wait = reduced(wrong)[i]
        wait.replace_all_uses_with(wait.args[0].args[0])
        (one,) = (f for f in findings(wrong) if f.rule != "unused-collective")
        assert one.rule == "missing-reduction"
        places.append((one.layer, one.source.split(":")[0]))
    layers = [0, 0, 1, 1, 2, 2, 2]
    assert places == [(f"model.layers.{i}", "model.py") for i in layers]


def test_a_second_reduction_is_found(sliced: Capture) -> None:
    wrong = mutable_copy(sliced.graph)
    wait = reduced(wrong)[-1]
    found = collective(wait)
    assert found is not None
    with wrong.graph.inserting_after(wait):
        again = insert(Kind.ALL_REDUCE, wait, found.group, op=found.op)
    started = again.args[0]
    again.append(started)
    started.append(again)
    wait.replace_all_uses_with(again, delete_user_cb=lambda user: user is not started)
    (one,) = findings(wrong)
    assert (one.rule, one.op, one.layer) == (
        "double-reduction",
        "comm.all_reduce",
        "model.layers.2.share_expert.down_proj",
    )
