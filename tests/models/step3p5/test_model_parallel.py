"""The model on several ranks computes what it computes in one process."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed._tools.mod_tracker import ModTracker
from torch.utils._python_dispatch import TorchDispatchMode

from models.step3p5 import ParallelError, Step3p5Config, Step3p5ForCausalLM

CONFIG = Step3p5Config.small()


def example(batch=2, length=24):
    ids = torch.randint(0, CONFIG.vocab_size, (batch, length), generator=torch.manual_seed(1))
    return ids, torch.arange(length).expand(batch, length)


def logits_and_hidden(group, experts, dtype=torch.float32):
    ids, positions = example()
    model = Step3p5ForCausalLM(CONFIG, group=group, experts=experts, dtype=dtype)
    return model(ids, positions), model.model(ids, positions)


def cached_logits(group, experts):
    ids, positions = example()
    model = Step3p5ForCausalLM(CONFIG, group=group, experts=experts)
    cache = model.make_cache(2, 32)
    prefill = model(ids[:, :20], positions[:, :20], cache)
    decode = [model(ids[:, i : i + 1], positions[:, i : i + 1], cache) for i in range(20, 24)]
    return torch.cat([prefill, *decode], 1), cache[0][0].shape


def logits_over_mesh(group, experts):
    mesh = dist.device_mesh.DeviceMesh.from_group(group, "cpu")
    model = Step3p5ForCausalLM(CONFIG, group=mesh, experts=experts)
    return copy.deepcopy(model)(*example())


def count_collectives(group, experts):
    model = Step3p5ForCausalLM(CONFIG, group=group, experts=experts)
    seen = []
    tracker = ModTracker()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "c10d":
                where = max(tracker.parents, key=len)
                seen.append((where.removeprefix("Step3p5ForCausalLM."), func._opname))
            return func(*args, **(kwargs or {}))

    with tracker, Record():
        model(*example())
    return seen


@pytest.fixture(scope="module")
def dense():
    model = Step3p5ForCausalLM(CONFIG)
    return model(*example()), model.model(*example())


@pytest.mark.parametrize("experts", ["tp", "ep"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_agree_with_one_process(gloo_pool, dense, size, experts):
    results = gloo_pool(size).run(logits_and_hidden, experts)
    for found in results:
        for value, expected in zip(found, dense, strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=5e-5)
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("experts", ["tp", "ep"])
def test_bf16_ranks_choose_the_grouped_path_and_agree(gloo_pool, experts):
    # Rounding flips near ties of the router, so not every token can be compared: most must agree.
    expected, _ = logits_and_hidden(None, experts, torch.bfloat16)
    for found, _ in gloo_pool(4).run(logits_and_hidden, experts, torch.bfloat16):
        per_token = (found - expected).float().abs().amax(-1)
        assert per_token.median() < 0.1 * expected.float().std()


@pytest.mark.parametrize("experts", ["tp", "ep"])
def test_cache_holds_the_heads_of_the_rank(gloo_pool, dense, experts):
    for logits, shape in gloo_pool(8).run(cached_logits, experts):
        torch.testing.assert_close(logits, dense[0], rtol=0, atol=5e-5)
        assert shape == (2, 32, 1, CONFIG.head_dim)  # 4 key-value heads, each on two ranks


def test_device_mesh_and_deep_copy(gloo_pool, dense):
    for logits in gloo_pool(4).run(logits_over_mesh, "tp"):
        torch.testing.assert_close(logits, dense[0], rtol=0, atol=5e-5)


@pytest.mark.parametrize("experts", ["tp", "ep"])
def test_every_branch_reduces_where_it_arises(gloo_pool, experts):
    expected = ["model.embed_tokens"]
    for index, mlp in enumerate(CONFIG.mlp_layer_types):
        branches = ["moe", "share_expert.down_proj"] if mlp == "sparse" else ["mlp.down_proj"]
        expected += [f"model.layers.{index}.{b}" for b in ("self_attn.o_proj", *branches)]
    for seen in gloo_pool(2).run(count_collectives, experts):
        assert [where for where, op in seen if op == "allreduce_"] == expected
        assert [op for _, op in seen if op != "allreduce_"] == ["_allgather_base_"]


def test_one_process_calls_no_collective(gloo_pool):
    assert gloo_pool(1).run(count_collectives, "tp") == [[]]


def refusals(group, *cases):
    messages = []
    for config, arguments in cases:
        try:
            Step3p5ForCausalLM(config, group=group, device="meta", **arguments)
        except ParallelError as error:
            messages.append(str(error))
        else:
            messages.append("accepted")
    return messages


def test_indivisible_dimensions_are_named(gloo_pool):
    bf16 = {"dtype": torch.bfloat16}
    small = Step3p5Config.small
    other = dict(CONFIG.attention_other_setting)
    cases = {
        "query heads of full_attention = 12 cannot be": (small(num_attention_heads=12), {}),
        "query heads of sliding_attention = 12 cannot be": (
            small(attention_other_setting=other | {"num_attention_heads": 12}),
            {},
        ),
        "num_attention_groups = 3 key-value heads can be neither": (
            small(
                num_attention_heads=24,
                num_attention_groups=3,
                attention_other_setting={"num_attention_heads": 24},
            ),
            {},
        ),
        "vocab_size = 161 cannot be divided over 8 ranks (remainder 1); use a world size that "
        "divides 161": (small(vocab_size=161), {}),
        "intermediate_size = 100 cannot be": (small(intermediate_size=100), {}),
        "share_expert_dim = 100 cannot be": (small(share_expert_dim=100), {}),
        "moe_intermediate_size = 100 cannot be": (small(moe_intermediate_size=100), {}),
        "moe_num_experts = 12 cannot be": (small(moe_num_experts=12), {"experts": "ep"}),
        "moe_intermediate_size = 32 leaves 4 per rank, 8 bytes": (
            small(moe_intermediate_size=32),
            bf16,
        ),
        "experts must be 'tp' or 'ep', found 'both'": (CONFIG, {"experts": "both"}),
        "accepted": (small(moe_intermediate_size=100), {"experts": "ep"}),
    }
    for messages in gloo_pool(8).run(refusals, *cases.values()):
        for message, expected in zip(messages, cases, strict=True):
            assert message.startswith(expected)


def mesh_refusals(group):
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
    return refusals(mesh, (CONFIG, {})) + refusals("tp", (CONFIG, {}))


def test_unusable_groups_are_refused(gloo_pool):
    two_dims, text = gloo_pool(8).run(mesh_refusals)[0]
    assert two_dims.startswith("group must be a device mesh of 1 dimension, found 2")
    assert text.startswith("group must be a ProcessGroup, a 1-D DeviceMesh or None, found 'tp'")
