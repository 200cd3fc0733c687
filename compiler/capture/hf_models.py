"""Models of transformers by their type, ``hf:llama``: sharded by their own plan, without weights.

The configuration is the type's default, which is that of a published model, with as few layers as
show every kind of layer. Parameters are on the meta device. transformers is optional, and imported
when a model is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from compiler.errors import CaptureError

PREFIX = "hf:"
AUTO = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_MAPPING",
)
"""Tables of model classes in transformers; the first that has the type counts."""
MOST_LAYERS = 8
"""Layers among which every kind of layer is looked for."""
FIRST_SPARSE = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
"""Settings that say how many layers in front are dense."""


class OneTensor(nn.Module):
    """A model called with one tensor, without a cache, of which one tensor is wanted.

    Args:
        model: the model.
        takes: name of the argument.
    """

    def __init__(self, model: nn.Module, takes: str) -> None:
        """Take the model as a submodule."""
        super().__init__()
        self.model, self.takes = model, takes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the first output that is a tensor: logits, or hidden states."""
        config: Any = self.model.config
        options = {"use_cache": False} if hasattr(config, "use_cache") else {}
        outputs = self.model(**{self.takes: inputs}, **options)
        return next(x for x in outputs.to_tuple() if isinstance(x, torch.Tensor))


def load(
    model_type: str,
    tokens: int = 16,
    layers: int = 0,
    attention: str = "sdpa",
    experts: str = "grouped_mm",
) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return a model of transformers as this rank has it, and the arguments of a call.

    Args:
        model_type: as in ``config.json``.
        tokens: in one sequence.
        layers: number of layers; 0: as few as show every kind.
        attention: transformers' implementation of attention.
        experts: and of routed experts.

    Raises:
        CaptureError: there is no such type, it has no plan, or takes other than token ids.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise CaptureError(
            "hf: needs transformers", found=str(error), remedy="pip install transformers"
        ) from error
    config = small_config(transformers, model_type, layers)
    config._attn_implementation = attention
    with torch.device("meta"):
        model: Any = model_class(transformers, type(config))(config).to(torch.bfloat16).eval()
    model.config._experts_implementation = experts
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    of_ranks = importlib.import_module("transformers.distributed")
    plan, *_ = model._resolve_parallel_plans(of_ranks.DistributedConfig(tp_size=mesh.size()))
    if not plan:
        raise CaptureError(
            f"transformers has no tensor-parallel plan for {model_type!r}",
            where=type(model).__name__,
            remedy="name a type with base_model_tp_plan in its configuration",
        )
    of_ranks.tensor_parallel.apply_tensor_parallelism(model, mesh, plan)
    if model.main_input_name != "input_ids":
        raise CaptureError(
            f"{type(model).__name__} is called with {model.main_input_name}, not with token ids",
            remedy="write a module:factory that returns the model and arguments of a call",
        )
    return OneTensor(model, "input_ids"), (torch.zeros(1, tokens, dtype=torch.int64),)


def small_config(transformers: ModuleType, model_type: str, layers: int = 0) -> Any:
    """Return the default configuration of a type, with few layers; see ``load``.

    Raises:
        CaptureError: there is no such type.
    """
    try:
        make = transformers.CONFIG_MAPPING[model_type]
    except KeyError:
        raise CaptureError(
            f"transformers {transformers.__version__} has no model type {model_type!r}",
            remedy="name it as config.json does",
        ) from None
    config = make()
    text = config.get_text_config()
    settings = dict(_cut(text, layers or _layers(text)))
    if text is config:
        return make(**settings)
    return make(**{name: settings for name, part in vars(config).items() if part is text})


def _cut(config: Any, layers: int) -> Iterator[tuple[str, Any]]:
    """Yield the settings that make a configuration one of ``layers`` layers."""
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            yield name, value[:layers]
    yield "num_hidden_layers", layers


def _layers(config: Any) -> int:
    """Return how many layers show every kind of layer, two at least."""
    count = int(config.num_hidden_layers)
    lists = [x for x in config.to_dict().values() if isinstance(x, list) and len(x) == count]
    kinds = [str([x[i] for x in lists]) for i in range(count)]
    first = [kinds.index(kind) + 1 for kind in set(kinds)]
    dense = [int(getattr(config, name, 0) or 0) + 1 for name in FIRST_SPARSE]
    return min(max(2, *first, *dense), count, MOST_LAYERS)


def model_class(transformers: ModuleType, config_class: type) -> Any:
    """Return the model class for a configuration: with a head, if there is one.

    Raises:
        CaptureError: there is none.
    """
    for name in AUTO:
        with suppress(KeyError):
            return getattr(transformers, name)[config_class]
    home = importlib.import_module(config_class.__module__.replace("configuration_", "modeling_"))
    base = transformers.PreTrainedModel
    classes = [x for x in vars(home).values() if isinstance(x, type) and issubclass(x, base)]
    models: list[Any] = [
        x
        for x in classes
        if getattr(x, "config_class", None) is config_class and "PreTrained" not in x.__name__
    ]
    if not models:
        raise CaptureError(f"transformers has no model for {config_class.__name__} alone")
    return max(models, key=lambda x: ("ForCausalLM" in x.__name__, x.__name__.endswith("Model")))
