"""Checkpoints in safetensors form: each rank reads only the slices it holds."""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import Step3p5Config
from .model import Step3p5ForCausalLM
from .parallel import Shard
from .weights import random_tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Shape = tuple[int, ...]
LAYER = re.compile(r"model\.layers\.(\d+)\.")


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model; names the tensor or file and what was expected."""


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors that were loaded, and of those skipped because they belong to MTP."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]


def load_checkpoint(model: Step3p5ForCausalLM, path: str | Path) -> LoadReport:
    """Fills the model's parameters from a checkpoint.

    Values are converted to the parameters' dtypes. Tensors of layers from ``num_hidden_layers``
    on predict further tokens (MTP); they are not part of the model and are skipped.

    Args:
        model: one rank's part of the model; not on the meta device.
        path: a .safetensors file, a .safetensors.index.json, or a folder with one of them.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape, or a file is missing or
            damaged. Nothing has been loaded then, but for damaged files.
    """
    path = Path(path)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise CheckpointError(
                f"parameter {name} is on the meta device and has no memory to load into; "
                "build the model on the device it is to run on"
            )
    with ExitStack() as stack:
        tensors = {
            name: (file, opened)
            for file in checkpoint_files(path)
            for opened in [stack.enter_context(open_file(file))]
            for name in opened.keys()  # noqa: SIM118, not a mapping
        }
        skipped = {name for name in tensors if is_mtp(name, model.config)}
        slices = {n: opened.get_slice(n) for n, (_, opened) in tensors.items() if n not in skipped}
        expected = {name: model.full_shape(name) for name in parameters}
        shapes = {name: tuple(stored.get_shape()) for name, stored in slices.items()}
        check_names(expected, shapes, path)
        for name, shape in shapes.items():
            if shape != expected[name]:
                raise CheckpointError(
                    f"tensor {name} in {tensors[name][0]} has shape {shape}; "
                    f"this configuration expects {expected[name]}"
                )
        for name, parameter in parameters.items():
            with torch.no_grad():
                parameter.copy_(read_block(slices[name], model.shard(name)))
    return LoadReport(tuple(parameters), tuple(sorted(skipped)))


def checkpoint_files(path: Path) -> list[Path]:
    """The .safetensors files that make up the checkpoint at ``path``."""
    if path.is_dir():
        listings = [path / name for name in (INDEX, SINGLE) if (path / name).exists()]
        if not listings:
            raise CheckpointError(f"folder {path} has neither {INDEX} nor {SINGLE}")
        path = listings[0]
    if path.suffix != ".json":
        return [path]
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return sorted({path.parent / file for file in weight_map.values()})
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint index at {path}") from None
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint index with a weight_map") from error


def open_file(file: Path) -> Any:
    """Opens one .safetensors file without reading its tensors."""
    if not file.is_file():
        raise CheckpointError(f"no checkpoint file at {file}")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from None


def is_mtp(name: str, config: Step3p5Config) -> bool:
    """Whether the tensor belongs to a multi-token-prediction layer, after the decoder layers."""
    match = LAYER.match(name)
    return match is not None and int(match[1]) >= config.num_hidden_layers


def check_names(expected: Mapping[str, Shape], stored: Mapping[str, Shape], path: Path) -> None:
    """Raises CheckpointError unless both hold the same names."""
    if missing := [name for name in expected if name not in stored]:
        raise CheckpointError(
            f"tensor {missing[0]} of shape {expected[missing[0]]} is missing from {path} "
            f"({len(missing)} missing in all)"
        )
    if extra := [name for name in sorted(stored) if name not in expected]:
        raise CheckpointError(
            f"tensor {extra[0]} of shape {stored[extra[0]]} in {path} belongs to no parameter of "
            f"this configuration ({len(extra)} such tensors in all)"
        )


def read_block(stored: Any, shard: Shard | None) -> torch.Tensor:
    """Reads one block of a stored tensor, and no more."""
    shape = stored.get_shape()
    index = [slice(None)] * len(shape)
    if shard is not None:
        length = shape[shard.dim] // shard.count
        index[shard.dim] = slice(shard.index * length, (shard.index + 1) * length)
    return stored[tuple(index)]


def write_random_checkpoint(
    folder: str | Path,
    config: Step3p5Config,
    seed: int = 0,
    *,
    shards: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Writes a complete checkpoint of random weights, config.json included.

    With float32, it holds exactly what ``Step3p5ForCausalLM(config, seed=seed)`` is filled with.

    Args:
        folder: where to write; made if absent.
        config: the model.
        seed: of the weights.
        shards: number of .safetensors files; with more than one an index is written.
        dtype: of the tensors; the router's are always float32.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1), encoding="utf-8")
    model = Step3p5ForCausalLM(config, device="meta", dtype=dtype)
    parameters = dict(model.named_parameters())
    names, weight_map = list(parameters), {}
    for number in range(shards):
        file = SINGLE if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        shard = names[number::shards]
        tensors = {
            name: random_tensor(name, tuple(parameters[name].shape), seed).to(
                parameters[name].dtype
            )
            for name in shard
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if shards > 1:
        total_bytes = sum(p.numel() * p.itemsize for p in parameters.values())
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return folder
