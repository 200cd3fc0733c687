"""The model exports with symbolic batch or length, as authors and engines would export it."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.export import Dim

from models.step3p5 import Step3p5Config, Step3p5ForCausalLM

CONFIG = Step3p5Config.small(num_hidden_layers=3)
DATA_DEPENDENT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@pytest.fixture
def fake_ranks():
    dist.init_process_group("fake", rank=3, world_size=8)
    yield dist.group.WORLD
    dist.destroy_process_group()


def exported(model, batch, length, dynamic_dim, cached):
    device = model.lm_head.weight.device
    ids = torch.zeros(batch, length, dtype=torch.int64, device=device)
    positions = torch.arange(length, device=device).repeat(batch, 1)
    args = {"input_ids": ids, "positions": positions}
    dims = {name: {dynamic_dim: Dim.DYNAMIC} for name in args}
    if cached:
        args["cache"] = model.make_cache(batch, 32)
        per_tensor = {0: Dim.DYNAMIC} if dynamic_dim == 0 else {}
        dims["cache"] = tuple((per_tensor, per_tensor) for _ in args["cache"])
    program = torch.export.export(model, (), args, dynamic_shapes=dims, strict=False)
    return program.run_decompositions({})


def calls(program):
    return [n for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]


FORMS = {"prefill": (1, 8, 1, False), "cached prefill": (1, 8, 1, True), "decode": (3, 1, 0, True)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("dtype", "experts"), [(torch.float32, "tp"), (torch.bfloat16, "ep")], ids=["fp32", "bf16-ep"]
)
def test_exports_with_symbolic_tokens(fake_ranks, form, dtype, experts):
    model = Step3p5ForCausalLM(CONFIG, group=fake_ranks, dtype=dtype, experts=experts)
    program = exported(model, *form)
    nodes = calls(program)
    assert not [n for n in nodes if set(DATA_DEPENDENT) & set(n.target.tags)]
    count = Counter(n.target._opname for n in nodes)
    assert count["all_reduce"] == 1 + 2 + 2 + 3
    assert count["all_gather_into_tensor"] == 1
    assert count["_grouped_mm"] == (3 if dtype is torch.bfloat16 else 0)
    assert count["scaled_dot_product_attention"] == 3
    assert count["rms_norm"] == 3 * 4 + 1
    for node in nodes:
        if node.target._opname == "all_reduce":
            tokens, hidden = node.meta["val"].shape
            assert isinstance(tokens, torch.SymInt)
            assert hidden == CONFIG.hidden_size
    mutated = program.graph_signature.user_inputs_to_mutate.values()
    assert len(mutated) == (2 * CONFIG.num_hidden_layers if form[3] else 0)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_exported_program_computes_the_same(form):
    model = Step3p5ForCausalLM(CONFIG)
    module = exported(model, *form).module()
    batch, length = (5, 1) if form[2] == 0 else (1, 13)
    ids = torch.randint(0, CONFIG.vocab_size, (batch, length), generator=torch.manual_seed(1))
    positions = torch.arange(length).repeat(batch, 1) + 4
    caches = [(model.make_cache(batch, 32),) if form[3] else () for _ in range(2)]
    found = module(*args_of(ids, positions, caches[0]))
    expected = model(*args_of(ids, positions, caches[1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    for ours, theirs in zip(*caches, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def args_of(ids, positions, cache):
    return (ids, positions, *cache)


@pytest.mark.parametrize("experts", ["tp", "ep"])
def test_ranks_differ_in_plain_integers_only(experts):
    graphs = []
    for rank in (0, 5):
        dist.init_process_group("fake", rank=rank, world_size=8)
        model = Step3p5ForCausalLM(CONFIG, group=dist.group.WORLD, experts=experts)
        graphs.append(calls(exported(model, 1, 8, 1, False)))
        dist.destroy_process_group()
    differing = []
    for ours, theirs in zip(*graphs, strict=True):
        assert ours.target == theirs.target
        pairs = zip(ours.args, theirs.args, strict=True)
        differing += [(a, b) for a, b in pairs if isinstance(a, int) and a != b]
    vocab_per_rank, experts_per_rank = CONFIG.vocab_size // 8, CONFIG.moe_num_experts // 8
    expected = [(0, 5 * vocab_per_rank)]
    assert differing == expected + ([(0, 5 * experts_per_rank)] if experts == "ep" else [])


@pytest.mark.parametrize("cached", [False, True], ids=["prefill", "cached prefill"])
def test_real_size_exports_on_meta(fake_ranks, cached):
    # Six layers, and the last, hold every kind that the 45 have; all 45 differ in time only.
    real = Step3p5Config.real().to_dict()
    lists = {k: v[:2] + v[42:45] for k, v in real.items() if k in Step3p5Config.PER_LAYER}
    config = Step3p5Config.from_dict(
        real
        | lists
        | {"num_hidden_layers": 5, "num_nextn_predict_layers": 0, "moe_layers_enum": "2,3,4"}
    )
    model = Step3p5ForCausalLM(config, group=fake_ranks, device="meta", dtype=torch.bfloat16)
    program = exported(model, 1, 64, 1, cached)
    assert sum(n.target._opname == "all_reduce" for n in calls(program)) == 1 + 2 * 2 + 3 * 3


def test_real_model_builds_on_meta_for_one_rank(fake_ranks):
    model = Step3p5ForCausalLM(
        Step3p5Config.real(), group=fake_ranks, device="meta", dtype=torch.bfloat16
    )
    for name, shape in {
        "model.embed_tokens": (16112, 4096),
        "model.layers.0.self_attn.q_proj": (1024, 4096),
        "model.layers.1.self_attn.q_proj": (1536, 4096),
        "model.layers.1.self_attn.k_proj": (128, 4096),
        "model.layers.1.self_attn.g_proj": (12, 4096),
        "model.layers.2.mlp.down_proj": (4096, 1408),
        "model.layers.3.moe.gate_proj": (288, 160, 4096),
        "model.layers.3.moe.down_proj": (288, 4096, 160),
        "model.layers.3.share_expert.up_proj": (160, 4096),
        "lm_head": (16112, 4096),
    }.items():
        assert model.get_submodule(name).weight.shape == shape
