"""Reductions with add + RMSNorm become fused ops, in all known forms, and only those."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from compiler.check import Verdict, check
from compiler.ir import fused_ops
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Varying
from compiler.ir.remark import RemarkKind
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS, own_share
from compiler.ir.text import parse_graph
from compiler.plan.prices import Bytes
from compiler.plan.row_cut import shard_rows
from compiler.runtime.kernels import reference
from passes import EliminateDeadCode, ShardRows, fuse_reduce_norm

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
        n
        for n in graph.graph.nodes
        if n.target in (fused_ops.ALL_REDUCE_NORM, fused_ops.SHARED_NORM)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("norm", "offset"),
    [
        *((functional, 0.0), (gemma, 1.0), (llama, 0.0), (weight_first, 1.0)),
        *(pytest.param(form, 0.0, id=name) for name, form in FORMS.items()),
    ],
)
def test_forms(norm: Norm, offset: float, dtype: torch.dtype) -> None:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        h = residual + reduced(x)
        return norm(h, weight).exp(), h

    graph = graph_of(body, dtype)
    fused, remarks = fuse_reduce_norm.fuse(graph, lambda *_: None)
    assert [r.kind for r in remarks] == [RemarkKind.PASSED], remarks
    (call,) = fused_calls(fused)
    assert call.args[3:] == (EPS, offset, "tp")
    assert not any(n.target is c10d.all_reduce.default for n in fused.graph.nodes)


@pytest.mark.parametrize(
    "norm",
    [
        *(centred, doubled, not_squared),
        *(pytest.param(other, id=name) for name, other in OTHERS.items()),
    ],
)
def test_what_is_no_rms_norm_stays(norm: Norm) -> None:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        return norm(residual + reduced(x), weight)

    graph = graph_of(body, torch.float32)
    fused, (remark,) = fuse_reduce_norm.fuse(graph, lambda *_: None)
    assert fused is graph
    assert "no RMSNorm" in remark.reason


def test_the_number_of_rows_is_no_number_of_the_norm() -> None:
    """Regions are compared on few rows: divided by as many, their number would be one."""
    graph = parse_graph("""
