"""Capture on real ranks: they are asked, and what they hold is compared."""

import torch
import torch.distributed as dist
from torch import nn

from compiler.capture import capture
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate, Varying
from tests.compiler.capture.models import HIDDEN, NORM, Embedding, Ranks, Stack

X = torch.zeros(6, HIDDEN)


def refusal(model, group, args=(X,)):
    """The text of the error that this rank raises."""
    try:
        capture(model, args, exchange=Ranks(group))
    except CommPlanError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def placements(group):
    captured = capture(Stack(group), (X,), exchange=Ranks(group))
    placed = {key: captured.graph.inputs[name] for name, key in captured.state.items()}
    return captured.graph.mesh, placed[NORM], placed["layers.1.up.weight"], captured.assumed


def test_equal_tensors_are_replicated_and_others_are_not(gloo_pool):
    (mesh, norm, shard, assumed), other = gloo_pool(2).run(placements)
    assert (mesh, norm, shard) == (Mesh({"tp": 2}), (Replicate(),), (Varying(),))
    assert other == (mesh, norm, shard, assumed)
    assert len(assumed) == 1
    assert assumed[0].startswith("argument 'x'")


def rank_constants(group):
    captured = capture(Embedding(group), (torch.arange(6),), exchange=Ranks(group))
    nodes = captured.graph.graph.nodes
    found = [(x, x.values) for node in nodes for x in access.rank_constants(node)]
    return found, captured.remarks


def test_numbers_computed_from_the_rank_are_exchanged(gloo_pool):
    values = (0, 16)
    assert gloo_pool(2).run(rank_constants) == [([(16 * r, values)], ()) for r in range(2)]


def stray_norm(group):
    model = Stack(group)
    if dist.get_rank(group) == 1:
        model.layers[0].norm.weight.data[3] += 1
    return refusal(model, group)


def test_a_norm_weight_that_differs_is_refused_with_the_ranks(gloo_pool):
    for text in gloo_pool(4).run(stray_norm):
        assert f"PlacementError: parameter {NORM!r} has to be the same on all ranks" in text
        assert "ranks 0, 2, 3: digest" in text
        assert "; rank 1: digest" in text
        assert f"inputs={{{NORM!r}: Varying()}}" in text


class Ranked(nn.Module):
    """A model whose second rank does something of its own."""

    def __init__(self, group, how):
        super().__init__()
        self.odd, self.how = dist.get_rank(group) == 1, how

    def forward(self, x):
        if self.odd and self.how == "op":
            return x.sin()
        if self.odd and self.how == "failure":
            raise ValueError("only here")
        return x.cos()


def ranked(group, how):
    return refusal(Ranked(group, how), group)


def test_another_op_on_one_rank_is_refused_on_all(gloo_pool):
    for text in gloo_pool(2).run(ranked, "op"):
        assert "the ranks do not run the same program" in text
        assert "rank 0: " in text
        assert "cos" in text
        assert "sin" in text
        assert "where: test_across_ranks.py:" in text


def test_a_failure_on_one_rank_is_an_error_on_all(gloo_pool):
    asked, failed = gloo_pool(2).run(ranked, "failure")
    assert "capture failed on rank 1" in asked
    assert "only here" in asked
    assert "only here" in failed
    assert "test_across_ranks.py:" in failed


def wrong_mesh(group):
    try:
        capture(Stack(group), (X,), exchange=Ranks(group), mesh=Mesh({"tp": 8}))
    except CommPlanError as error:
        return str(error)
    return "no error"


def test_a_mesh_of_another_size_is_refused(gloo_pool):
    for text in gloo_pool(2).run(wrong_mesh):
        assert "a mesh of 8, a process group of 2 ranks" in text


def test_one_rank_owes_nobody(gloo_pool):
    ((mesh, norm, _, _),) = gloo_pool(1).run(placements)
    assert mesh.size == 1
    assert norm == (Replicate(),)
