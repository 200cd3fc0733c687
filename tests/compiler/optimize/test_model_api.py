"""optimize_allreduce on real gloo ranks, end to end."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from compiler import CommPlanError, Verdict, optimize_allreduce
from compiler.analysis.layers import LayerMetadata
from compiler.runtime import guarded_graph
from compiler.runtime.counting import count_collectives
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from tests.compiler.optimize.models import HIDDEN, Counter, Decision, MaskedExperts, Stack


def failure(call: Any) -> str:
    try:
        call()
    except CommPlanError as error:
        return str(error)
    return "nothing was refused"


def both(model: Any, optimized: Any, *args: Any, **kwargs: Any) -> tuple[float, int, int]:
    """Largest difference, and the all_reduces that ran in the model and in the optimized one."""
    with torch.no_grad():
        optimized(*args, **kwargs)
        with count_collectives() as before:
            want = model(*args, **kwargs)
        with count_collectives() as after:
            got = optimized(*args, **kwargs)
    difference = float((want - got).abs().max()) if want.numel() else 0.0
    return difference, before.collectives["all_reduce"], after.collectives["all_reduce"]


def stack(group: dist.ProcessGroup) -> dict[str, Any]:
    model = Stack(group)
    optimized = optimize_allreduce(model, (torch.randn(5, HIDDEN) * 0 + 1,), group=group)
    found: dict[str, Any] = {}
    for tokens in (0, 1, 2, 7, 64):
        x = torch.linspace(-1, 1, tokens * HIDDEN).reshape(tokens, HIDDEN)
        found[f"{tokens} tokens"] = both(model, optimized, x)
    found["keyword"] = both(model, optimized, x=torch.ones(3, HIDDEN), bias=torch.ones(HIDDEN))
    found["keys"] = list(optimized.state_dict()) == list(model.state_dict())
    found["verdict"] = optimized.report.verdict
    found["kinds"] = [layer.kind for layer in optimized.report.layers]
    found["graphs"] = len(optimized.prepared)
    found["covers 100"] = optimized.graph_module(100) is optimized.prepared[0].module
    found["plan"] = optimized.prepared[0].report.plan.digest
    found["assumed"] = optimized.report.assumed
    with torch.no_grad():
        model.layers[0].branches[0].down.mul_(2)
    found["after a change of weights"] = both(model, optimized, torch.ones(3, HIDDEN))
    return found


def test_merges_and_computes_the_same_for_every_token_count(gloo_pool: Any) -> None:
    ranks = gloo_pool(4).run(stack)
    for found in ranks:
        assert found["0 tokens"] == (0.0, 3, 3)
        for name in ("1 tokens", "2 tokens", "7 tokens", "64 tokens", "keyword"):
            difference, before, after = found[name]
            assert (before, after) == (3, 2), name
            assert difference < 1e-5, name
        assert found["keys"]
        assert found["verdict"] is Verdict.EQUIVALENT
        assert found["kinds"] == ["dense", "dense"]
        assert found["graphs"] == 3, "one for many tokens, one for one token, one with a bias"
        assert found["covers 100"]
        assert found["after a change of weights"][0] < 1e-5
    assert len({found["plan"] for found in ranks}) == 1


def masked(group: dist.ProcessGroup) -> Any:
    model = MaskedExperts(group)
    optimized = optimize_allreduce(model, group=group)
    ids = torch.arange(2 * group.size()).repeat(3)
    found = both(model, optimized, ids)
    whole = model.experts[ids] + model.experts[ids.flip(0)] * model.gate
    return found, float((optimized(ids) - whole).abs().max()), optimized.report.verdict


def test_a_mask_that_depends_on_the_rank_through_an_integer(gloo_pool: Any) -> None:
    for (difference, before, after), to_whole, verdict in gloo_pool(4).run(masked):
        assert (before, after, verdict) == (2, 1, Verdict.EQUIVALENT)
        assert max(difference, to_whole) < 1e-6


def different_norm(group: dist.ProcessGroup) -> str:
    model = Stack(group)
    if group.rank() == 1:
        with torch.no_grad():
            model.layers[1].norm[3] += 1
    return failure(lambda: optimize_allreduce(model, (torch.ones(3, HIDDEN),), group=group))


def test_a_norm_weight_that_differs_between_ranks_is_refused(gloo_pool: Any) -> None:
    for message in gloo_pool(4).run(different_norm):
        assert "layers.1.norm" in message
        assert "rank 1" in message
        assert "ranks 0, 2, 3" in message
        assert "remedy" in message


def different_input(group: dist.ProcessGroup) -> str:
    optimized = optimize_allreduce(Stack(group), group=group)
    return failure(lambda: optimized(torch.full((3, HIDDEN), float(group.rank() == 2))))


def test_an_input_that_differs_between_ranks_is_refused_at_the_first_call(gloo_pool: Any) -> None:
    for message in gloo_pool(4).run(different_input):
        assert message == (
            "input 'x' must be the same on all ranks, and is not\n"
            "  found: rank 2 differs from the others\n"
            "  remedy: give every rank the same input, or declare its placement with inputs="
            "{'x': {'tp': Varying()}}"
        )


def updated(group: dist.ProcessGroup) -> Any:
    sides = [Counter(group), Counter(group)]
    optimized = optimize_allreduce(sides[1], group=group)
    caches = [torch.ones(8, HIDDEN), torch.ones(8, HIDDEN)]
    x = torch.linspace(0, 1, 3 * HIDDEN).reshape(3, HIDDEN)
    for _ in range(2):
        results = [sides[0](x, caches[0]), optimized(x, caches[1])]
    gap = max(float((a - b).abs().max()) for a, b in (results, caches))
    return gap, float(sides[0].calls), float(sides[1].calls), optimized.report.after.all_reduces


def test_caches_and_buffers_are_updated_in_place(gloo_pool: Any) -> None:
    for gap, calls, optimized_calls, after in gloo_pool(2).run(updated):
        assert gap < 1e-5
        assert (calls, optimized_calls, after) == (2.0, 2.0, 1)


def alone(group: dist.ProcessGroup) -> Any:
    model = Stack(group)
    optimized = optimize_allreduce(model, (torch.ones(3, HIDDEN),), group=group)
    x = torch.ones(4, HIDDEN)
    return [str(r) for r in optimized.report.remarks], torch.equal(optimized(x), model(x))


def test_world_size_one_is_a_no_op_that_says_so(gloo_pool: Any) -> None:
    ((remarks, same),) = gloo_pool(1).run(alone)
    assert remarks == ["note: world size 1: no rank owes another a sum; the model runs as it is"]
    assert same


def refused(group: dist.ProcessGroup) -> dict[str, str]:
    x = (torch.ones(3, HIDDEN),)

    def attempt(model: Any, **options: Any) -> str:
        return failure(lambda: optimize_allreduce(model, x, group=group, **options))

    return {
        "layer": attempt(Stack(group), layers=[LayerMetadata(7, "sparse")]),
        "kind": attempt(Stack(group), layers=["dense", "wide"]),
        "policy": attempt(Stack(group), policy="best"),
        "machine": attempt(Stack(group), machine="abacus"),
        "inputs": failure(lambda: optimize_allreduce(Stack(group), 3, group=group)),
        "export": attempt(Decision(group)),
        "report": failure(lambda: optimize_allreduce(Stack(group), group=group).report),
        "tokens": failure(lambda: optimize_allreduce(Stack(group), group=group).graph_module(3)),
        "signature": failure(lambda: optimize_allreduce(Stack(group), group=group)(*x, 1, 2)),
    }


def test_bad_input_is_one_clear_error(gloo_pool: Any) -> None:
    found, _ = gloo_pool(2).run(refused)
    assert found["layer"] == (
        "layers= names layer 7, which the graph does not have\n"
        "  found: the graph has layers [0, 1]\n"
        "  remedy: number layers as the model's modules are"
    )
    assert found["kind"].startswith("layers= gives layer 1 a kind there is not\n  found: 'wide'")
    assert (
        found["policy"]
        == "unknown policy\n  found: 'best'\n  remedy: one of cost, merge, boundary, off"
    )
    assert found["machine"].startswith("no machine 'abacus'\n  found: known machines: a100x8, ")
    assert found["inputs"].startswith(
        "example_inputs= must be the arguments of a call\n  found: int"
    )
    assert "models.py:" in found["export"]
    assert "x.sum() > 0" in found["export"]
    assert "torch.where" in found["export"]
    assert found["report"].startswith("nothing has been optimized yet")
    assert found["tokens"].startswith("no graph is prepared for 3 tokens")
    assert found["signature"].startswith("the arguments do not fit the model's forward")


def test_without_a_process_group() -> None:
    with pytest.raises(CommPlanError, match="no process group is initialized\n  remedy: start"):
        optimize_allreduce(torch.nn.Linear(2, 2))


def step3p5(group: dist.ProcessGroup, experts: str) -> Any:
    config = Step3p5Config.small(num_hidden_layers=3)
    model = Step3p5ForCausalLM(config, group=group, experts=experts, dtype=torch.float32)
    dense = Step3p5ForCausalLM(config, dtype=torch.float32)
    optimized = optimize_allreduce(model, group=group)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, config.vocab_size, (2, 12), generator=generator)
    positions = torch.arange(12).expand(2, 12)
    found = []
    caches = {name: side.make_cache(2, 16) for name, side in (("model", model), ("dense", dense))}
    caches["optimized"] = model.make_cache(2, 16)
    sides = {"model": model, "dense": dense, "optimized": optimized}
    for tokens in (slice(0, 10), slice(10, 11), slice(11, 12)):
        logits, counted = {}, {}
        optimized.prepare_call(ids[:, tokens], positions[:, tokens], caches["optimized"])
        for name, side in sides.items():
            with torch.no_grad(), count_collectives() as counts:
                logits[name] = side(ids[:, tokens], positions[:, tokens], caches[name])
            counted[name] = counts.collectives["all_reduce"]
        rms = float(logits["dense"].pow(2).mean().sqrt())
        gaps = [float((logits[n] - logits["optimized"]).abs().max()) / rms for n in sides]
        found.append((max(gaps), counted["model"], counted["optimized"]))
    return found, len(optimized.prepared), config.mlp_layer_types


@pytest.mark.parametrize("experts", ["tp", pytest.param("ep", marks=pytest.mark.campaign)])
def test_step3p5_prefill_and_decode_equal_the_dense_model(gloo_pool: Any, experts: str) -> None:
    for found, graphs, kinds in gloo_pool(2).run(step3p5, experts):
        sparse = list(kinds).count("sparse")
        as_written = 1 + 2 * len(kinds) + sparse
        assert graphs == 2, "one for prefill, one for decode"
        for gap, before, after in found:
            assert gap < 5e-5
            assert (before, after) == (as_written, as_written - sparse)


def compiled(group: dist.ProcessGroup, modules_are_read: bool) -> dict[str, Any]:
    torch._dynamo.reset()
    model = Stack(group)
    optimized = optimize_allreduce(model, (torch.ones(5, HIDDEN),), group=group)
    seen: list[torch.fx.GraphModule] = []

    def backend(gm: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(gm)
        return gm.forward

    run = torch.compile(optimized, backend=backend)
    x = torch.linspace(-1, 1, 7 * HIDDEN).reshape(7, HIDDEN)
    gaps = []
    with (
        torch.no_grad(),
        patch.object(guarded_graph, "compilers_read_modules", lambda: modules_are_read),
    ):
        gaps.append(float((run(x) - model(x)).abs().max()))
        model.layers[0].branches[0].down.mul_(2)
        gaps.append(float((run(x) - model(x)).abs().max()))
        replaced = torch.nn.Parameter(model.layers[1].norm + 1, requires_grad=False)
        model.layers[1].norm = replaced
        gaps += [float((called(x) - model(x)).abs().max()) for called in (run, optimized)]
    starts = [n for gm in seen for n in gm.graph.nodes if "all_reduce" in str(n.target)]
    return {"graphs": len(seen), "starts": len(starts), "gaps": gaps}


@pytest.mark.parametrize("modules_are_read", [True, False])
def test_a_compiler_sees_one_graph_and_weights_stay_live(
    gloo_pool: Any, modules_are_read: bool
) -> None:
    for found in gloo_pool(2).run(compiled, modules_are_read):
        assert (found["graphs"], found["starts"]) == (1, 2)
        assert max(found["gaps"]) < 1e-5, found


class Rolling(torch.nn.Module):
    """Keeps the last sums in a buffer that every call updates."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: torch.Tensor, rows: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        y = x * (self.group.rank() + 1)
        dist.all_reduce(y, group=self.group)
        cache.index_put_((rows,), y)
        return y + 1


