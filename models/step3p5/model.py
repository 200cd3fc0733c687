"""Step-3.5-Flash for text generation, tensor-parallel over one group of ranks."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from .attention import Attention, KVCache, Step, band, rotation, visible
from .config import Step3p5Config
from .experts import GROUPED_ALIGNMENT_BYTES
from .layer_config import SPARSE, LayerConfig
from .layers import MLP, GemmaRMSNorm, MoE
from .parallel import ParallelError, RankGroup, Shard, VocabParallelEmbedding
from .weights import random_tensor

SHARD_DIMS = {
    "colwise": -2,
    "colwise_gather_output": -2,
    "rowwise": -1,
    "embedding_rowwise": 0,
    "grouped_gemm": 0,
}


class DecoderLayer(nn.Module):
    """Attention, then a dense MLP or routed experts with a shared one; both on the residual."""

    def __init__(
        self,
        config: Step3p5Config,
        layer: LayerConfig,
        ranks: RankGroup,
        by_expert: bool,
        shared: RankGroup,
        **factory: Any,
    ) -> None:
        super().__init__()
        hidden, eps, limit = config.hidden_size, config.rms_norm_eps, layer.shared_limit
        self.is_sparse = layer.mlp == SPARSE
        self.input_layernorm = GemmaRMSNorm(hidden, eps, **factory)
        self.self_attn = Attention(config, layer, ranks, **factory)
        self.post_attention_layernorm = GemmaRMSNorm(hidden, eps, **factory)
        if self.is_sparse:
            self.moe = MoE(config, layer, ranks, by_expert, **factory)
            self.share_expert = MLP(hidden, config.share_expert_dim, limit, shared, **factory)
        else:
            self.mlp = MLP(hidden, config.intermediate_size, limit, ranks, **factory)

    def forward(self, x: Tensor, step: Step, cache: KVCache | None) -> Tensor:
        """One layer on the residual stream x: [tokens, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), step, cache)
        normed = self.post_attention_layernorm(x)
        if self.is_sparse:
            return x + (self.moe(normed) + self.share_expert(normed))
        return x + self.mlp(normed)


class Step3p5Model(nn.Module):
    """Embedding, decoder layers and final norm."""

    def __init__(
        self,
        config: Step3p5Config,
        ranks: RankGroup,
        by_expert: bool,
        shared: RankGroup,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, ranks, **factory
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, ranks, by_expert, shared, **factory)
            for layer in config.layers
        )
        self.norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps, **factory)

    def forward(
        self, input_ids: Tensor, positions: Tensor, cache: Sequence[KVCache] | None = None
    ) -> Tensor:
        """Hidden states after the final norm: [batch * tokens per sequence, hidden]."""
        x = self.embed_tokens(input_ids.flatten())
        step = self._step(positions, x.dtype, cache)
        for index, layer in enumerate(self.layers):
            x = layer(x, step, None if cache is None else cache[index])
        return self.norm(x)

    def _step(self, positions: Tensor, dtype: torch.dtype, cache: Sequence[KVCache] | None) -> Step:
        max_tokens = None if cache is None else cache[0][0].shape[1]
        seen = None
        if max_tokens is not None:
            slots = torch.arange(max_tokens, device=positions.device)
            seen = visible(positions, slots, None).unsqueeze(1)
        ropes = dict.fromkeys(layer.rope for layer in self.config.layers)
        return Step(
            positions,
            {rope: rotation(rope, positions, dtype) for rope in ropes},
            seen,
            band(positions, self.config.sliding_window, max_tokens, dtype),
        )