mesh <tp = 4>
sym s0 in [2, 4096]
func @main(%0 "x": f32[s0, 16] {tp: V}, %1 "r": f32[s0, 16], %2 "w": f32[16]) {
  %3: f32[s0, 16] = comm.all_reduce(%0) {axis = tp, op = sum}
  %4: f32[s0, 16] = aten.add.Tensor(%1, %3)
  %5: f32[s0, 16] = aten.mul.Tensor(%4, %4)
  %6: f32[s0, 1] = aten.mean.dim(%5, [-1], true)
  %7: sym(s0) = aten.sym_size.int(%4, 0)
  %8: f32[s0, 1] = aten.mul.Tensor(%6, %7)
  %9: f32[s0, 1] = aten.div.Tensor(%8, 2)
  %10: f32[s0, 1] = aten.add.Tensor(%9, 1e-5)
  %11: f32[s0, 1] = aten.rsqrt(%10)
  %12: f32[s0, 16] = aten.mul.Tensor(%4, %11)
  %13: f32[s0, 16] = aten.mul.Tensor(%12, %2)
  return %13
}
""")
    _, (remark,) = fuse_reduce_norm.fuse(graph, lambda *_: None)
    assert "no RMSNorm" in remark.reason


@pytest.mark.parametrize(
    ("why", "body"),
    [
        ("3 users", lambda x, r, w: ((t := reduced(x)) + r, t * 2, t + 1)),
        ("not added", lambda x, r, w: functional(reduced(x) * r, w)),
        ("not added", lambda x, r, w: functional(torch.add(r, reduced(x), alpha=2), w)),
        ("of its shape", lambda x, r, w: functional(reduced(x) + w, w)),
        ("nothing waits for it", lambda x, r, w: c10d.all_reduce(x, "sum", "tp")),
        ("reduces by max", lambda x, r, w: functional(
            r + c10d.wait_tensor(c10d.all_reduce(x, "max", "tp")), w)),
    ],
)  # fmt: skip
def test_refusals(why: str, body: Any) -> None:
    graph = graph_of(body, torch.float32)
    fused, (remark,) = fuse_reduce_norm.fuse(graph, lambda *_: None)
    assert fused is graph
    assert why in remark.reason


def test_groups_without_a_workspace_and_types_without_a_kernel() -> None:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        return functional(residual + reduced(x), weight)

    graph = graph_of(body, torch.float32)
    _, (remark,) = fuse_reduce_norm.fuse(graph, lambda name, _: f"{name} is too far")
    assert "tp is too far" in remark.reason
    _, (remark,) = fuse_reduce_norm.fuse(graph_of(body, torch.float64), lambda *_: None)
    assert "torch.float64 is not one of" in remark.reason


def shared(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    h = c10d.wait_tensor(c10d.reduce_scatter_tensor(x, "sum", RANKS, "tp")) + residual
    y = functional(h, weight)
    return c10d.wait_tensor(c10d.all_gather_into_tensor(y, RANKS, "tp")), h


def test_shared_rows() -> None:
    graph = graph_of(shared, torch.float32, rows=ROWS // RANKS)
    fused, remarks = fuse_reduce_norm.fuse(graph, lambda *_: None)
    assert [r.kind for r in remarks] == [RemarkKind.PASSED], remarks
    assert [n.target for n in fused_calls(fused)] == [fused_ops.SHARED_NORM]


SHARED = """
mesh <tp = 4>
sym s0 in [2, 4096]
func @main(
  %0 "x": f32[s0, 16] {tp: V}, %1 "r": f32[s0, 16], %2 "w": f32[16], %3 "m": f32[16, 4] {tp: V}
) {
  %4: f32[s0, 16] = comm.all_reduce(%0) {axis = tp, op = sum}
  %5: f32[s0, 16] = aten.add.Tensor(%1, %4)
  %6: f32[s0, 16] = aten.rms_norm(%5, [16], %2, 1e-6)
  %7: f32[s0, 4] = aten.mm(%6, %3)
  return %7
}
"""


def test_shared_rows_of_any_number() -> None:
    """As the optimizer shares them: padded before the reduce_scatter, cut off behind the gather."""
    whole = parse_graph(SHARED)
    rows = shard_rows(whole, "tp", Bytes())
    graph = EliminateDeadCode().apply(ShardRows(rows).apply(whole).graph).graph
    assert PAD_ROWS in [n.target for n in graph.graph.nodes]
    fused, remarks = fuse_reduce_norm.fuse(graph, lambda *_: None)
    assert [r.kind for r in remarks] == [RemarkKind.PASSED], remarks
    (call,) = fused_calls(fused)
    assert call.target is fused_ops.SHARED_NORM
    targets = [n.target for n in fused.graph.nodes]
    assert PAD_ROWS not in targets
    assert c10d.reduce_scatter_tensor.default not in targets


def test_rows_of_the_norm_that_are_read_as_shares() -> None:
    """A router reads its own rows of what others read whole."""

    def body(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        t = c10d.wait_tensor(c10d.reduce_scatter_tensor(x, "sum", RANKS, "tp"))
        h = t + r
        y = functional(h, w)
        return c10d.wait_tensor(c10d.all_gather_into_tensor(y, RANKS, "tp")), torch.sigmoid(y), h

    graph = graph_of(body, torch.float32, rows=ROWS // RANKS)
    fused, remarks = fuse_reduce_norm.fuse(graph, lambda *_: None)
    assert [r.kind for r in remarks] == [RemarkKind.PASSED], remarks
    targets = [n.target for n in fused.graph.nodes]
    assert targets.count(fused_ops.SHARED_NORM) == targets.count(ALL_SLICE) == 1
    assert not any("rms_norm" in str(t) for t in targets if t is not fused_ops.SHARED_NORM)


def test_padding_that_is_read_is_not_fused_away() -> None:
    whole = parse_graph(SHARED)
    graph = ShardRows(shard_rows(whole, "tp", Bytes())).apply(whole).graph
    (norm,) = [n for n in graph.graph.nodes if n.target is torch.ops.aten.rms_norm.default]
    (gather,) = norm.users
    (wait,) = gather.users
    graph.graph.output_node().prepend(graph.graph.node_copy(wait, lambda n: n))
    extra = graph.graph.output_node().prev
    extra.args, extra.target = (wait,), torch.ops.aten.neg.default
    found, (remark,) = fuse_reduce_norm.compositions(graph, lambda *_: None)
    assert not found
    assert "the norm of its padding is read" in remark.reason


def test_the_checker_refuses_a_wrong_match() -> None:
    def body(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        return functional(residual + reduced(x), weight)

    graph = graph_of(body, torch.float32)
    found, _ = fuse_reduce_norm.compositions(graph, lambda *_: None)
    fused, calls = fuse_reduce_norm._replaced(graph, found)
    (call,) = calls
    x, residual, *rest = call.args
    call.args = (residual, x, *rest)
    verdict = check(graph, fuse_reduce_norm.expanded(graph, fused, calls)).verdict
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
    pairs = [(y, exact[0]), (h, exact[1]), (gathered, exact[0]), (held, exact[1][own])]
    uneven = own_share(residual[:-1], 0, group.size(), group.rank())
    gathered, held = ops.reduce_scatter_add_rms_norm_all_gather(
        x[:-1].contiguous(), uneven, weight, EPS, 1.0, group.size(), name
    )
    kept = rows - (group.rank() == group.size() - 1)
    pairs += [(gathered, exact[0][:-1]), (held[:kept], exact[1][own][:kept])]
    return [float((a.double() - b).abs().max()) for a, b in pairs]


def test_without_a_workspace_ops_run_their_composition(gloo_pool: Any) -> None:
    for differences in gloo_pool(4).run(composed):
        assert max(differences) < 1e-5
