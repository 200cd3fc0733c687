"""All_gathers of CUDA tensors over gloo, by way of host memory.

gloo takes CUDA tensors, but torch 2.11 ends the process where it gathers them into one.

Before    g = wait(all_gather(x))
After     h = wait(all_gather(x.to("cpu")));  g = h.to(x.device)
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, fx

from compiler.ir import access
from compiler.ir.collectives import Kind, c10d, collectives
from compiler.runtime.process_groups import group_named

TO_COPY = torch.ops.aten._to_copy.default
HOST = torch.device("cpu")


def through_host(x: Tensor, group_name: str) -> bool:
    """Whether the group gathers tensors like ``x`` by gloo on CUDA."""
    if x.device.type != "cuda":
        return False
    return str(group_named(group_name)._get_backend(x.device).name()) == "gloo"


def gathered(x: Tensor, ranks: int, group_name: str) -> Tensor:
    """All ranks' ``x``, one after the other along dimension 0, on the device of ``x``."""
    part = x.to(HOST) if through_host(x, group_name) else x
    whole: Tensor = c10d.wait_tensor(c10d.all_gather_into_tensor(part, ranks, group_name))
    return whole.to(x.device)


def gather_in_host_memory(graph: fx.Graph) -> int:
    """Rewrite the graph's all_gathers over gloo on CUDA; how many there are.

    Args:
        graph: with this process's group names. Changed in place.
    """
    count = 0
    for start, one in collectives(graph):
        part = access.tensor(one.operand)
        if one.kind is not Kind.ALL_GATHER or not through_host(part, one.group):
            continue
        with graph.inserting_before(start):
            moved = _moved(graph, one.operand, _on_host(part))
        start.replace_input_with(one.operand, moved)
        whole, start.meta["val"] = access.tensor(start), _on_host(access.tensor(start))
        if one.result is not None:
            with graph.inserting_after(one.result):
                back = _moved(graph, one.result, whole)
            one.result.replace_all_uses_with(back, lambda user, to=back: user is not to)  # type: ignore[misc]
            one.result.meta["val"] = start.meta["val"]
        count += 1
    return count


def _on_host(x: Tensor) -> Tensor:
    """The type of a copy of ``x``; of a fake tensor, without PyTorch asking about its sizes.

    It would ask whether rows of a rank are one, and hold all sizes to the answer.
    """
    env = getattr(getattr(x, "fake_mode", None), "shape_env", None)
    with env.suppress_guards() if env else nullcontext():
        return x.to(HOST)


def _moved(graph: fx.Graph, x: fx.Node, to: Tensor) -> fx.Node:
    copy = graph.call_function(TO_COPY, (x,), {"device": to.device})
    copy.meta = {**x.meta, "val": to}
    return copy
