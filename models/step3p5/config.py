"""Configuration of Step-3.5-Flash, read from the checkpoint's own config.json."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .layer_config import DENSE, FULL, SLIDING, SPARSE, LayerConfig, Rope, RopeScaling

# Keys that choose between variants of the architecture. This model implements one value of each;
# any other value is an error, never ignored.
IMPLEMENTED: Mapping[str, Any] = {
    "model_type": "step3p5",
    "use_qk_norm": True,
    "use_moe": True,
    "moe_layer_offset": 0,
    "moe_every_n_layer": 1,
    "norm_expert_weight": True,
    "moe_router_activation": "sigmoid",
    "use_moe_router_bias": True,
    "need_fp32_gate": True,
    "att_impl_type": "GQA",
    "tie_word_embeddings": False,
    "use_head_wise_attn_gate": True,
    "sink": False,
    "use_rope_layers": [],
    "zero_centered": True,
}
# Keys that do not change what the model computes.
INFORMATIVE = frozenset(
    (
        "architectures",
        "auto_map",
        "torch_dtype",
        "dtype",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "max_seq_len",
        "use_cache",
        "transformers_version",
        "_name_or_path",
    )
)
ROPE_SCALING_KEYS = (
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
)


class ConfigError(ValueError):
    """A configuration that does not describe a Step-3.5 model; names the key and both values."""


@dataclass(frozen=True, kw_only=True)
class Step3p5Config:
    """The keys of config.json that determine the computation, under their own names.

    Per-layer lists have one entry per decoder layer, or those and one per multi-token-prediction
    (MTP) layer. MTP layers are not part of this model.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int = 0
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_attention_groups: int
    head_dim: int
    attention_other_setting: Mapping[str, Any]
    sliding_window: int
    max_position_embeddings: int
    rope_theta: tuple[float, ...]
    partial_rotary_factors: tuple[float, ...]
    rope_scaling: Mapping[str, Any] | None = None
    yarn_only_types: tuple[str, ...] = ()
    moe_layers_enum: str
    moe_num_experts: int
    moe_top_k: int
    moe_intermediate_size: int
    share_expert_dim: int
    moe_router_scaling_factor: float
    swiglu_limits: tuple[float, ...]
    swiglu_limits_shared: tuple[float, ...]
    rms_norm_eps: float = 1e-5  # absent from the published config.json; its code's default

    layers: tuple[LayerConfig, ...] = field(init=False, repr=False, compare=False)

    PER_LAYER: ClassVar[tuple[str, ...]] = (
        "layer_types",
        "rope_theta",
        "partial_rotary_factors",
        "swiglu_limits",
        "swiglu_limits_shared",
    )

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_lists()
        self._check_attention()
        object.__setattr__(self, "layers", self._layers())

    @classmethod
    def from_dict(cls, keys: Mapping[str, Any]) -> "Step3p5Config":
        """Builds the configuration from the contents of a config.json.

        Raises:
            ConfigError: a key is missing, unknown, inconsistent with another, or asks for a
                variant that this model does not implement.
        """
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        accepted = fields.keys() | IMPLEMENTED.keys() | INFORMATIVE
        if unknown := sorted(keys.keys() - accepted):
            raise ConfigError(
                f"unknown key {unknown[0]!r} = {keys[unknown[0]]!r} in the configuration; "
                "remove it if it does not change what the model computes"
            )
        required = [f.name for f in fields.values() if f.default is MISSING]
        if missing := [name for name in required if name not in keys]:
            raise ConfigError(f"key {missing[0]!r} is missing from the configuration")
        for name, value in IMPLEMENTED.items():
            if keys.get(name, value) != value:
                raise ConfigError(f"{name} = {keys[name]!r}; this model implements only {value!r}")
        chosen = {name: keys[name] for name in fields if name in keys}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()})

    @classmethod
    def from_file(cls, path: str | Path) -> "Step3p5Config":
        """Reads a config.json, or the config.json of a checkpoint folder."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            keys = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no configuration file at {path}") from None
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is not JSON: {error}") from None
        if not isinstance(keys, dict):
            raise ConfigError(f"{path} holds {type(keys).__name__}, not an object of keys")
        return cls.from_dict(keys)

    @classmethod
    def real(cls) -> "Step3p5Config":
        """The published configuration of Step-3.5-Flash: 45 layers, 197 billion parameters."""
        return cls.from_file(Path(__file__).with_name("config.json"))

    @classmethod
    def small(cls, num_hidden_layers: int = 5, **keys: Any) -> "Step3p5Config":
        """A small configuration in which every branch of the architecture matters.

        Five layers: full and sliding attention, each with a dense and with a sparse MLP, and the
        clamps off, on the routed experts, on the shared expert and on a dense MLP. The limits cut
        typical activations, the window is 8 tokens, and within 64 tokens the frequencies that
        Llama-3 scaling keeps, interpolates and divides all differ visibly. Every sharded
        dimension is divisible by 8 ranks, beyond the 4 key-value heads too.

        Args:
            num_hidden_layers: decoder layers; the first two are dense. More than five repeat the
                pattern, fewer cut it short.
            **keys: keys of config.json to replace.
        """

        def per_layer(*pattern: Any) -> list[Any]:
            return [pattern[index % len(pattern)] for index in range(num_hidden_layers)]

        small: dict[str, Any] = {
            "vocab_size": 160,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": num_hidden_layers,
            "layer_types": per_layer(FULL, SLIDING, SLIDING, SLIDING),
            "num_attention_heads": 8,
            "num_attention_groups": 4,
            "head_dim": 16,
            "attention_other_setting": {
                "attention_type": SLIDING,
                "num_attention_heads": 16,
                "num_attention_groups": 4,
                "head_dim": 16,
                "true_head_dim": 16,
            },
            "sliding_window": 8,
            "max_position_embeddings": 512,
            "rope_theta": per_layer(10000.0, 500.0, 500.0, 500.0),
            "partial_rotary_factors": per_layer(0.5, 1.0, 1.0, 1.0),
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 2.0,
                "original_max_position_embeddings": 256,
                "low_freq_factor": 1.0,
                "high_freq_factor": 32.0,
            },
            "yarn_only_types": [FULL],
            "moe_layers_enum": ",".join(str(index) for index in range(2, num_hidden_layers)),
            "moe_num_experts": 16,
            "moe_top_k": 4,
            "moe_intermediate_size": 64,
            "share_expert_dim": 64,
            "moe_router_scaling_factor": 3.0,
            "swiglu_limits": per_layer(0.0, 0.0, 0.0, 0.3, 0.5),
            "swiglu_limits_shared": per_layer(0.0, 0.4, 0.0, 0.0, 0.25),
        }
        return cls.from_dict(small | keys)

    def to_dict(self) -> dict[str, Any]:
        """The keys of a config.json that ``from_dict`` reads back into an equal configuration."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return dict(IMPLEMENTED) | plain

    @property
    def mlp_layer_types(self) -> list[str]:
        """For each decoder layer, "dense" or "sparse"."""
        return [layer.mlp for layer in self.layers]

    def _check_sizes(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name, None)
            least = 0 if f.name == "num_nextn_predict_layers" else 1
            if f.type is int and (type(value) is not int or value < least):
                raise ConfigError(f"{f.name} must be an integer of at least {least}, not {value!r}")
        if self.moe_top_k > self.moe_num_experts:
            raise ConfigError(
                f"moe_top_k = {self.moe_top_k} exceeds moe_num_experts = {self.moe_num_experts}"
            )

    def _check_lists(self) -> None:
        n, total = self.num_hidden_layers, self.num_hidden_layers + self.num_nextn_predict_layers
        for name in self.PER_LAYER:
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) not in (n, total):
                entries = len(values) if isinstance(values, tuple) else repr(values)
                raise ConfigError(
                    f"{name} must be a list of {' or '.join(map(str, sorted({n, total})))} entries "
                    f"(num_hidden_layers = {n}, num_nextn_predict_layers = {total - n}); "
                    f"found {entries}"
                )
        for index, kind in enumerate(self.layer_types):
            if kind not in (FULL, SLIDING):
                raise ConfigError(f"layer_types[{index}] is {kind!r}, neither {FULL} nor {SLIDING}")
        for index in self._moe_layers():
            if not 0 <= index < n:
                raise ConfigError(
                    f"moe_layers_enum names layer {index}; num_hidden_layers = {n} allows "
                    f"0..{n - 1}"
                )

    def _check_attention(self) -> None:
        other = self.attention_other_setting
        for key, value in (
            ("attention_type", SLIDING),
            ("num_attention_groups", self.num_attention_groups),
            ("head_dim", self.head_dim),
            ("true_head_dim", self.head_dim),
        ):
            if other.get(key, value) != value:
                raise ConfigError(
                    f"attention_other_setting.{key} = {other[key]!r}; expected {value!r}"
                )
        heads = other.get("num_attention_heads")
        if type(heads) is not int or heads < 1:
            raise ConfigError(
                "attention_other_setting.num_attention_heads must be a positive integer, "
                f"not {heads!r}"
            )
        for key, total in (
            ("num_attention_heads", self.num_attention_heads),
            ("attention_other_setting.num_attention_heads", heads),
        ):
            if total % self.num_attention_groups:
                raise ConfigError(
                    f"{key} = {total} is not divisible by "
                    f"num_attention_groups = {self.num_attention_groups}"
                )
        for index, factor in enumerate(self.partial_rotary_factors):
            if not 0 < factor <= 1 or self.head_dim * factor % 2:
                raise ConfigError(
                    f"partial_rotary_factors[{index}] = {factor} of head_dim = {self.head_dim} is "
                    "not a positive even number of dimensions"
                )

    def _moe_layers(self) -> frozenset[int]:
        try:
            return frozenset(int(index) for index in self.moe_layers_enum.split(",") if index)
        except (AttributeError, ValueError):
            raise ConfigError(
                f"moe_layers_enum must be layer numbers joined by commas, not "
                f"{self.moe_layers_enum!r}"
            ) from None

    def _rope_scaling(self) -> RopeScaling | None:
        keys = self.rope_scaling
        if keys is None:
            return None
        if keys.get("rope_type") != "llama3":
            raise ConfigError(
                f"rope_scaling.rope_type = {keys.get('rope_type')!r}; "
                "this model implements only 'llama3'"
            )
        if missing := [key for key in ROPE_SCALING_KEYS if key not in keys]:
            raise ConfigError(f"key 'rope_scaling.{missing[0]}' is missing")
        scaling = RopeScaling(**{key: keys[key] for key in ROPE_SCALING_KEYS})
        if not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
            raise ConfigError(
                f"rope_scaling.low_freq_factor = {scaling.low_freq_factor} must be positive and "
                f"below high_freq_factor = {scaling.high_freq_factor}"
            )
        return scaling

    def _layers(self) -> tuple[LayerConfig, ...]:
        scaling, moe_layers = self._rope_scaling(), self._moe_layers()
        sliding_heads = self.attention_other_setting["num_attention_heads"]

        def layer(index: int) -> LayerConfig:
            attention = self.layer_types[index]
            return LayerConfig(
                attention=attention,
                num_heads=sliding_heads if attention == SLIDING else self.num_attention_heads,
                window=self.sliding_window if attention == SLIDING else None,
                rope=Rope(
                    theta=self.rope_theta[index],
                    rotary_dims=int(self.head_dim * self.partial_rotary_factors[index]),
                    scaling=scaling if attention in self.yarn_only_types else None,
                ),
                mlp=SPARSE if index in moe_layers else DENSE,
                routed_limit=self.swiglu_limits[index] or None,
                shared_limit=self.swiglu_limits_shared[index] or None,
            )

        return tuple(layer(index) for index in range(self.num_hidden_layers))
