"""The backend that vLLM calls with the whole graph of a model, found by its name.

    LLM(..., compilation_config={"mode": 2, "backend": "commplan_vllm"},
        additional_config={"commplan": {"machine": "h200x8"}})

vLLM's collectives are read as ours and written back, so that what runs are vLLM's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.aot_compile_types import SerializableCallable
from torch._dynamo.source import LocalSource
from torch.distributed import distributed_c10d as c10d

from compiler.backend.backend_options import BackendOptions
from compiler.backend.dynamo_backend import compiled
from compiler.capture.groups import process_group
from compiler.engines.vllm.plugin import LAYERS
from compiler.engines.vllm.weights import own_placements
from compiler.errors import CaptureError, CommPlanError
from compiler.ir.dialects import read, write
from compiler.ir.dialects.read import Reading, readings_of
from compiler.ir.placement import Placement, Replicate

OPTIONS = "commplan"
"""Key of the backend's options in vLLM's ``additional_config``."""


def commplan_vllm(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile the graph of a model of vLLM, its all_reduces placed where they cost least.

    Args:
        gm: the graph as Dynamo traced it.
        example_inputs: the values of its placeholders.
        options: see ``BackendOptions``; they override those of ``additional_config``.
        mode: mode of Inductor.

    Raises:
        CommPlanError: see ``compiler.backend.commplan``.
    """
    engine = VllmGraphs(example_inputs)
    own = getattr(engine.config, "additional_config", None)
    configured = own.get(OPTIONS, {}) if isinstance(own, dict) else {}
    settings = BackendOptions.of({**configured, **(options or {})}, mode)
    return _Planned(compiled(gm, example_inputs, settings, engine))


class _Planned(SerializableCallable):
    """A compiled graph. vLLM cannot save it: plans are made when ranks meet, at each start."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    @classmethod
    def serialize_compile_artifacts(cls, fn: Any) -> bytes:
        """Refuse.

        Raises:
            CommPlanError: always.
        """
        raise CommPlanError(
            "graphs that commplan planned are not saved",
            found="vLLM's cache of compiled models",
            remedy="nothing: the model is planned again at the next start, in seconds",
        )

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> Any:
        """Never called: none is saved."""
        raise NotImplementedError


class VllmGraphs:
    """How vLLM's graphs are read and written, and what its layers say of their weights.

    Attributes:
        config: the configuration that the graph's layers were built for; None without any.
    """

    def __init__(self, example_inputs: Sequence[Any]) -> None:
        self._weights = dict(_weights())
        self._readings: tuple[Reading, ...] = ()
        owners = (self._weights.get(id(value)) for value in example_inputs)
        self.config = next((LAYERS[owner[0]] for owner in owners if owner is not None), None)

    def declare(self, node: fx.Node, value: Any) -> Placement | None:
        """Return what ranks hold of an input.

        Activations that enter the model (embeddings of images, residuals of earlier stages) are
        the same on all ranks of tensor parallelism: vLLM's schedulers see to that.
        """
        if not isinstance(value, torch.Tensor):
            return None
        if (owner := self._weights.get(id(value))) is not None:
            return owner[1]
        return Replicate() if value.is_floating_point() and _is_argument(node) else None

    def read(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Return the graph with vLLM's ops as what they do; its groups resolve from now on.

        Raises:
            CaptureError: vLLM is configured for what plans cannot keep.
        """
        if why := ", ".join(name for name, is_on in kept_apart(self.config) if is_on):
            raise CaptureError(
                "vLLM is configured for what a plan cannot keep",
                found=why,
                remedy="the model runs as it is; without it, it is planned",
            )
        _name_groups()
        graph = read(gm.graph, _size)
        self._readings = readings_of(graph)
        return gm if graph is gm.graph else fx.GraphModule(gm, graph)

    def write(self, module: fx.GraphModule) -> None:
        """Put vLLM's ops in the place of ours."""
        module.graph = write(module.graph, self._readings, _size)
        module.recompile()


def kept_apart(config: Any) -> Iterator[tuple[str, bool]]:
    """Yield what a plan cannot keep, and whether vLLM is configured for it."""
    from vllm import envs

    yield (
        "LoRA, whose adapters are chosen per row",
        getattr(config, "lora_config", None) is not None,
    )
    yield "batch invariance, which fixes the order of sums", bool(envs.VLLM_BATCH_INVARIANT)
    parallel = getattr(config, "parallel_config", None)
    yield "elastic experts, whose ranks change", bool(getattr(parallel, "enable_elastic_ep", False))


def _weights() -> Iterator[tuple[int, tuple[nn.Module, Placement]]]:
    """Yield id of a tensor, the layer that owns it and its placement, of all layers there are."""
    for layer in list(LAYERS):
        tensors = {**layer._parameters, **layer._buffers}
        for name, placement in own_placements(layer):
            yield id(tensors[name]), (layer, placement)


def _is_argument(node: fx.Node) -> bool:
    """Return whether an input is an argument of the model's forward."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    return isinstance(source, LocalSource) and source.is_input


def _name_groups() -> None:
    """Let PyTorch know vLLM's groups by vLLM's names."""
    from vllm.distributed import parallel_state

    register: Callable[[str, Any], None] = vars(c10d)["_register_process_group"]
    for name, reference in parallel_state._groups.items():
        coordinator = reference()
        if coordinator is not None and process_group(name) is None:
            register(name, coordinator.device_group)


def _size(name: str) -> int:
    group = process_group(name)
    assert group is not None, f"vLLM knows no group {name}"
    return int(group.size())
