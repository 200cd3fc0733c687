"""A made-up world of n ranks, in which vLLM builds models in one process, on a CPU, as on CUDA."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import fx, nn

from compiler.errors import CaptureError

T = TypeVar("T")

TOKENS = 32
"""Rows of the call that is traced; their number is symbolic."""

SETTINGS = {
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_USE_AOT_COMPILE": "0", "VLLM_PLUGINS": "",
}  # fmt: skip
"""Environment in which vLLM neither asks a hub nor needs other processes."""


def as_on_cuda(stack: ExitStack, *, experts: str = "op") -> None:
    """Let vLLM build, on a CPU, what it builds on CUDA, until ``stack`` is closed.

    Collectives are custom ops and products of matrices those of PyTorch; experts are one custom
    op, or with ``experts="inline"`` what is in it.
    """
    import vllm.model_executor.layers.utils as layer_utils
    from vllm.model_executor.layers.fused_moe.runner import moe_runner
    from vllm.platforms import current_platform

    def dispatch(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    def entry(runner: Any) -> Any:
        ops = torch.ops.vllm
        return ops.moe_forward if runner._shared_experts is None else ops.moe_forward_shared

    platform = type(current_platform)
    enter = stack.enter_context
    enter(patch.object(platform, "use_custom_op_collectives", classmethod(lambda cls: True)))
    enter(patch.object(layer_utils, "dispatch_cpu_unquantized_gemm", dispatch))
    if experts == "op":
        enter(patch.object(moe_runner.MoERunner, "_select_forward", entry))


@contextmanager
def made_up_ranks(rank: int, world_size: int, config: Any) -> Iterator[None]:
    """Run as one of ``world_size`` ranks of tensor parallelism whose process group is made up.

    The default process group is there already; its collectives do nothing.
    """
    import vllm.distributed.parallel_state as state
    from vllm.config import set_current_vllm_config
    from vllm.platforms import current_platform

    make_group, make_coordinator = dist.new_group, state.init_model_parallel_group

    def new_group(ranks: Any = None, *args: Any, **options: Any) -> Any:
        return make_group(ranks, *args, **{**options, "backend": "fake"})

    def coordinator(*args: Any, **options: Any) -> Any:
        return make_coordinator(*args, **{**options, "use_message_queue_broadcaster": False})

    def gather(into: list[Any], item: Any, *args: Any, **options: Any) -> None:
        into[:] = [item] * len(into)

    base = "vllm.distributed.device_communicators.base_device_communicator.DeviceCommunicatorBase"
    platform = type(current_platform)
    with ExitStack() as stack:
        enter = stack.enter_context
        for module, name, value in (
            (dist, "new_group", new_group),
            (dist, "broadcast_object_list", lambda *args, **options: None),
            (dist, "all_gather_object", gather),
            (state, "init_model_parallel_group", coordinator),
            (state, "in_the_same_node_as", lambda group, source_rank=0: [True] * world_size),
            (state, "_node_count", lambda group: 1),
            (state, "_group_name_counter", {}),
            (platform, "get_device_communicator_cls", classmethod(lambda cls: base)),
        ):
            enter(patch.object(module, name, value))
        enter(set_current_vllm_config(config))
        config.parallel_config.world_size = world_size
        config.parallel_config.rank = rank
        try:
            state.init_distributed_environment(
                world_size, rank, "env://", local_rank=0, backend="fake"
            )
            state.initialize_model_parallel(world_size, 1)
            yield
        finally:
            state.destroy_model_parallel()
            state.destroy_distributed_environment()


def engine_config(folder: Path, world_size: int, **options: Any) -> Any:
    """Return vLLM's configuration of the model whose ``config.json`` is in ``folder``.

    Args:
        folder: of the model; weights and tokenizer are not needed.
        world_size: ranks of tensor parallelism.
        options: more of ``EngineArgs``.

    Raises:
        CaptureError: vLLM does not take it.
    """
    from vllm.engine.arg_utils import EngineArgs

    arguments = {
        "model": str(folder), "skip_tokenizer_init": True, "load_format": "dummy",
        "tensor_parallel_size": world_size, "dtype": "bfloat16", "max_model_len": 256,
        "max_num_batched_tokens": 256, "max_num_seqs": 8, "compilation_config": {"mode": 0},
    }  # fmt: skip
    try:
        return EngineArgs(**{**arguments, **options}).create_engine_config()
    except Exception as error:
        raise _refused("vLLM does not take the config", error) from error


def build(config: Any) -> nn.Module:
    """Return the model of ``config`` as this rank has it, without the weights of a checkpoint.

    Raises:
        CaptureError: vLLM does not build it.
    """
    from vllm.model_executor.model_loader.utils import (
        initialize_model,
        process_weights_after_loading,
    )
    from vllm.utils.torch_utils import set_default_torch_dtype

    device = torch.device("cpu")
    try:
        with set_default_torch_dtype(config.model_config.dtype), device:
            model = initialize_model(config)
            process_weights_after_loading(model, config.model_config, device)
    except Exception as error:
        raise _refused("vLLM does not build the model", error) from error
    return model.eval()  # type: ignore[no-any-return]


def _refused(what: str, error: Exception) -> CaptureError:
    """Return the error for one of vLLM's own, with the line of vLLM that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return CaptureError(
        what,
        where=f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}",
        found=text,
        remedy="set fields of the config with --set, or name a folder with the model's config.json",
    )


class _CapturedError(Exception):
    """Stops a compilation: its graph is there."""


def traced(
    call: Callable[..., Any],
    config: Any,
    arguments: tuple[Any, ...],
    take: Callable[[fx.GraphModule, list[Any]], T],
) -> T:
    """Return what ``take`` makes of the graph that Dynamo hands to a backend.

    Args:
        call: what is traced.
        config: vLLM's.
        arguments: of the call; the first dimension of its tensors is symbolic.
        take: called with the graph and the values of its placeholders, as a backend is.

    Raises:
        CaptureError: Dynamo finds no whole graph.
    """
    from vllm.forward_context import set_forward_context

    results: list[T] = []
    errors: list[Exception] = []

    def backend(gm: fx.GraphModule, inputs: list[Any]) -> Any:
        try:
            results.append(take(gm, inputs))
        except Exception as error:
            errors.append(error)
        raise _CapturedError

    for tensor in arguments:
        if isinstance(tensor, torch.Tensor):
            torch._dynamo.mark_dynamic(tensor, 0)
    torch._dynamo.reset()
    why = "the model's forward computes nothing on tensors"
    try:
        with torch.inference_mode(), set_forward_context(None, config, num_tokens=TOKENS):
            torch.compile(call, backend=backend, fullgraph=True, dynamic=False)(*arguments)
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if errors:
        raise errors[0]
    if not results:
        raise CaptureError("Dynamo traces no whole graph of the model", found=why)
    return results[0]


def text_call() -> tuple[torch.Tensor, torch.Tensor, None]:
    """Return token ids, positions, and no tensors of an earlier stage."""
    ids = torch.zeros(TOKENS, dtype=torch.int32)
    return ids, torch.arange(TOKENS, dtype=torch.int64), None


def prepare_process() -> None:
    """Set the environment in which vLLM can be imported and asked for graphs."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
