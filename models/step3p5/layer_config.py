"""What one decoder layer of Step-3.5 is."""

from dataclasses import dataclass

FULL, SLIDING = "full_attention", "sliding_attention"
SPARSE, DENSE = "sparse", "dense"


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling of rotary embeddings.

    Wavelengths (in tokens) up to ``original_max_position_embeddings / high_freq_factor`` keep
    their frequency, those from ``original_max_position_embeddings / low_freq_factor`` on have it
    divided by ``factor``, and those between are interpolated.
    """

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one layer: rotates the first ``rotary_dims`` of each head."""

    theta: float
    rotary_dims: int
    scaling: RopeScaling | None


@dataclass(frozen=True)
class LayerConfig:
    """What one decoder layer is.

    Attributes:
        attention: "full_attention" or "sliding_attention".
        num_heads: query heads.
        window: keys a query sees, itself included; None means all before it.
        rope: rotary embedding of queries and keys.
        mlp: "dense" or "sparse".
        routed_limit: clamp of the routed experts' SwiGLU; None means no clamp.
        shared_limit: clamp of the shared expert's or dense MLP's SwiGLU; None means no clamp.
    """

    attention: str
    num_heads: int
    window: int | None
    rope: Rope
    mlp: str
    routed_limit: float | None
    shared_limit: float | None
