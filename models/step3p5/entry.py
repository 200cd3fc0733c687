"""Step-3.5-Flash at its real size without weights, for the command line and the demo."""

from typing import Any

import torch
import torch.distributed as dist

from .config import Step3p5Config
from .model import Step3p5ForCausalLM

Call = tuple[Step3p5ForCausalLM, tuple[Any, ...]]


def real_config(layers: int | None = None) -> Step3p5Config:
    """The real configuration, cut or cyclically extended to ``layers`` decoder layers."""
    config = Step3p5Config.real()
    if layers is None or layers == config.num_hidden_layers:
        return config
    count, keys = config.num_hidden_layers, config.to_dict()
    per_layer = count + config.num_nextn_predict_layers
    cycled = {
        key: [expected[i % count] for i in range(layers)]
        for key, expected in keys.items()
        if isinstance(expected, list) and len(expected) == per_layer
    }
    sparse = [
        i for i in range(layers) if config.mlp_layer_types[i % count] == "sparse" or i >= count
    ]
    moe = ",".join(map(str, sparse))
    return Step3p5Config.from_dict(
        {**keys, **cycled, "num_hidden_layers": layers, "moe_layers_enum": moe}
    )


def _model(experts: str, share_expert: str, layers: int | None) -> Step3p5ForCausalLM:
    group = dist.group.WORLD if dist.is_initialized() else None
    return Step3p5ForCausalLM(
        real_config(layers),
        group=group,
        experts=experts,
        share_expert=share_expert,
        device="meta",
        dtype=torch.bfloat16,
    )


def prefill(
    tokens: int = 64,
    experts: str = "tp",
    layers: int | None = None,
    cache: bool = False,
    share_expert: str = "tp",
) -> Call:
    """One sequence of ``tokens`` new tokens; with ``cache``, into a cache of twice that many.

    Args:
        tokens: example count; the captured graph keeps it symbolic.
        experts: "tp" slices every expert over the ranks, "ep" deals out whole experts.
        layers: decoder layers; default: all 45.
        cache: pass a cache to fill.
        share_expert: "tp" slices the shared expert, "replicated" gives every rank all of it.
    """
    return _call(_model(experts, share_expert, layers), 1, tokens, 2 * tokens if cache else None)


def decode(
    batch: int = 8,
    max_tokens: int = 4096,
    experts: str = "tp",
    layers: int | None = None,
    share_expert: str = "tp",
) -> Call:
    """One new token for each of ``batch`` sequences with a cache of ``max_tokens``."""
    return _call(_model(experts, share_expert, layers), batch, 1, max_tokens)


def _call(model: Step3p5ForCausalLM, batch: int, tokens: int, max_tokens: int | None) -> Call:
    ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
    call: tuple[Any, ...] = (ids, torch.zeros_like(ids))
    return model, call if max_tokens is None else (*call, model.make_cache(batch, max_tokens))
