"""What collectives take: laws that hold on every machine, rank counts, two levels, refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from compiler.cost import Launch, Machine, MachineError, load_machine, machines
from compiler.cost.collective_times import Shape, shape_of
from compiler.cost.regimes import Regime, monotone
from compiler.cost.tables import Fused
from compiler.ir.collectives import Kind

AR, RS, AG, A2A = Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER, Kind.ALL_TO_ALL
KINDS = (AR, RS, AG, A2A)
PAYLOADS = [0, 1, 511, *(int(2 ** (i / 2)) for i in range(18, 63))]
FUSED = Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER


@pytest.fixture(scope="module")
def h100() -> Machine:
    return load_machine("h100x8")


@pytest.fixture(scope="module")
def two_level() -> Machine:
    return load_machine("h200x8-ib400")


@pytest.mark.parametrize("name", machines())
def test_laws(name: str) -> None:
    """Times never fall with payload, all_reduce is clamped, nothing beats the lower bound."""
    machine = load_machine(name)
    groups = [(n, 1) for n in (2, 3, 4, 6, 8)]
    groups += [(8, 2), (1, 4), (4, 8)] if machine.network else []
    for group, launch in itertools.product(groups, Launch):
        before = dict.fromkeys(KINDS, 0)
        for payload in PAYLOADS:
            times = {k: machine.collective_time_ps(k, payload, group, launch=launch) for k in KINDS}
            assert times[AR] <= times[RS] + times[AG], (group, launch, payload)
            for kind, time_ps in times.items():
                assert time_ps >= before[kind], (group, launch, kind, payload)
                assert time_ps >= machine.lower_bound_ps(kind, payload, group)
            before = times


def test_the_clamp_binds_where_the_table_is_slower() -> None:
    b200 = load_machine("b200x8")
    nccl = replace(b200, tables=tuple(t for t in b200.tables if t.library_class == "nccl"))
    (table,) = nccl.tables_of(AR, 8)
    slow = replace(table, curve=monotone([Regime(0, 10**9, 0)]))
    clamped = replace(nccl, tables=(slow, *(t for t in nccl.tables if t is not table)))
    found = clamped.collective(AR, 1 << 26, (8, 1), launch="eager")
    assert [phase.kind for phase in found.phases] == [RS, AG]
    assert found.time_ps < slow.curve.time_ps(1 << 26)
    alone = replace(nccl, tables=(slow,))
    assert alone.collective_time_ps(AR, 1 << 26, (8, 1), launch="eager") == 10**9


def test_the_best_library_is_taken_and_named(h100: Machine) -> None:
    for payload, launch, library in (
        (8192, "graph", "trtllm 1.3.0rc20"),
        (8192, "eager", "TokenWeave multimem"),
        (1 << 27, "graph", "TokenWeave multimem"),
    ):
        (phase,) = h100.collective(AR, payload, (8, 1), launch=launch).phases
        tables = [t for t in h100.tables_of(AR, 8) if launch in t.launches]
        assert phase.library == library
        assert phase.time_ps == min(t.curve.time_ps(payload) for t in tables)


def test_breakdown(h100: Machine) -> None:
    (phase,) = h100.collective(RS, 1 << 18, (8, 1), launch="graph").phases
    assert (phase.library, phase.level, phase.ranks, phase.derived) == (
        "NCCL 2.29.2",
        "node",
        8,
        "",
    )
    assert phase.source.endswith("nccl_perf.parquet")
    assert phase.time_ps == phase.alpha_ps + (phase.beta_fs_per_byte * (1 << 18) + 500) // 1000
    assert phase.time_ps == pytest.approx(12.2e6, rel=0.1)  # as published
    (outside,) = h100.collective(A2A, 1 << 33, (8, 1), launch="graph").phases
    assert outside.derived == "payloads of 512 to 536870912 bytes were measured"


def test_counts_between_tables_follow_the_ring_law(h100: Machine) -> None:
    a100 = load_machine("a100x8")
    times = [a100.collective_time_ps(AG, 1 << 26, (n, 1), launch="graph") for n in (4, 5, 6, 7, 8)]
    assert times == sorted(times)
    (phase,) = h100.collective(AG, 1 << 26, (6, 1), launch="graph").phases
    assert phase.derived == "ring law from the tables of 4 and 8 ranks, not measured"
    assert phase.library_class == "nccl"
    (beyond,) = load_machine("gb200").collective(AG, 1 << 26, (8, 1), launch="graph").phases
    assert beyond.derived == "ring law from the tables of 2 and 4 ranks, not measured"


def test_one_rank_takes_no_time(h100: Machine) -> None:
    assert h100.collective_time_ps(AR, 1 << 20, [[0], [1]], launch="eager") == 0
    assert h100.lower_bound_ps(AR, 1 << 20, (1, 1)) == 0


def test_shapes(h100: Machine, two_level: Machine) -> None:
    assert shape_of([[0, 1, 2, 3], [4, 5, 6, 7]], h100) == Shape(4, 1)
    assert shape_of([range(16)], two_level) == Shape(8, 2)
    assert shape_of([[r, r + 8] for r in range(8)], two_level) == Shape(1, 2)
    assert shape_of((4, 2), two_level).ranks == 8


def test_two_levels_add_up(two_level: Machine) -> None:
    found = two_level.collective(AR, 1 << 24, [range(16)], launch="graph")
    inside, between, outside = found.phases
    assert [s.kind for s in found.phases] == [RS, AR, AG]
    assert [s.level for s in found.phases] == ["node", "network", "node"]
    assert between.payload_bytes == (1 << 24) // 8
    assert found.time_ps == inside.time_ps + between.time_ps + outside.time_ps
    # two steps of 14 us after 8.4 us, and the payload's share once over 40 GB/s
    assert between.time_ps == 36_400_000 + (1 << 21) * 25
    assert "not measured" in between.derived
    small = two_level.collective(RS, 4096, (1, 2), launch="graph").phases[0]
    assert (small.library, small.alpha_ps) == ("NCCL ring LL", 9_300_000)
    assert len(two_level.collective(A2A, 1 << 20, (8, 2), launch="eager").phases) == 2
    assert two_level.collective_time_ps(AR, 1 << 20, (8, 1), launch="graph") == load_machine(
        "h200x8"
    ).collective_time_ps(AR, 1 << 20, (8, 1), launch="graph")


def test_lower_bounds(h100: Machine, two_level: Machine) -> None:
    payload = 450_000 * 80  # 80 us of one link
    assert h100.lower_bound_ps(AG, payload, (8, 1)) == 70_000_000
    assert h100.lower_bound_ps(AR, payload, (8, 1)) == 80_000_000  # the switch adds
    a100 = load_machine("a100x8")
    assert a100.lower_bound_ps(AR, 300_000 * 80, (8, 1)) == 140_000_000
    assert two_level.lower_bound_ps(AG, 1 << 30, (8, 2)) == 2_087_831_324  # inside
    # between nodes: half of each of 8 adapters' share, at 50 GB/s
    assert two_level.lower_bound_ps(RS, 800_000, (1, 2)) == 8_000_000
    assert two_level.lower_bound_ps(AR, 1 << 30, (8, 2)) == (1 << 27) * 10**6 // 50_000
    assert two_level.lower_bound_ps(A2A, 800_000, (8, 2)) == 8_000_000


def test_fused_kernels_where_they_were_measured(h100: Machine) -> None:
    eight = (8, 1)
    found = h100.fused_time_ps(FUSED, 1 << 27, eight, launch="graph")
    assert found == pytest.approx(502.3e6, rel=0.03)
    for kind, payload, group in (
        (FUSED, 1 << 10, eight),
        (FUSED, 1 << 30, eight),
        (FUSED, 1 << 27, (4, 1)),
        (Fused.ALL_REDUCE_ADD_NORM, 1 << 27, eight),
    ):
        assert h100.fused_time_ps(kind, payload, group, launch="graph") is None
    b200 = load_machine("b200x8")
    assert b200.fused_time_ps(Fused.ALL_REDUCE_ADD_NORM, 1 << 18, eight, launch="graph")
    assert b200.fused_time_ps(Fused.ALL_REDUCE_ADD_NORM, 1 << 18, eight, launch="eager") is None
    assert (
        load_machine("h200x8-ib400").fused_time_ps(FUSED, 1 << 27, (8, 2), launch="graph") is None
    )


@pytest.mark.parametrize(
    ("name", "kind", "group", "message"),
    [
        ("h100x8", AR, (8, 2), "is one node of 8 ranks"),
        ("h100x8", AR, (16, 1), "no such group"),
        ("h100x8", AR, (0, 1), "no such group"),
        ("h100x8", AR, [range(12)], "more ranks on one node than on another"),
        ("h200x8-ib400", AR, [[0, 1], [2, 8]], "lie differently over nodes"),
        ("gb200", AR, (16, 1), "all_reduce over 16 ranks takes"),
        ("h100x8", Kind.BROADCAST, (8, 1), "broadcast over 8 ranks takes"),
        ("h200x8-ib400", Kind.BROADCAST, (8, 2), "broadcast over 16 ranks takes"),
    ],
)
def test_refusals(name: str, kind: Kind, group: object, message: str) -> None:
    with pytest.raises(MachineError, match=message):
        load_machine(name).collective(kind, 1024, group, launch="eager")  # type: ignore[arg-type]


def test_the_whole_refusal() -> None:
    with pytest.raises(MachineError) as caught:
        load_machine("gb200").collective(AR, 1024, (16, 1), launch="graph")
    assert str(caught.value) == (
        "machine 'gb200' does not tell what all_reduce over 16 ranks takes\n"
        "  found: tables (graph) of 2, 4 ranks\n"
        "  remedy: measure it: torchrun --nproc-per-node N --no-python commplan machine measure"
    )