class Step3p5ForCausalLM(nn.Module):
    """Step-3.5-Flash with its language-model head, or one rank's part of it.

    Every branch sums over the ranks where it arises: the embedding, the attention output, the MLP
    or both the routed and the shared experts. Parameter names are the checkpoint's.

    Args:
        config: the model.
        group: ranks that share the model: a process group, a 1-D device mesh, or None for one
            process that holds all of it.
        experts: "tp" slices every routed expert over the ranks, "ep" deals out whole experts.
        share_expert: "tp" slices the shared expert over the ranks, "replicated" gives each all of
            it: more memory, no sum over the ranks.
        device: of the parameters.
        dtype: of parameters and activations; norms and the router compute in float32 or wider.
            Default: torch's default dtype.
        seed: of the random parameters, the same model whatever the number of ranks; None leaves
            parameters uninitialized, for a loader. Meta parameters have no values.

    Raises:
        ParallelError: a dimension does not divide over the ranks.
    """

    def __init__(
        self,
        config: Step3p5Config,
        *,
        group: dist.ProcessGroup | DeviceMesh | None = None,
        experts: str = "tp",
        share_expert: str = "tp",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        if experts not in ("tp", "ep"):
            raise ParallelError(f"experts must be 'tp' or 'ep', found {experts!r}")
        if share_expert not in ("tp", "replicated"):
            raise ParallelError(
                f"share_expert must be 'tp' or 'replicated', found {share_expert!r}"
            )
        self.config = config
        self.ranks = RankGroup.of(group)
        self.experts, self.share_expert = experts, share_expert
        factory: dict[str, Any] = {"device": device, "dtype": dtype or torch.get_default_dtype()}
        shared = RankGroup.of(None) if share_expert == "replicated" else self.ranks
        check_divisible(config, self.ranks, experts, factory["dtype"], share_expert)
        self.model = Step3p5Model(config, self.ranks, experts == "ep", shared, **factory)
        vocab_per_rank = self.model.embed_tokens.vocab_per_rank
        self.lm_head = nn.Linear(config.hidden_size, vocab_per_rank, bias=False, **factory)
        self.requires_grad_(False)  # for serving: the sums over ranks have no backward
        if seed is not None and not self.lm_head.weight.is_meta:
            self.fill_random(seed)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        cache: Sequence[KVCache] | None = None,
        *,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Logits of the next token.

        Args:
            input_ids: [batch, tokens per sequence], int64, replicated.
            positions: like input_ids; of each token in its sequence, from 0 and increasing.
            cache: keys and values of earlier tokens from ``make_cache``, one pair per layer. The
                given tokens are written to it in place, at their positions, and see all earlier
                positions. None: the given tokens see only each other.
            logits_to_keep: tokens at the end of each sequence that need logits; 0 means all.

        Returns:
            [batch, tokens kept, vocab_size], replicated.
        """
        hidden = self.model(input_ids, positions, cache).view(*input_ids.shape, -1)
        hidden = hidden[:, -logits_to_keep:]
        logits = self.ranks.all_gather_columns(self.lm_head(hidden.flatten(0, 1)))
        return logits.view(*hidden.shape[:2], -1)

    def make_cache(self, batch: int, max_tokens: int) -> tuple[KVCache, ...]:
        """Zeroed keys and values of this rank's heads, one pair per layer.

        Each is [batch, max_tokens, kv heads of the rank, head_dim], in the model's dtype.
        """
        weight = self.lm_head.weight

        def empty(layer: nn.Module) -> Tensor:
            attention = layer.self_attn
            return weight.new_zeros(batch, max_tokens, attention.num_kv_heads, attention.head_dim)

        return tuple((empty(layer), empty(layer)) for layer in self.model.layers)

    @property
    def tp_plan(self) -> dict[str, str]:
        """How each sharded parameter is cut over the ranks; ``*`` stands for a layer number.

        "colwise" and "colwise_gather_output" cut dim -2, "rowwise" dim -1, "embedding_rowwise" and
        "grouped_gemm" dim 0. Parameters without an entry are replicated. With more ranks than
        key-value heads, k_proj and v_proj are cut into whole heads, each held by several ranks.
        """
        by_expert = self.experts == "ep"
        columns = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.g_proj"
        columns += " mlp.gate_proj mlp.up_proj"
        rows = "self_attn.o_proj mlp.down_proj"
        if self.share_expert == "tp":
            columns += " share_expert.gate_proj share_expert.up_proj"
            rows += " share_expert.down_proj"
        styles = {
            **dict.fromkeys(columns.split(), "colwise"),
            **dict.fromkeys(rows.split(), "rowwise"),
            "moe.gate_proj": "grouped_gemm" if by_expert else "colwise",
            "moe.up_proj": "grouped_gemm" if by_expert else "colwise",
            "moe.down_proj": "grouped_gemm" if by_expert else "rowwise",
        }
        return {
            "model.embed_tokens.weight": "embedding_rowwise",
            "lm_head.weight": "colwise_gather_output",
            **{f"model.layers.*.{name}.weight": style for name, style in styles.items()},
        }

    def shard(self, name: str) -> Shard | None:
        """Which block of the checkpoint's tensor ``name`` this rank holds; None means all of it."""
        styles = (s for pattern, s in self.tp_plan.items() if fnmatchcase(name, pattern))
        if (style := next(styles, None)) is None:
            return None
        count = self.ranks.size
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            count = min(count, self.config.num_attention_groups)
        return Shard(SHARD_DIMS[style], self.ranks.rank * count // self.ranks.size, count)

    def full_shape(self, name: str) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor ``name``, of which this rank holds ``shard(name)``."""
        shape = list(self.get_parameter(name).shape)
        if (shard := self.shard(name)) is not None:
            shape[shard.dim] *= shard.count
        return tuple(shape)

    @torch.no_grad()
    def fill_random(self, seed: int) -> None:
        """Fills parameters with this rank's blocks of a random model that depends on seed alone."""
        for name, parameter in self.named_parameters():
            full = random_tensor(name, self.full_shape(name), seed, parameter.device)
            shard = self.shard(name)
            parameter.copy_(full if shard is None else shard.of(full))


def check_divisible(
    config: Step3p5Config,
    ranks: RankGroup,
    experts: str,
    dtype: torch.dtype,
    share_expert: str = "tp",
) -> None:
    """Raises ParallelError for the first dimension that does not divide over the ranks."""
    for attention, heads in {layer.attention: layer.num_heads for layer in config.layers}.items():
        ranks.split(f"query heads of {attention}", heads)
    kv_heads = config.num_attention_groups
    if kv_heads % ranks.size and ranks.size % kv_heads:
        raise ParallelError(
            f"num_attention_groups = {kv_heads} key-value heads can be neither divided over nor "
            f"repeated on {ranks.size} ranks; use a world size that divides or is a multiple of it"
        )
    sliced = ["vocab_size", "intermediate_size"]
    sliced += ["share_expert_dim"] if share_expert == "tp" else []
    for key in sliced:
        ranks.split(key, getattr(config, key))
    if experts == "ep":
        ranks.split("moe_num_experts", config.moe_num_experts)
        return
    inner = ranks.split("moe_intermediate_size", config.moe_intermediate_size)
    if dtype is torch.bfloat16 and inner * dtype.itemsize % GROUPED_ALIGNMENT_BYTES:
        raise ParallelError(
            f"moe_intermediate_size = {config.moe_intermediate_size} leaves {inner} per rank, "
            f"{inner * dtype.itemsize} bytes; grouped matrix products need a multiple of "
            f"{GROUPED_ALIGNMENT_BYTES}; use fewer ranks or experts='ep'"
        )
