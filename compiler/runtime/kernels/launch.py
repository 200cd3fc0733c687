"""Choosing grids for the kernels and starting them."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compiler.errors import KernelError
from compiler.ir.fused_ops import why_unsupported

MAX_BLOCKS = 512
"""Blocks for which there are signals."""
FLAT_WIDTH = 2048
"""Elements that one block takes at a time where rows mean nothing."""
RESIDENT_WARPS, REGISTERS = 16, 128
"""Warps that fit a multiprocessor of 65,536 registers if no thread has more than REGISTERS."""
ROW_BYTES_PER_WARP = 2048
"""Bytes of a row for each warp that adds and normalizes it: four times 16 for every thread."""
ALIGNMENT = 16
"""Bytes that a thread reads at a time."""
LAUNCHES = Path(__file__).with_name("launches.json")
"""Written by ``python -m scripts.bench_kernels --only tune``."""


class Peers(NamedTuple):
    """What a kernel needs of a workspace.

    Attributes:
        state: int64 [MAX_BLOCKS + 1] on the device: progress of each block, then a fault.
        buffer_pointers: int64 [n] on the device: where each rank's slots begin.
        signal_pointers: int64 [n] on the device: where each rank's signals begin.
        rank: this rank.
        slot_bytes: of one staging slot.
        multiprocessors: those of the device that this rank's blocks may fill.
        max_blocks: the largest grid, at most MAX_BLOCKS.
        spin_limit: looks for a peer before a fault is recorded; 0: wait forever.
    """

    state: torch.Tensor
    buffer_pointers: torch.Tensor
    signal_pointers: torch.Tensor
    rank: int
    slot_bytes: int
    multiprocessors: int
    max_blocks: int
    spin_limit: int

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self.buffer_pointers.numel()


Constants = tuple[int, ...]


class Launch(NamedTuple):
    """A grid: blocks, and warps in each."""

    blocks: int
    warps: int


class Norm(NamedTuple):
    """The operands of add + RMSNorm, and where its sum goes.

    Attributes:
        residual: what is added to the sum over ranks.
        residual_out: receives the result of the addition; may be ``residual``.
        weight: [hidden].
        eps: under the root.
        offset: added to the weight.
    """

    residual: torch.Tensor
    residual_out: torch.Tensor
    weight: torch.Tensor
    eps: float
    offset: float


def payload_refusal(rows: int, hidden: int, dtype: torch.dtype, slot_bytes: int) -> str | None:
    """Why no kernel serves [rows, hidden], or None."""
    if why := why_unsupported(hidden, dtype):
        return why
    if rows * hidden * dtype.itemsize > slot_bytes:
        return f"{rows * hidden * dtype.itemsize} bytes do not fit a slot of {slot_bytes} bytes"
    if rows * hidden >= 2**31:
        return f"{rows * hidden} elements are not under 2**31"
    return None


def refuse_unless_served(x: torch.Tensor, rows: int, peers: Peers, *, staged: bool) -> None:
    """Raise the refusal of ``payload_refusal``; symmetric operands need no slot."""
    slot_bytes = peers.slot_bytes if staged else 2**63
    why = payload_refusal(rows, x.shape[-1], x.dtype, slot_bytes)
    if why is not None:
        raise KernelError(
            "the kernel does not serve this payload",
            where=f"{x.dtype} {list(x.shape)}, {rows} rows, {peers.world_size} ranks",
            found=why,
            remedy="ask Workspace.refusal first, or make a larger workspace",
        )


def choose(kernel: str, rows: int, row_bytes: int, peers: Peers) -> Launch:
    """The grid for ``rows`` rows on each rank, from the table of measurements.

    A function of sizes alone, the same on every rank: block b of one waits for block b of the
    others. All blocks fit on ``peers.multiprocessors`` at once. Sizes between those measured take
    the nearest, in powers of two.

    Args:
        kernel: "one_shot", "two_shot", "one_shot_norm", "two_shot_norm" or "two_shot_whole_norm".
        rows: that the grid divides among its blocks.
        row_bytes: that a block takes at a time.
        peers: of the rank.
    """
    warps, blocks_per_multiprocessor = _nearest(kernel, peers.world_size, row_bytes, rows)
    resident = peers.multiprocessors * min(blocks_per_multiprocessor, RESIDENT_WARPS // warps)
    return Launch(min(rows, resident, peers.max_blocks), warps)


@functools.cache
def _nearest(kernel: str, world_size: int, row_bytes: int, rows: int) -> tuple[int, int]:
    """Warps, and blocks on a multiprocessor."""

    def distance(row: list[Any]) -> tuple[float, ...]:
        sizes = zip(row[1:4], (world_size, row_bytes, rows), strict=True)
        world, width, count = (abs(math.log2(measured / wanted)) for measured, wanted in sizes)
        return width, world, count

    measured = [row for row in _measured() if row[0] == kernel]
    nearest = min(
        measured or [row for row in _measured() if row[0] == "two_shot_norm"], key=distance
    )
    return nearest[4], nearest[5]


@functools.cache
def _measured() -> list[list[Any]]:
    """Rows of kernel, world size, row bytes, rows, the best warps and blocks, microseconds."""
    rows: list[list[Any]] = json.loads(LAUNCHES.read_text())["launches"]
    return rows


def flat(x: torch.Tensor) -> tuple[int, int]:
    """Rows and width that cover all elements of ``x``: an all_reduce knows no rows."""
    width = math.gcd(x.numel(), FLAT_WIDTH)
    if width < 64:
        width = x.shape[-1]
    return x.numel() // width, width


def one_shot(
    x: torch.Tensor, y: torch.Tensor, norm: Norm | None, peers: Peers, launch: Launch | None = None
) -> None:
    """Starts ``device.one_shot`` on the current stream."""
    rows, width = flat(x) if norm is None else (x.numel() // x.shape[-1], x.shape[-1])
    if rows == 0:
        return
    kernel = "one_shot_norm" if norm else "one_shot"
    blocks, warps = launch or choose(kernel, rows, width * x.element_size(), peers)
    constants = (*_constants(width, peers.world_size), norm is not None, peers.spin_limit > 0)
    _start("one_shot", min(blocks, rows), warps, x, y, norm, peers, rows, constants)


def two_shot(
    x: torch.Tensor,
    y: torch.Tensor,
    norm: Norm | None,
    peers: Peers,
    launch: Launch | None = None,
    *,
    staged: bool,
    gather: bool = True,
    whole: bool = False,
) -> None:
    """Starts ``device.two_shot`` on the current stream."""
    by_rows = norm is not None or not gather
    rows, width = (x.numel() // x.shape[-1], x.shape[-1]) if by_rows else flat(x)
    if rows == 0:
        return
    if staged and x.data_ptr() % ALIGNMENT:
        x = x.clone()
    shard_rows = -(-rows // peers.world_size)
    kernel = ("two_shot_whole_norm" if whole else "two_shot_norm") if norm else "two_shot"
    blocks, warps = launch or choose(kernel, shard_rows, width * x.element_size(), peers)
    form = norm is not None, whole, gather, staged, peers.spin_limit > 0
    constants = (*_constants(width, peers.world_size), *form)
    _start("two_shot", blocks, warps, x, y, norm, peers, rows, constants)


def _start(
    name: str,
    blocks: int,
    warps: int,
    x: torch.Tensor,
    y: torch.Tensor,
    norm: Norm | None,
    peers: Peers,
    rows: int,
    constants: Constants,
) -> None:
    """Starts a reduction, with or without a norm behind it."""
    residual, residual_out, weight, eps, offset = norm or Norm(x, x, x, 0.0, 0.0)
    tensors = (x, residual, residual_out, weight, y, *peers[:3])
    numbers = (peers.rank, rows, eps, offset, peers.slot_bytes, peers.spin_limit)
    run(name, blocks, warps, tensors, numbers, constants)


def all_gather(
    x: torch.Tensor, y: torch.Tensor, peers: Peers, launch: Launch | None = None, *, staged: bool
) -> None:
    """Starts ``device.all_gather`` on the current stream."""
    rows, width = y.shape
    if rows == 0:
        return
    blocks, warps = launch or choose("two_shot", x.shape[0], width * x.element_size(), peers)
    constants = (*_constants(width, peers.world_size), staged, peers.spin_limit > 0)
    numbers = (peers.rank, rows, peers.slot_bytes, peers.spin_limit)
    run("all_gather", blocks, warps, (x, y, *peers[:3]), numbers, constants)


def add_norm(total: torch.Tensor, y: torch.Tensor, norm: Norm) -> None:
    """Starts ``device.add_norm`` on the current stream."""
    width = total.shape[-1]
    rows = total.numel() // width
    if rows:
        warps = min(max(width * total.element_size() // ROW_BYTES_PER_WARP, 1), RESIDENT_WARPS)
        warps = 1 << (warps.bit_length() - 1)
        tensors = (total, norm.residual, norm.residual_out, norm.weight, y)
        run("add_norm", rows, warps, tensors, (norm.eps, norm.offset), _constants(width, 1)[:2])


_compiled: dict[tuple[object, ...], Any] = {}


def run(
    name: str,
    blocks: int,
    warps: int,
    tensors: tuple[torch.Tensor, ...],
    numbers: tuple[int | float, ...],
    constants: Constants,
) -> None:
    """Starts the kernel ``device.<name>`` on the current stream.

    What Triton compiled is kept by all that it compiles for, as Triton takes longer to look it up
    than the device to run it: constants, types of tensors, whether integers fit 32 bits. Tensors
    that are not aligned are left to Triton.
    """
    narrow = tuple(number < 2**31 for number in numbers)
    dtypes = tuple(tensor.dtype for tensor in tensors)
    key = name, warps, tensors[0].get_device(), dtypes, narrow, constants
    kernel = _compiled.get(key)
    addresses = [tensor.data_ptr() for tensor in tensors]
    aligned = not any(address % ALIGNMENT for address in addresses)
    if kernel is not None and aligned:
        kernel[blocks, 1, 1](*addresses, *numbers, *constants)
        return
    from compiler.runtime.kernels import device

    options = {"num_warps": warps, "maxnreg": REGISTERS}
    kernel = getattr(device, name)[(blocks,)](*tensors, *numbers, *constants, **options)
    if aligned:
        _compiled[key] = kernel


@functools.cache
def _constants(width: int, world_size: int) -> Constants:
    """HIDDEN, BLOCK, WORLD, WORLD_POW2, MAX_BLOCKS: the first constants of kernels."""
    block, world = 1 << (width - 1).bit_length(), 1 << (world_size - 1).bit_length()
    return width, block, world_size, world, MAX_BLOCKS
