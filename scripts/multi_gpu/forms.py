"""One rank of Step-3.5 in four forms over one set of weights, and what each sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compiler.capture import Capture
from compiler.cost import Launch, Machine
from compiler.cost.tables import Fused
from compiler.errors import PlanError
from compiler.ir import access
from compiler.ir.collectives import collectives
from compiler.ir.fused_ops import ALL_REDUCE_NORM, SHARED_NORM
from compiler.optimize.prepare import optimize_captured
from compiler.plan.planner_options import PlannerOptions
from compiler.runtime.guarded_graph import GuardedGraph
from compiler.runtime.lowering import Lowered, lower
from compiler.runtime.module import OptimizedModule
from models.step3p5 import Step3p5ForCausalLM
from models.step3p5.parallel import RankGroup
from scripts.multi_gpu.ranks import Ranks
from scripts.rank_models import (
    Call,
    HostGathering,
    captured,
    merged_by_hand,
    optimized,
    over_same_weights,
)

WRITTEN, BY_HAND, MERGED, PLANNED = FORMS = (
    "as written", "merged by hand", "optimized, merge", "optimized, cost"
)  # fmt: skip
Traffic = Counter[tuple[str, int]]
"""(Kind of collective or of fused kernel, payload bytes) -> how many."""
FUSED = {
    ALL_REDUCE_NORM: Fused.ALL_REDUCE_ADD_NORM,
    SHARED_NORM: Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER,
}


@dataclass(frozen=True)
class Form:
    """One way to run the model.

    Attributes:
        run: called as the model is.
        sends: number of tokens -> what one call sends.
        verdict: of the checker; empty for what engineers wrote.
    """

    run: Callable[..., Tensor]
    sends: Callable[[int], Traffic]
    verdict: str = ""


def traffic(graph: fx.Graph, tokens: int) -> Traffic:
    """What a graph sends, lowered or not."""
    traffic_by_key: Traffic = Counter()
    for node, one in collectives(graph):
        size = max(access.payload_bytes(n, tokens) for n in (one.operand, node))
        traffic_by_key[str(one.kind), size] += 1
    for node in graph.nodes:
        if node.target in FUSED:
            payload = access.payload_bytes(access.operands(node)[0], tokens)
            traffic_by_key[str(FUSED[node.target]), payload] += 1
    return traffic_by_key


def forms_of(
    model: Step3p5ForCausalLM, call: Call, machine: Machine, launch: Launch, ranks: Ranks
) -> dict[str, Form]:
    """All forms for one kind of call, captured once.

    Raises:
        CaptureError, VerificationError: the model cannot be optimized.
        MachineError: the machine does not know a collective of the model.
    """
    timed_capture = captured(model, call)
    ranks.tell(f"captured in {timed_capture.seconds:.1f} s")
    written, capture = timed_capture.capture.graph.graph, timed_capture.capture
    by_merging, sends, verdict = optimized(model, capture, "merge")
    ready = by_merging.prepare_call(*call[0], **call[1])
    forms = {
        WRITTEN: Form(model, lambda n: traffic(written, n)),
        BY_HAND: Form(merged_by_hand(model), lambda n: unfused(sends(n)[1])),
        MERGED: Form(by_merging, lambda n: traffic(_lowered(ready, n).module.graph, n), verdict),
        PLANNED: planned(model, capture, machine, launch, ranks),
    }
    ranks.tell("merged and planned")
    return forms


def unfused(listed: list[tuple[Any, int]]) -> Traffic:
    """The same as ``Traffic``."""
    return Counter((str(kind), size) for kind, size in listed)


def _lowered(prepared: GuardedGraph, tokens: int) -> Lowered:
    return prepared.variants.plan(tokens)


def planned(
    model: Step3p5ForCausalLM, capture: Capture, machine: Machine, launch: Launch, ranks: Ranks
) -> Form:
    """Planned by time on ``machine``, a graph per range of token counts."""
    result = optimize_captured(
        capture, PlannerOptions("cost", machine, launch), config=model.config
    )
    if len(set(ranks.gathered(result.digests))) > 1:
        raise PlanError("ranks hold different plans", found="the same machine on all of them")
    graphs = dict.fromkeys(each.spmd for each in result.ranges)
    forms = {g: lower(g, capture.groups, mutations=capture.mutations) for g in graphs}
    table = result.table.map(lambda tokens: forms[tokens.plan.spmd])
    prepared = GuardedGraph(table, result.symbol, capture, result, None)
    verdicts = sorted({str(each.verdict) for each in result.ranges})
    return Form(
        OptimizedModule(model, lambda *_: prepared),
        lambda n: traffic(table.plan(n).module.graph, n),
        ", ".join(verdicts),
    )


class Nudged(HostGathering):
    """Ranks that move every summand by up to one unit in its last place."""

    def all_reduce(self, partial: Tensor) -> Tensor:
        """The sum of the moved summands, in the place of ``partial``."""
        part = 2 * torch.rand_like(partial, dtype=torch.float64) - 1
        partial.copy_(partial.double() * (1 + torch.finfo(partial.dtype).eps * part))
        return super().all_reduce(partial)


def nudged(model: Step3p5ForCausalLM) -> Step3p5ForCausalLM:
    """A model over the same weights whose reductions are rounded otherwise, at random.

    How far its outputs are from the model's says how far those of an equal form may be.
    """
    other = over_same_weights(model)
    old = other.ranks
    for module in other.modules():
        if isinstance(getattr(module, "ranks", None), RankGroup):
            module.ranks = Nudged(old.group, old.rank, old.size)  # type: ignore[assignment]
    return other


@contextmanager
def same_experts(model: Step3p5ForCausalLM) -> Iterator[None]:
    """Within it, every token of a layer goes to the same experts, whatever is rounded how.

    The bias of a router takes part in the choice of experts alone. Otherwise a rounding may send
    a token to other experts, after which its outputs have nothing to do with those compared.
    """
    routers = {n: p for n, p in model.named_parameters() if n.endswith("router_bias")}
    kept: Mapping[str, Tensor] = {name: bias.clone() for name, bias in routers.items()}
    top_k = model.config.moe_top_k
    with torch.no_grad():
        for bias in routers.values():
            bias.zero_()
            bias[:: len(bias) // top_k][:top_k] = 8  # scores lie between 0 and 1
    try:
        yield
    finally:
        with torch.no_grad():
            for name, bias in routers.items():
                bias.copy_(kept[name])
