"""Which kernel serves which payload, by tables."""

from dataclasses import replace

import pytest

from compiler.cost import Launch, Machine, load_machine
from compiler.cost.fused_kernels import FusedKernel, fused_kernel
from compiler.cost.regimes import Curve, Regime
from compiler.cost.tables import BYTES_PER_US, NS, Fused, LibraryClass, Quantity, Table
from compiler.ir.collectives import Kind

WHOLE, SHARED = Fused.ALL_REDUCE_ADD_NORM, Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER
ONE, TWO, COMPOSED = FusedKernel.ONE_SHOT, FusedKernel.TWO_SHOT, FusedKernel.COMPOSED
GRAPH, US, PS_PER_BYTE = (Launch.GRAPH,), 10**6, 10**3


def table(kind: Kind | Fused, ranks: int, library: str, us: int, ps_per_byte: int) -> Table:
    """A line, measured from 1 KiB to 1 GiB."""
    library_class = LibraryClass.NCCL if isinstance(kind, Kind) else LibraryClass.CUSTOM
    curve = Curve((Regime(0, us * US, ps_per_byte * PS_PER_BYTE),))
    return Table(kind, ranks, library, library_class, GRAPH, curve, 2**10, 2**30, "test")


def machine(*tables: Table) -> Machine:
    memory, launch = Quantity(10**6, BYTES_PER_US, "test"), Quantity(1000, NS, "test")
    link = Quantity(450_000, BYTES_PER_US, "test")
    return Machine("m", "", 8, False, link, memory, {}, {Launch.GRAPH: launch}, tables)


MEASURED = (table(WHOLE, 2, ONE, 5, 4), table(WHOLE, 2, TWO, 9, 3))


@pytest.mark.parametrize(
    ("ranks", "payload_bytes", "kernel"),
    [
        (2, 3_999_999, ONE),  # 5 us + 4 ps of m, 9 us + 3 ps of m
        (2, 4_000_001, TWO),
        (4, 530_000, ONE),  # 5 us + 12 ps of m, 9 us + 4.5 ps of m
        (4, 540_000, TWO),
        (8, 170_000, ONE),  # 5 us + 28 ps of m, 9 us + 5.25 ps of m
        (8, 180_000, TWO),
        (1, 1 << 30, ONE),
    ],
)
def test_the_least_time_of_the_nearest_rank_count(
    ranks: int, payload_bytes: int, kernel: FusedKernel
) -> None:
    tables = (*MEASURED, table(WHOLE, 4, "another library", 0, 0))
    assert fused_kernel(machine(*tables), WHOLE, payload_bytes, ranks, composed=False) is kernel


def test_two_shots_that_nobody_measured_write_what_shares_do_not() -> None:
    tables = machine(MEASURED[0], table(SHARED, 2, TWO, 9, 3))  # and 0.5 ps of m in memory
    assert fused_kernel(tables, WHOLE, 7_999_999, 2, composed=False) is ONE
    assert fused_kernel(tables, WHOLE, 8_000_001, 2, composed=False) is TWO


@pytest.mark.parametrize("kind", [WHOLE, SHARED])
def test_the_groups_own_collectives_where_they_take_less(kind: Fused) -> None:
    """Of 16 us, 1 us of a launch, and 4 ps of m in memory or, of shares, 1: 17 us + 4 m or + m."""
    parts = (Kind.ALL_REDUCE, 16), (Kind.REDUCE_SCATTER, 8), (Kind.ALL_GATHER, 8)
    own = [table(part, 4, "NCCL 2", us, 0) for part, us in parts]
    kernels = [table(one, 4, TWO, 1, 6 if one is WHOLE else 3) for one in (WHOLE, SHARED)]
    measured = machine(*own, *kernels)
    for size, kernel in ((7_999_999, TWO), (8_000_001, COMPOSED)):
        assert fused_kernel(measured, kind, size, 4, composed=True) is kernel
        assert fused_kernel(measured, kind, size, 4, composed=False) is TWO


def test_eager_times_do_not_choose() -> None:
    eager = replace(table(WHOLE, 2, TWO, 0, 0), launches=(Launch.EAGER,))
    assert fused_kernel(machine(eager, *MEASURED), WHOLE, 1, 2, composed=False) is ONE


def test_a_machine_without_measurements_is_served_like_the_nearest() -> None:
    h200, h100 = load_machine("h200x8"), load_machine("h100x8")
    for other in (None, h100, machine()):
        for exponent in range(9, 28):
            size, kinds = 1 << exponent, (WHOLE, SHARED)
            for kind in kinds:
                chosen = fused_kernel(other, kind, size, 8, composed=False)
                assert chosen is fused_kernel(h200, kind, size, 8, composed=False)


def test_on_two_h200_no_kernel_is_slower_than_the_choice() -> None:
    """Measured to 128 MiB: one-shot, at every size; 4 MiB read was once the limit."""
    h200 = load_machine("h200x8")
    for exponent in range(13, 28):
        assert fused_kernel(h200, WHOLE, 1 << exponent, 2, composed=True) is ONE
        assert fused_kernel(h200, SHARED, 1 << exponent, 2, composed=True) is TWO
