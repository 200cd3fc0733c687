"""Plans that count on fused kernels: what they save, and that the runtime finds the same."""

from __future__ import annotations

import pytest

from compiler.cost import load_machine, machines
from compiler.cost.tables import Fused
from compiler.ir.fused_ops import ALL_REDUCE_NORM, SHARED_NORM, SLOT_BYTES
from compiler.ir.graph import SpmdGraph
from compiler.optimize import optimize
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from passes import FuseReduceNorm
from tests.support.graphs import function

HIDDEN = 1024
LAYER = (
    f"%4: bf16[s0, {HIDDEN}] = comm.all_reduce(%0) {{axis = tp, op = sum}}",
    f"%5: bf16[s0, {HIDDEN}] = aten.add.Tensor(%1, %4)",
    f"%6: bf16[s0, {HIDDEN}] = aten.rms_norm(%5, [{HIDDEN}], %2, 1e-6)",
    "%7: bf16[s0, 4] = aten.mm(%6, %3)",
)


def layer(returned: str = "%7, %5") -> SpmdGraph:
    """A sum, its residual, a norm, and a projection that each rank has columns of."""
    return function(
        f'%0 "x": bf16[s0, {HIDDEN}] {{tp: V}}, %1 "r": bf16[s0, {HIDDEN}], '
        f'%2 "w": bf16[{HIDDEN}], %3 "m": bf16[{HIDDEN}, 4] {{tp: V}}',
        *LAYER,
        f"return {returned}",
        mesh="mesh <tp = 8>\nsym s0 in [2, 1048576]",
    )


def planner(machine: str, *, fuse: bool = True, returned: str = "%7") -> Planner:
    search = PlannerOptions(machine=load_machine(machine), fuse=fuse)
    return Planner(layer(returned), search)


@pytest.mark.parametrize("tokens", [1024, 4096, 16384, 4099])
def test_a_known_kernel_takes_the_place_of_its_parts(tokens: int) -> None:
    with_kernels, without = planner("h100x8"), planner("h100x8", fuse=False)
    decided = with_kernels.decide(tokens)
    ((term, kernel, apart),) = with_kernels.kernels(decided, tokens)
    assert term.fused is Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER
    assert kernel < apart
    least = without.time_ps(without.decide(tokens), tokens)
    assert with_kernels.time_ps(decided, tokens) < least
    assert not list(without.kernels(without.decide(tokens), tokens))


def test_the_runtime_fuses_what_the_plan_counts_on() -> None:
    found = planner("h100x8")
    result = optimize(found, found.decide(4096), tokens=4096)
    assert result.report is not None
    assert result.report.verdict.runs
    assert result.spmd is not None
    fused = FuseReduceNorm(lambda *_: None).apply(result.spmd).graph
    targets = [n.target for n in fused.graph.nodes]
    assert targets.count(SHARED_NORM) == 1
    assert ALL_REDUCE_NORM not in targets


def test_small_payloads_are_not_counted_as_fused_where_nobody_measured_them() -> None:
    found = planner("h100x8")
    assert not list(found.kernels(found.decide(8), 8))


def test_payloads_that_no_workspace_holds_are_not_counted_as_fused() -> None:
    found = planner("h100x8")
    most = SLOT_BYTES // (2 * HIDDEN)
    assert list(found.kernels(found.decide(most), most))
    assert not list(found.kernels(found.decide(2 * most), 2 * most))


@pytest.mark.parametrize("machine", machines())
@pytest.mark.parametrize("tokens", [1, 64, 1000, 4096, 65536])
def test_kernels_never_make_a_plan_slower_nor_beat_the_bound(machine: str, tokens: int) -> None:
    found, without = planner(machine), planner(machine, fuse=False)
    decided = found.decide(tokens)
    time = found.time_ps(decided, tokens)
    assert time <= without.time_ps(without.decide(tokens), tokens)
    assert time <= found.time_ps(found.merged, tokens)
    assert found.time_ps(found.merged, tokens) <= found.time_ps(found.as_written, tokens)
    if found.options.machine is not None and found.options.machine.link is not None:
        bound = sum(
            s.total_ps for s in found.predicted_times(decided, tokens, bounds=True).values()
        )
        assert bound <= time
