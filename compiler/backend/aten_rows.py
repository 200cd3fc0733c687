"""Shares of rows as ATen ops, for compilers that take a graph as it is."""

from __future__ import annotations

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx

from compiler.ir import access
from compiler.ir.row_ops import own_share, padded_rows, share


def shared_rows(module: fx.GraphModule) -> fx.GraphModule:
    """``module`` with ATen ops in place of functions that cut and pad rows."""
    written = {own_share: _own_share, padded_rows: _padded_rows}
    calls = [node for node in module.graph.nodes if node.target in written]
    if not calls:
        return module
    for node in calls:
        node.target = written[node.target]
    module.recompile()
    placeholders = access.node_of(module.graph, "placeholder")
    values = [node.meta["val"] for node in placeholders]
    fake = next(x for x in values if isinstance(x, torch._subclasses.FakeTensor))
    with fake.fake_mode, torch.no_grad(), enable_python_dispatcher():  # for symbolic sizes
        traced = make_fx(fx.Interpreter(module).run)(*values)
    for node, traced_node in zip(
        placeholders, access.node_of(traced.graph, "placeholder"), strict=True
    ):
        traced_node.target = node.target
    return traced


def _padded(x: torch.Tensor, dim: int, size: int | torch.SymInt) -> torch.Tensor:
    """``x`` with zero rows at the end of ``dim``; asks nothing about symbolic sizes."""
    widths = [0, 0] * (x.dim() - dim - 1) + [0, size - x.shape[dim]]
    return torch.constant_pad_nd(x, widths)


def _own_share(x: torch.Tensor, dim: int, ranks: int, position: int) -> torch.Tensor:
    """As ``own_share``."""
    size = share(x.shape[dim], ranks)
    whole = x if size * ranks is x.shape[dim] else _padded(x, dim, size * ranks)
    return whole.narrow(dim, position * size, size)


def _padded_rows(x: torch.Tensor, dim: int, multiple: int) -> torch.Tensor:
    """As ``padded_rows``."""
    return _padded(x, dim % x.dim(), share(x.shape[dim], multiple) * multiple)
