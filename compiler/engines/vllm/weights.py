"""What ranks hold of the weights of vLLM's layers, by the class of the layer that owns them.

    ReplicatedLinear, and any layer with tp_size 1        Replicate
    ColumnParallelLinear, MergedColumnParallelLinear,
    QKVParallelLinear without heads that ranks repeat     Shard(0)
    RowParallelLinear                                     Shard(1)
    its bias, which the first rank alone adds             Partial(sum)
    VocabParallelEmbedding, ParallelLMHead                Shard(0)
    RoutedExperts (FusedMoE)                              Shard(0) where whole experts are dealt out

Others of these layers' tensors (packed or quantized weights, scales, sliced experts) are Varying:
that is always true. Of other layers nothing is said; their tensors are compared between ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from compiler.ir.placement import Partial, Placement, Replicate, Shard, Varying


def placements(model: nn.Module) -> dict[str, Placement]:
    """Return state_dict key -> placement, for the weights of layers that say it."""
    return {
        f"{path}.{name}" if path else name: placement
        for path, layer in model.named_modules()
        for name, placement in own_placements(layer)
    }


def own_placements(layer: nn.Module) -> Iterator[tuple[str, Placement]]:
    """Yield name and placement of a layer's own parameters and buffers; none if it says nothing."""
    if not isinstance(layer, declaring_classes()):
        return
    for name, tensor in (
        *layer.named_parameters(recurse=False),
        *layer.named_buffers(recurse=False),
    ):
        yield name, _placement(layer, name, tensor)


def declaring_classes() -> tuple[type[nn.Module], ...]:
    """Return the classes of layers whose weights are declared."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    return LinearBase, VocabParallelEmbedding, RoutedExperts


def _placement(layer: Any, name: str, tensor: torch.Tensor) -> Placement:
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    if isinstance(layer, RoutedExperts):
        return _of_experts(layer)
    if layer.tp_size == 1 or isinstance(layer, linear.ReplicatedLinear):
        return Replicate()
    is_plain = isinstance(layer.quant_method, UnquantizedLinearMethod) or not isinstance(
        layer, linear.LinearBase
    )
    if isinstance(layer, linear.RowParallelLinear):
        if name == "bias":
            return Replicate() if layer.skip_bias_add else Partial("sum")
        is_whole_rows = tensor.shape == (layer.output_size, layer.input_size_per_partition)
        return Shard(1) if is_plain and name == "weight" and is_whole_rows else Varying()
    if isinstance(layer, linear.QKVParallelLinear) and layer.num_kv_head_replicas > 1:
        return Varying()
    is_columns = tensor.shape[:1] == (layer.output_size_per_partition,)
    return Shard(0) if is_plain and name in ("weight", "bias") and is_columns else Varying()


def _of_experts(layer: Any) -> Placement:
    parallel = layer.moe_config.moe_parallel_config
    if parallel.use_ep:
        return Shard(0)
    return Replicate() if parallel.tp_size == 1 else Varying()
