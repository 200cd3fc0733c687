"""Reductions with add + RMSNorm become fused ops, whatever the spelling, and only those."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from compiler.check import Verdict, check
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Varying
from compiler.ir.remark import RemarkKind
from compiler.runtime import fusing
from compiler.runtime.kernels import reference, select

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


def centred(h: Tensor, w: Tensor) -> Tensor:
    x = h - h.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w


def doubled(h: Tensor, w: Tensor) -> Tensor:
    return 2 * h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS) * w


def not_squared(h: Tensor, w: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(3).mean(-1, keepdim=True) + EPS) * w


def graph_of(body: Callable[..., Any], dtype: torch.dtype, *, rows: int = ROWS) -> SpmdGraph:
    """x and residual [rows, hidden], weight [hidden], as the graph of ``body``."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = (ROWS, HIDDEN), (rows, HIDDEN), (HIDDEN,)
        given = [torch.empty(shape, dtype=dtype) for shape in shapes]
        module = make_fx(body, pre_dispatch=True)(*given)
    names = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]
    return spmd_graph(module, Mesh({"tp": RANKS}), {names[0]: Varying(), names[1]: Varying()})


def reduced(x: Tensor) -> Tensor:
    result: Tensor = c10d.wait_tensor(c10d.all_reduce(x, "sum", "tp"))
    return result


def fused_calls(graph: SpmdGraph) -> list[fx.Node]:
    return [
        n for n in graph.graph.nodes if n.target in (select.ALL_REDUCE_NORM, select.SHARED_NORM)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("norm", "offset"), [(functional, 0.0), (gemma, 1.0), (llama, 0.0), (weight_first, 1.0)]
)
def test_spellings(norm: Norm, offset: float, dtype: torch.dtype) -> None:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        h = residual + reduced(x)
        return norm(h, weight).exp(), h

    graph = graph_of(body, dtype)
    fused, remarks = fusing.fuse(graph, lambda _: None)
    assert [r.kind for r in remarks] == [RemarkKind.PASSED], remarks
    (call,) = fused_calls(fused)
    assert call.args[3:] == (EPS, offset, "tp")
    assert not any(n.target is c10d.all_reduce.default for n in fused.graph.nodes)


@pytest.mark.parametrize("norm", [centred, doubled, not_squared])
def test_what_is_no_rms_norm_stays(norm: Norm) -> None:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        return norm(residual + reduced(x), weight)

    graph = graph_of(body, torch.float32)
    fused, (remark,) = fusing.fuse(graph, lambda _: None)
    assert fused is graph
    assert "no RMSNorm" in remark.reason


@pytest.mark.parametrize(
    ("why", "body"),
    [
        ("3 users", lambda x, r, w: ((t := reduced(x)) + r, t * 2, t + 1)),
        ("not added", lambda x, r, w: functional(reduced(x) * r, w)),
        ("not added", lambda x, r, w: functional(torch.add(r, reduced(x), alpha=2), w)),
        ("of its shape", lambda x, r, w: functional(reduced(x) + w, w)),
        ("reduces by max", lambda x, r, w: functional(
            r + c10d.wait_tensor(c10d.all_reduce(x, "max", "tp")), w)),
    ],
)  # fmt: skip
def test_refusals(why: str, body: Any) -> None:
    graph = graph_of(body, torch.float32)
    fused, (remark,) = fusing.fuse(graph, lambda _: None)
    assert fused is graph
    assert why in remark.reason


def test_groups_without_a_workspace_and_types_without_a_kernel() -> None:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        return functional(residual + reduced(x), weight)

    _, (remark,) = fusing.fuse(graph_of(body, torch.float32), lambda name: f"{name} is too far")
    assert "tp is too far" in remark.reason
    _, (remark,) = fusing.fuse(graph_of(body, torch.float64), lambda _: None)
    assert "torch.float64 is not one of" in remark.reason


def shared(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    h = c10d.wait_tensor(c10d.reduce_scatter_tensor(x, "sum", RANKS, "tp")) + residual
    y = functional(h, weight)
    return c10d.wait_tensor(c10d.all_gather_into_tensor(y, RANKS, "tp")), h


def test_shared_rows() -> None:
    graph = graph_of(shared, torch.float32, rows=ROWS // RANKS)
    fused, remarks = fusing.fuse(graph, lambda _: None)
    assert [r.kind for r in remarks] == [RemarkKind.PASSED], remarks
    assert [n.target for n in fused_calls(fused)] == [select.SHARED_NORM]


def test_the_checker_refuses_a_wrong_match() -> None:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        return functional(residual + reduced(x), weight)

    graph = graph_of(body, torch.float32)
    found, _ = fusing.compositions(graph, lambda _: None)
    fused, calls = fusing._replaced(graph, found)
    (call,) = calls
    x, residual, *rest = call.args
    call.args = (residual, x, *rest)
    verdict = check(graph, fusing.expanded(graph, fused, calls)).verdict
    assert verdict is Verdict.NOT_EQUIVALENT


def composed(group: dist.ProcessGroup) -> list[float]:
    """Largest deviations of both ops, without a workspace, from float64."""
    generator = torch.Generator().manual_seed(group.rank())
    x = torch.randn(ROWS, HIDDEN, generator=generator)
    same = torch.Generator().manual_seed(99)
    residual, weight = (torch.randn(s, generator=same) for s in ((ROWS, HIDDEN), (HIDDEN,)))
    everyone = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(everyone, x, group=group)
    exact = reference.add_rms_norm(reference.sum_over_ranks(everyone), residual, weight, EPS, 1.0)
    rows = ROWS // group.size()
    own = slice(group.rank() * rows, (group.rank() + 1) * rows)
    ops, name = torch.ops.commplan, group.group_name
    y, h = ops.all_reduce_add_rms_norm(x, residual, weight, EPS, 1.0, name)
    gathered, held = ops.reduce_scatter_add_rms_norm_all_gather(
        x, residual[own].contiguous(), weight, EPS, 1.0, group.size(), name
    )
    pairs = (y, exact[0]), (h, exact[1]), (gathered, exact[0]), (held, exact[1][own])
    return [float((a.double() - b).abs().max()) for a, b in pairs]


def test_without_a_workspace_ops_run_their_composition(gloo_pool: Any) -> None:
    for differences in gloo_pool(4).run(composed):
        assert max(differences) < 1e-5
