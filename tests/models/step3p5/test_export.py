"""The model exports with symbolic batch or length, as authors and engines would export it."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from models.step3p5 import Step3p5Config, Step3p5ForCausalLM

CONFIG = Step3p5Config.small(num_hidden_layers=3)


@pytest.fixture
def fake_ranks():
    dist.init_process_group("fake", rank=3, world_size=8)
    yield dist.group.WORLD
    dist.destroy_process_group()


def exported(model, batch, length, dynamic_dim, cached):
    """The program before functionalization, with arguments as a caller would pass them."""
    device = model.lm_head.weight.device
    ids = torch.zeros(batch, length, dtype=torch.int64, device=device)
    positions = torch.arange(length, device=device).repeat(batch, 1)
    args, dims = [ids, positions], [{dynamic_dim: Dim.DYNAMIC}] * 2
    if cached:
        args.append(model.make_cache(batch, 32))
        per_tensor = {0: Dim.DYNAMIC} if dynamic_dim == 0 else {}
        dims.append(tuple((per_tensor, per_tensor) for _ in args[-1]))
    return torch.export.export(model, tuple(args), dynamic_shapes=tuple(dims), strict=False)


def calls(program):
    return [n for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]


FORMS = {"prefill": (1, 8, 1, False), "cached prefill": (1, 8, 1, True), "decode": (3, 1, 0, True)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_functionalizes_with_symbolic_tokens(fake_ranks, form):
    model = Step3p5ForCausalLM(CONFIG, group=fake_ranks, dtype=torch.bfloat16, experts="ep")
    program = exported(model, *form).run_decompositions({})
    nodes = calls(program)
    assert not [n for n in nodes if free_unbacked_symbols(n.meta.get("val", ()))]
    count = Counter(n.target._opname for n in nodes)
    assert count["all_reduce"] == 1 + 2 + 2 + 3
    assert count["all_gather_into_tensor"] == 1
    assert count["_grouped_mm"] == 3
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
    ours, theirs = ((model.make_cache(batch, 32),) if form[3] else () for _ in range(2))
    found, expected = module(ids, positions, *ours), model(ids, positions, *theirs)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_ranks_differ_in_plain_integers_only():
    graphs = []
    for rank in (0, 5):
        dist.init_process_group("fake", rank=rank, world_size=8)
        model = Step3p5ForCausalLM(CONFIG, group=dist.group.WORLD, experts="ep")
        graphs.append(calls(exported(model, 1, 8, 1, False)))
        dist.destroy_process_group()
    differing = []
    for ours, theirs in zip(*graphs, strict=True):
        assert ours.target == theirs.target
        pairs = zip(ours.args, theirs.args, strict=True)
        differing += [(a, b) for a, b in pairs if isinstance(a, int) and a != b]
    vocab_per_rank, experts_per_rank = CONFIG.vocab_size // 8, CONFIG.moe_num_experts // 8
    assert differing == [(0, 5 * vocab_per_rank), (0, 5 * experts_per_rank)]


def test_real_size_exports_on_meta(fake_ranks):
    # Real sizes, with the first layer and the last three; all 45 differ in time only.
    real = Step3p5Config.real().to_dict()
    kept = {k: v[:1] + v[42:45] for k, v in real.items() if k in Step3p5Config.PER_LAYER}
    kept |= {"num_hidden_layers": 4, "num_nextn_predict_layers": 0, "moe_layers_enum": "1,2,3"}
    config = Step3p5Config.from_dict(real | kept)
    model = Step3p5ForCausalLM(config, group=fake_ranks, device="meta", dtype=torch.bfloat16)
    nodes = calls(exported(model, 1, 64, 1, True))
    assert sum(n.target._opname == "all_reduce" for n in nodes) == 1 + 2 + 3 * 3


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
