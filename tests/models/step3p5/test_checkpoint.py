import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from models.step3p5.checkpoint import CheckpointError, load_checkpoint, write_random_checkpoint

CONFIG = Step3p5Config.small(num_hidden_layers=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    return write_random_checkpoint(path, CONFIG, seed=4, shards=3, dtype=torch.float32)


@pytest.fixture
def single(tmp_path):
    write_random_checkpoint(tmp_path, CONFIG, seed=4, dtype=torch.float32)
    return tmp_path / "model.safetensors"


def parameters_equal(one, other):
    return all(torch.equal(p, other.get_parameter(n)) for n, p in one.named_parameters())


def test_folder_index_and_file_load_alike(folder, single):
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert Step3p5Config.from_file(folder) == CONFIG
    expected = Step3p5ForCausalLM(CONFIG, seed=4)
    for path in (folder, folder / "model.safetensors.index.json", single, single.parent):
        model = Step3p5ForCausalLM(CONFIG)
        assert not parameters_equal(model, expected)
        report = load_checkpoint(model, path)
        assert parameters_equal(model, expected)
        assert set(report.loaded) == set(expected.state_dict())
        assert report.skipped == ()


def loads_its_slices(group, folder, experts):
    loaded = Step3p5ForCausalLM(CONFIG, group=group, experts=experts, seed=None)
    load_checkpoint(loaded, folder)
    filled = Step3p5ForCausalLM(CONFIG, group=group, experts=experts, seed=4)
    return parameters_equal(loaded, filled)


@pytest.mark.parametrize("experts", ["tp", "ep"])
def test_ranks_load_their_slices(gloo_pool, folder, experts):
    assert all(gloo_pool(8).run(loads_its_slices, folder, experts))


def test_router_stays_float32_in_a_bf16_checkpoint(tmp_path):
    write_random_checkpoint(tmp_path, CONFIG)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.layers.2.moe.gate.weight"].dtype is torch.float32
    assert stored["lm_head.weight"].dtype is torch.bfloat16
    stored["model.layers.2.moe.gate.weight"] = stored["model.layers.2.moe.gate.weight"].bfloat16()
    save_file(stored, tmp_path / "model.safetensors")
    model = Step3p5ForCausalLM(CONFIG, dtype=torch.bfloat16)
    load_checkpoint(model, tmp_path)
    assert model.model.layers[2].moe.gate.weight.dtype is torch.float32


def change(single, **tensors):
    stored = load_file(single)
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del stored[name]
        else:
            stored[name] = tensor
    save_file(stored, single)


def test_mtp_tensors_are_reported_as_skipped(single):
    change(single, model__layers__3__eh_proj__weight=torch.zeros(2, 2))
    report = load_checkpoint(Step3p5ForCausalLM(CONFIG), single)
    assert report.skipped == ("model.layers.3.eh_proj.weight",)


def refusal(path):
    model = Step3p5ForCausalLM(CONFIG, seed=0)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, path)
    assert parameters_equal(model, Step3p5ForCausalLM(CONFIG, seed=0))  # nothing was loaded
    return str(error.value)


def test_missing_tensor(single):
    change(single, model__norm__weight=None)
    assert refusal(single) == (
        f"tensor model.norm.weight of shape (64,) is missing from {single} (1 missing in all)"
    )


def test_extra_tensor(single):
    change(single, model__layers__1__mlp__bias=torch.zeros(3, 2))
    assert refusal(single) == (
        f"tensor model.layers.1.mlp.bias of shape (3, 2) in {single} belongs to no parameter of "
        "this configuration (1 such tensors in all)"
    )


def test_misshapen_tensor(single):
    change(single, lm_head__weight=torch.zeros(160, 63))
    assert refusal(single) == (
        f"tensor lm_head.weight in {single} has shape (160, 63); this configuration expects "
        "(160, 64)"
    )


def test_index_that_names_an_absent_file(tmp_path):
    write_random_checkpoint(tmp_path, CONFIG, shards=2, dtype=torch.float32)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert refusal(tmp_path).startswith("no checkpoint file at")
    assert refusal(tmp_path).endswith("model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.safetensors", "not tensors at all", "is not a readable safetensors file"),
        ("model.safetensors.index.json", "{", "is not a checkpoint index with a weight_map"),
        ("model.safetensors.index.json", "{}", "is not a checkpoint index with a weight_map"),
        (
            "model.safetensors.index.json",
            json.dumps({"weight_map": [1]}),
            "is not a checkpoint index with a weight_map",
        ),
    ],
)
def test_damaged_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    assert message in refusal(tmp_path / name)


def test_absent_paths(tmp_path):
    assert "has neither model.safetensors.index.json nor model.safetensors" in refusal(tmp_path)
    assert "no checkpoint index at" in refusal(tmp_path / "absent.json")
    assert "no checkpoint file at" in refusal(tmp_path / "absent.safetensors")


def test_meta_parameters_cannot_be_loaded(single):
    model = Step3p5ForCausalLM(CONFIG, device="meta")
    with pytest.raises(CheckpointError, match="is on the meta device and has no memory"):
        load_checkpoint(model, single)
