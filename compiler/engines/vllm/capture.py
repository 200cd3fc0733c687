"""A model class of vLLM as one graph of n ranks: on a CPU, without weights, from its config alone.

The model is built in a made-up world as one rank and as several of n. What its layers say of their
weights is declared; of other tensors, those are whole whose shapes are those of one rank.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd

from compiler.backend.placeholder_placements import dynamo_inputs, source_of
from compiler.capture import Capture, capture_ranks
from compiler.capture.capture import Progress
from compiler.capture.fake_ranks import fake_process_group
from compiler.capture.trace import Traced
from compiler.engines.vllm import world
from compiler.engines.vllm.weights import placements
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement, Replicate, Varying

AXIS = "tp"
GROUPS = ("tp:0", "ep:0", "etp:0", "world:0")
"""vLLM's names of groups that are all ranks of tensor parallelism."""


def capture(folder: Path, world_size: int, progress: Progress | None = None) -> Capture:
    """Capture the model whose ``config.json`` is in ``folder``.

    Raises:
        CommPlanError: vLLM does not build it, Dynamo does not trace it, or the ranks' programs
            differ.
    """
    world.prepare_process()
    model = _Model(folder, world_size)
    mesh = Mesh({AXIS: world_size}, groups=dict.fromkeys(GROUPS, AXIS))
    model.trace(0)
    declared = model.placements

    def factory() -> Any:
        return model.traces.get(dist.get_rank()) or model.trace(dist.get_rank())

    return capture_ranks(
        factory, lambda: ((), {}), world_size, mesh=mesh, inputs=declared, progress=progress
    )


@dataclass
class _Model:
    """One model, built and traced as several ranks.

    Attributes:
        folder: has its config.
        world_size: number of ranks.
        placements: of placeholders, once a rank was traced.
        traces: rank -> its trace.
        shapes: state_dict key -> shape on one device.
    """

    folder: Path
    world_size: int
    placements: dict[str, Placement] = field(default_factory=dict)
    traces: dict[int, Traced] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)

    def trace(self, rank: int) -> Traced:
        """Return the trace of one rank, in the process group that there is or one made up."""
        if not self.shapes:
            self.shapes = {name: x.shape for name, x in _state(self._on_one_device()).items()}
        with ExitStack() as stack:
            if not dist.is_initialized():
                stack.enter_context(fake_process_group(rank, self.world_size))
            config = self._configured(stack, rank, self.world_size)
            model = world.build(config)
            _add_biases_on_every_rank(model)
            names = {id(tensor): name for name, tensor in _state(model).items()}
            declared = placements(model)

            def declare(node: fx.Node, value: Any) -> Placement | None:
                if not isinstance(value, torch.Tensor):
                    return None
                name = names.get(id(value))
                if name is None:
                    return Replicate()
                is_whole = self.shapes.get(name) == value.shape
                return declared.get(name) or (Replicate() if is_whole else Varying())

            def take(gm: fx.GraphModule, inputs: list[Any]) -> Traced:
                inputs_declared = [
                    replace(each, name=names.get(id(each.value), each.name))
                    for each in dynamo_inputs(gm, inputs, declare)
                ]
                traced, self.placements, _ = source_of(_behind_aot(gm, inputs), inputs_declared)
                return traced

            self.traces[rank] = world.traced(model, config, world.text_call(), take)
        return self.traces[rank]

    def _on_one_device(self) -> nn.Module:
        with fake_process_group(0, 1), ExitStack() as stack:
            return world.build(self._configured(stack, 0, 1))

    def _configured(self, stack: ExitStack, rank: int, ranks: int) -> Any:
        world.as_on_cuda(stack, experts="inline")
        config = world.engine_config(self.folder, ranks)
        stack.enter_context(world.made_up_ranks(rank, ranks, config))
        return config


def _behind_aot(gm: fx.GraphModule, inputs: list[Any]) -> fx.GraphModule:
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    aot_autograd(fw_compiler=keep, inference_compiler=keep, keep_inference_input_mutations=True)(
        gm, inputs
    )
    return graphs[0]


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _add_biases_on_every_rank(model: nn.Module) -> None:
    """Let every rank add the bias that only the first one adds: it is declared a partial sum."""
    from vllm.model_executor.layers.linear import RowParallelLinear

    for layer in model.modules():
        if isinstance(layer, RowParallelLinear) and layer.bias is not None:
            layer.tp_rank = 0
