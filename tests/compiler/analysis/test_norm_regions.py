"""What is RMSNorm behind a sum over ranks, however it is written, and what only looks like it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from compiler.analysis.norm_regions import NormRegion, Recognizer
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Varying

c10d = torch.ops._c10d_functional
RANKS, ROWS, HIDDEN, EPS = 4, 8, 16, 3e-5
Norm = Callable[[Tensor, Tensor], Tensor]


def functional(h: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(h, (HIDDEN,), w, EPS)


def gemma(h: Tensor, w: Tensor) -> Tensor:
    x = h.float()
    return (x * torch.rsqrt(EPS + (x * x).mean(-1, keepdim=True)) * (w.float() + 1.0)).to(h.dtype)


def llama(h: Tensor, w: Tensor) -> Tensor:
    x = h.to(torch.float32)
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)).to(h.dtype)


def weight_first(h: Tensor, w: Tensor) -> Tensor:
    return (1 + w) * h * (h.square().mean(-1, keepdim=True) + EPS).rsqrt()


def scaled(by: Callable[[Tensor], Tensor]) -> Norm:
    """h * by(h) * w"""
    return lambda h, w: h * by(h) * w


def mean_square(h: Tensor) -> Tensor:
    return (h * h).mean(-1, keepdim=True) + EPS


def sum_square(h: Tensor) -> Tensor:
    return (h * h).sum(-1, keepdim=True)


def length(h: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
    return found


FORMS: dict[str, Norm] = {
    "h / sqrt": lambda h, w: h / mean_square(h).sqrt() * w,
    "h * w / sqrt": lambda h, w: h * w / mean_square(h).sqrt(),
    "w / sqrt * h": lambda h, w: w / mean_square(h).sqrt() * h,
    "true_divide": lambda h, w: torch.true_divide(h, torch.sqrt(mean_square(h))) * w,
    "pow -0.5": scaled(lambda h: mean_square(h).pow(-0.5)),
    "h / pow 0.5": lambda h, w: h / mean_square(h) ** 0.5 * w,
    "reciprocal of sqrt": scaled(lambda h: mean_square(h).sqrt().reciprocal()),
    "sqrt of reciprocal": scaled(lambda h: (1 / mean_square(h)).sqrt()),
    "1 / sqrt": scaled(lambda h: 1 / mean_square(h).sqrt()),
    "root twice": scaled(lambda h: mean_square(h).sqrt().sqrt().pow(-2)),
    "sum / n": scaled(lambda h: (sum_square(h) / HIDDEN + EPS).rsqrt()),
    "1 / n * sum": scaled(lambda h: (1 / HIDDEN * sum_square(h) + EPS).rsqrt()),
    "pow 2": scaled(lambda h: (h.pow(2).sum(-1, keepdim=True) / HIDDEN + EPS).rsqrt()),
    "square": scaled(lambda h: (EPS + h.square().mean(-1, keepdim=True)).rsqrt()),
    "vector_norm": scaled(lambda h: (length(h) ** 2 / HIDDEN + EPS).rsqrt()),
    "norm": scaled(lambda h: (h.norm(dim=-1, keepdim=True).square() / HIDDEN + EPS).rsqrt()),
    "converted": lambda h, w: (h.float() / mean_square(h.float()).sqrt()).to(h.dtype) * w,
}
"""Forms of the norm, without an offset."""

OTHERS: dict[str, Norm] = {
    "h * sqrt": scaled(lambda h: mean_square(h).sqrt()),
    "h / v": lambda h, w: h / mean_square(h) * w,
    "h / rsqrt": lambda h, w: h / mean_square(h).rsqrt() * w,
    "pow -0.25": scaled(lambda h: mean_square(h).pow(-0.25)),
    "no eps": lambda h, w: h / (h * h).mean(-1, keepdim=True).sqrt() * w,
    "eps beside the root": lambda h, w: h / ((h * h).mean(-1, keepdim=True).sqrt() + EPS) * w,
    "eps taken off": scaled(lambda h: (mean_square(h) - 2 * EPS).rsqrt()),
    "sum without / n": scaled(lambda h: (sum_square(h) + EPS).rsqrt()),
    "n + 1": scaled(lambda h: (sum_square(h) / (HIDDEN + 1) + EPS).rsqrt()),
    "n - 1": scaled(lambda h: (sum_square(h) / (HIDDEN - 1) + EPS).rsqrt()),
    "mean over rows": scaled(lambda h: ((h * h).mean(0, keepdim=True) + EPS).rsqrt()),
    "mean over all": scaled(lambda h: ((h * h).mean() + EPS).rsqrt()),
    "vector_norm not squared": scaled(lambda h: (length(h) / HIDDEN + EPS).rsqrt()),
    "1-norm": scaled(lambda h: (h.norm(1, -1, keepdim=True) ** 2 / HIDDEN + EPS).rsqrt()),
    "variance": scaled(lambda h: (h.var(-1, keepdim=True, unbiased=False) + EPS).rsqrt()),
    "|h|": lambda h, w: (h * h).sqrt() * mean_square(h).rsqrt() * w,
    "|h| by pow": lambda h, w: h.pow(4).pow(0.25) * mean_square(h).rsqrt() * w,
    "|w|": lambda h, w: h * mean_square(h).rsqrt() * w.square().sqrt(),
    "h / w": lambda h, w: h * mean_square(h).rsqrt() / w,
    "w squared": lambda h, w: h * mean_square(h).rsqrt() * w.square(),
}
"""What looks like the norm and is another function."""


def centred(h: Tensor, w: Tensor) -> Tensor:
    x = h - h.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w


def doubled(h: Tensor, w: Tensor) -> Tensor:
    return 2 * h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS) * w


def not_squared(h: Tensor, w: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(3).mean(-1, keepdim=True) + EPS) * w


def graph_of(body: Callable[..., Any], dtype: torch.dtype) -> SpmdGraph:
    """x and residual [rows, hidden], weight [hidden], as the graph of ``body``."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = (ROWS, HIDDEN), (ROWS, HIDDEN), (HIDDEN,)
        given = [torch.empty(shape, dtype=dtype) for shape in shapes]
        module = make_fx(body, pre_dispatch=True)(*given)
    names = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]
    return spmd_graph(module, Mesh({"tp": RANKS}), {names[0]: Varying(), names[1]: Varying()})


def reduced(x: Tensor) -> Tensor:
    result: Tensor = c10d.wait_tensor(c10d.all_reduce(x, "sum", "tp"))
    return result


def region(norm: Norm, dtype: torch.dtype) -> NormRegion | str:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        h = residual + reduced(x)
        return norm(h, weight).exp(), h

    graph = graph_of(body, dtype)
    ((_, reduction),) = collectives(graph.graph)
    return Recognizer(graph).fusable(reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("norm", "offset"),
    [
        *((functional, 0.0), (gemma, 1.0), (llama, 0.0), (weight_first, 1.0)),
        *(pytest.param(form, 0.0, id=name) for name, form in FORMS.items()),
    ],
)
def test_forms(norm: Norm, offset: float, dtype: torch.dtype) -> None:
    found = region(norm, dtype)
    assert isinstance(found, NormRegion), found
    assert (found.eps, found.offset) == (EPS, offset)


@pytest.mark.parametrize(
    "norm",
    [
        *(centred, doubled, not_squared),
        *(pytest.param(other, id=name) for name, other in OTHERS.items()),
    ],
)
def test_what_is_no_rms_norm(norm: Norm) -> None:
    assert "no RMSNorm" in str(region(norm, torch.float32))
