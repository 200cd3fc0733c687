"""A small ``config.json`` for an architecture of vLLM: its default sizes, few layers and experts.

Sizes of matrices stay those of the real model, so that they divide by the ranks as the author
meant; what is cut is what repeats. Nothing is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from compiler.errors import CommPlanError

LAYERS, DENSE, EXPERTS, WORDS = 2, 1, 16, 1024
"""How many layers a small model has, how many of them before the sparse ones, experts and words."""

POSITIONS = 4096
"""How many a model has whose config does not say."""

COUNTS = {
    LAYERS: ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    EXPERTS: (
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"
    ),
    DENSE: (
        "first_k_dense_replace", "moe_layer_start_index", "num_dense_layers",
        "interleave_moe_layer_step", "decoder_sparse_step",
    ),
    WORDS: ("vocab_size",),
}  # fmt: skip
"""Number -> fields of configs that are set to it where they are greater."""

ENDINGS = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|Model)$")


def write_config(architecture: str, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write ``config.json`` of a small model of an architecture into ``folder``.

    Args:
        architecture: as vLLM's registry calls it.
        folder: is there.
        settings: fields that override the small config's.

    Raises:
        CommPlanError: vLLM has no such architecture, or nobody here has a config for it.
    """
    from vllm import ModelRegistry

    supported = ModelRegistry.get_supported_archs()
    if architecture not in supported:
        close = get_close_matches(architecture, supported, 1, cutoff=0)
        raise CommPlanError(
            f"vLLM has no architecture {architecture!r}",
            found=f"it has {len(supported)}",
            remedy=f"did you mean {close[0]!r}? Or name a folder with the model's config.json",
        )
    fields = _small(_default_config(architecture).to_dict())
    fields |= {"architectures": [architecture], "torch_dtype": "bfloat16", **settings}
    folder.joinpath("config.json").write_text(json.dumps(fields, default=str))


def _default_config(architecture: str) -> Any:
    """Return the default config of an architecture, as transformers or vLLM have it."""
    failure = "no config class of transformers or vLLM is for it"
    for config_class in _config_classes(architecture):
        try:
            return config_class()
        except Exception as error:
            failure = f"{config_class.__name__}(): {type(error).__name__}: {error}"
    raise CommPlanError(
        f"there is no config for {architecture!r}",
        found=failure.partition("\n")[0],
        remedy="name a folder with the model's config.json instead: commplan lint vllm:FOLDER",
    )


def _config_classes(architecture: str) -> Iterator[Any]:
    """Yield classes of configs that are for an architecture, the surest first."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    tables = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM", "MULTIMODAL_LM")
    for table in tables:
        names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {})
        for model_type, classes in names.items():
            if architecture in (classes if isinstance(classes, tuple) else (classes,)):
                yield CONFIG_MAPPING[model_type]
    plain = _plain(ENDINGS.sub("", architecture))
    for mapping in (_CONFIG_REGISTRY, CONFIG_MAPPING):
        for model_type in list(mapping):
            if _plain(model_type) == plain:
                yield mapping[model_type]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _small(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a config with few layers, experts and words; those nested in it likewise."""
    depth = next((fields[n] for n in COUNTS[LAYERS] if isinstance(fields.get(n), int)), 0)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        limit = next((count for count, names in COUNTS.items() if name in names), None)
        if isinstance(value, dict):
            value = _small(value)
        elif limit is not None and isinstance(value, int):
            value = min(value, limit)
        elif isinstance(value, list) and depth > LAYERS and len(value) == depth:
            value = value[:LAYERS]
        small[name] = value
    return small | _completed(small)


def _completed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for what configs may leave open, and vLLM reads."""
    hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int):
        return {}
    values = {"head_dim": hidden // max(heads, 1), "max_position_embeddings": POSITIONS}
    return {name: value for name, value in values.items() if fields.get(name) is None}
