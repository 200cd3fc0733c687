import json

import pytest
import torch

from compiler.runtime.kernels import launch
from compiler.runtime.kernels.launch import Peers, choose, flat, payload_refusal

SLOT_BYTES = 2**20


def peers(world_size: int, multiprocessors: int) -> Peers:
    table = torch.zeros(world_size, dtype=torch.int64)
    state = torch.zeros(513, dtype=torch.int64)
    return Peers(state, table, table, 0, SLOT_BYTES, multiprocessors, launch.MAX_BLOCKS, 0)


@pytest.mark.parametrize(
    ("rows", "hidden", "dtype", "why"),
    [
        (1, 64, torch.float64, "torch.float64 is not one of"),
        (1, 16_385, torch.bfloat16, "hidden 16385 is over 16384"),
        (257, 2048, torch.bfloat16, "1052672 bytes do not fit a slot of 1048576 bytes"),
        (256, 2048, torch.bfloat16, None),
        (0, 2048, torch.float16, None),
    ],
)
def test_payload_refusal(rows: int, hidden: int, dtype: torch.dtype, why: str | None) -> None:
    found = payload_refusal(rows, hidden, dtype, SLOT_BYTES)
    assert found == why or (why is not None and found is not None and found.startswith(why))


def test_payload_of_more_elements_than_an_index_holds() -> None:
    why = payload_refusal(2**17, 2**14, torch.bfloat16, 2**40)
    assert why == "2147483648 elements are not under 2**31"


KERNELS = ("one_shot", "two_shot", "one_shot_norm", "two_shot_norm", "two_shot_whole_norm")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("multiprocessors", [1, 16, 132])
def test_all_blocks_fit_the_multiprocessors(kernel: str, multiprocessors: int) -> None:
    for world_size in (1, 2, 3, 8, 16):
        for row_bytes in (16, 66, 8192, 65_536):
            for rows in (1, 7, 64, 4096, 32_768):
                found = choose(kernel, rows, row_bytes, peers(world_size, multiprocessors))
                assert 1 <= found.blocks <= min(rows, launch.MAX_BLOCKS)
                resident_warps = multiprocessors * launch.RESIDENT_WARPS
                assert found.blocks * found.warps <= resident_warps


def test_the_table_holds_what_was_measured() -> None:
    table = json.loads(launch.LAUNCHES.read_text())
    assert table["device"]
    for kernel, _, row_bytes, _, warps, blocks, *_ in table["launches"]:
        assert kernel in KERNELS
        assert warps * blocks <= launch.RESIDENT_WARPS
        assert row_bytes >= 16 * 32 * warps, "a warp without work"


def test_what_was_measured_is_what_is_launched() -> None:
    table = json.loads(launch.LAUNCHES.read_text())
    for kernel, world_size, row_bytes, rows, warps, blocks, _ in table["launches"]:
        multiprocessors = 132 // world_size
        found = choose(kernel, rows, row_bytes, peers(world_size, multiprocessors))
        assert found == (min(rows, multiprocessors * blocks, launch.MAX_BLOCKS), warps)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 4096), (6, 2048)), ((2, 5, 2880), (225, 128)), ((7, 33), (7, 33)), ((1, 1), (1, 1))],
)
def test_flat_covers_all_elements(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert flat(torch.empty(shape)) == expected