def cached(group: dist.ProcessGroup) -> list[tuple[float, float]]:
    model = Rolling(group)
    optimized = optimize_allreduce(model, group=group)
    x, rows = torch.randn(3, HIDDEN) * 0 + 2, torch.tensor([4, 0, 2])
    found = []
    for columns in (HIDDEN, 2 * HIDDEN):  # contiguous, then every other row of a wider tensor
        caches = [torch.zeros(6, columns)[:, :HIDDEN] for _ in range(2)]
        want, got = model(x, rows, caches[0]), optimized(x, rows, caches[1])
        gaps = [float((a - b).abs().max()) for a, b in ((want, got), (caches[0], caches[1]))]
        found.append((max(gaps), float(caches[1].abs().max())))
    assert all(r.plan.in_place for p in optimized.prepared for r in p.variants.ranges())
    return found


def test_caches_are_written_in_place_whatever_their_strides(gloo_pool: Any) -> None:
    for found in gloo_pool(2).run(cached):
        assert [gap for gap, _ in found] == [0.0, 0.0]
        assert [largest for _, largest in found] == [6.0, 6.0]


def test_unknown_kernels_are_refused() -> None:
    assert "unknown kernels" in failure(
        lambda: optimize_allreduce(torch.nn.Linear(1, 1), kernels="fast")
    )
