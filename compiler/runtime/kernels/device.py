"""The Triton kernels: what one rank runs on its device. Imported only where Triton is present.

Every rank of a group launches the same kernel with the same number of blocks, over the same rows.
Block b of a rank talks to block b of the other ranks only.

Memory, by rank p, all of it symmetric (the same layout on every rank):

    signals[p]   int64 [MAX_BLOCKS, n]   signals[b, q]: how far block b of rank q has come
    buffers[p]   two staging slots of slot_bytes each, then tensors that callers placed there

and local to the rank: ``state``, int64 [MAX_BLOCKS + 1]: for each block its progress; then a fault.

Calls and barriers are counted as ``device_peers`` says.

Why no data is overwritten while somebody still reads it:

* Staged calls use slot c mod 2. Rank r enters call c + 2 when its call c + 1 is over. In call c + 1
  it met every peer, each of which had then finished call c: kernels of one stream run in order. So
  nobody still reads what call c left in the slot, and calls need no barrier at their end.
* Unstaged calls read ``x``, or write ``y``, in symmetric tensors, of which there is one. A peer
  writes into ``y`` only after the first barrier, when its owner has launched the call, hence run
  all that read the former ``y``; and the last barrier tells the owner that ``y`` is complete, and
  that ``x`` has been read.
* A staged two-shot call writes its rows of the result where its own slot has room for its own rows
  of ``x``: these were never there, as only their owner reads them, in ``x`` itself.
"""

import triton
import triton.language as tl

from compiler.runtime.kernels.device_peers import addresses, advance, at, barrier, entries, with_own

# What integers may change from rank to rank or call to call without another compilation: a kernel
# cannot be loaded while a kernel of another rank spins on the same device.
RUNTIME = ["rank", "rows", "slot_bytes", "spin_limit"]


@triton.jit
def sum_over_ranks(
    buffers, offset_bytes, like, row, cols, mask, HIDDEN: tl.constexpr, WORLD: tl.constexpr
):
    """One row, added up in fp32 in the order of ranks, which is the same on every rank."""
    total = tl.zeros(cols.shape, tl.float32)
    for peer in tl.static_range(WORLD):
        source = at(buffers[peer], offset_bytes, like) + row * HIDDEN
        total += tl.load(source + cols, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def copy_in(
    x, staged, rank, rows, shard_rows, cols, mask, HIDDEN: tl.constexpr, WORLD: tl.constexpr
):
    """This block's rows of the others' shards, to where this block of the owners reads them."""
    for local in range(tl.program_id(0), shard_rows, tl.num_programs(0)):
        for owner in tl.static_range(WORLD):
            row = owner * shard_rows + local
            inside = mask & (row < rows) & (owner != rank)
            values = tl.load(x + row * HIDDEN + cols, mask=inside)
            tl.store(staged + row * HIDDEN + cols, values, mask=inside)


@triton.jit
def copy_out(
    buffers,
    offset_bytes,
    y,
    rows,
    shard_rows,
    shard_stride,
    cols,
    mask,
    HIDDEN: tl.constexpr,
    WORLD: tl.constexpr,
):
    """This block's rows of every shard, from the slots of their owners, shard_stride rows apart."""
    for local in range(tl.program_id(0), shard_rows, tl.num_programs(0)):
        for owner in tl.static_range(WORLD):
            row = owner * shard_rows + local
            inside = mask & (row < rows)
            source = at(buffers[owner], offset_bytes, y) + (owner * shard_stride + local) * HIDDEN
            tl.store(y + row * HIDDEN + cols, tl.load(source + cols, mask=inside), mask=inside)


@triton.jit
def normalize(total, scale, eps, HIDDEN: tl.constexpr):
    """Total * rsqrt(mean(total^2) + eps) * scale, all fp32."""
    return total * tl.rsqrt(tl.sum(total * total, 0) / HIDDEN + eps) * scale


@triton.jit
def keep(total, residual_out, scale, mask, eps, HIDDEN: tl.constexpr):
    """Writes one row of the sum with the residual, and returns its norm."""
    tl.store(residual_out, total, mask=mask)
    return normalize(total, scale, eps, HIDDEN)


@triton.jit
def norm_out(
    buffers,
    offset_bytes,
    residual_out,
    scale,
    y,
    rows,
    shard_rows,
    cols,
    mask,
    eps,
    HIDDEN: tl.constexpr,
    WORLD: tl.constexpr,
):
    """As ``copy_out``, into ``residual_out``; and the norms of these rows into ``y``."""
    for local in range(tl.program_id(0), shard_rows, tl.num_programs(0)):
        for owner in tl.static_range(WORLD):
            row = owner * shard_rows + local
            inside = mask & (row < rows)
            source = at(buffers[owner], offset_bytes, y) + row * HIDDEN
            total = tl.load(source + cols, mask=inside, other=0.0).to(tl.float32)
            kept = residual_out + row * HIDDEN + cols
            total = keep(total, kept, scale, inside, eps, HIDDEN)
            tl.store(y + row * HIDDEN + cols, total, mask=inside)


@triton.jit
def push(
    buffers, offset_bytes, like, values, row, cols, mask, HIDDEN: tl.constexpr, WORLD: tl.constexpr
):
    """One row, to every rank."""
    for peer in tl.static_range(WORLD):
        target = at(buffers[peer], offset_bytes, like) + row * HIDDEN
        tl.store(target + cols, values, mask=mask)


@triton.jit
def finish(
    total,
    held,
    residual_out,
    scale,
    y,
    row,
    cols,
    mask,
    eps,
    offset,
    HIDDEN: tl.constexpr,
    NORM: tl.constexpr,
):
    """Writes one row: the sum, or with NORM the sum and the residual ``held``, and its norm."""
    if NORM:
        total += held.to(tl.float32)
        kept = residual_out + row * HIDDEN + cols
        total = keep(total, kept, scale.to(tl.float32) + offset, mask, eps, HIDDEN)
    tl.store(y + row * HIDDEN + cols, total, mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def one_shot(
    x,
    residual,
    residual_out,
    weight,
    y,
    state,
    buffer_pointers,
    signal_pointers,
    rank,
    rows,
    eps,
    offset,
    slot_bytes,
    spin_limit,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    WORLD: tl.constexpr,
    WORLD_POW2: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    NORM: tl.constexpr,
    TIMED: tl.constexpr,
):
    """Every rank reads all rows of all ranks. There are no more blocks than rows.

    Args:
        x: [rows, HIDDEN].
        residual: [rows, HIDDEN]; with NORM only.
        residual_out: [rows, HIDDEN], may be ``residual``; with NORM only.
        weight: [HIDDEN]; with NORM only.
        y: [rows, HIDDEN]: the norm, or without NORM the sum.
    """
    block, blocks = tl.program_id(0), tl.num_programs(0)
    progress = tl.load(state + block)
    theirs, signals = entries(signal_pointers, rank, WORLD, WORLD_POW2)
    fault = state + MAX_BLOCKS
    buffers = addresses(buffer_pointers, WORLD)
    own = tl.load(buffer_pointers + rank)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    slot = ((progress // 2) % 2) * slot_bytes
    staged = at(own, slot, x)
    for row in range(block, rows, blocks):
        values = tl.load(x + row * HIDDEN + cols, mask=mask)
        tl.store(staged + row * HIDDEN + cols, values, mask=mask)
    # What only this rank holds is read before the others are waited for; so is the first row, which
    # is not in the loop: loads in there would stand behind all that is computed once.
    scale = tl.load(weight + cols, mask=mask, other=0.0) if NORM else mask
    held = tl.load(residual + block * HIDDEN + cols, mask=mask, other=0.0) if NORM else mask
    barrier(theirs, signals, fault, progress + 1, spin_limit, WORLD, WORLD_POW2, TIMED)
    total = sum_over_ranks(buffers, slot, x, block, cols, mask, HIDDEN, WORLD)
    finish(total, held, residual_out, scale, y, block, cols, mask, eps, offset, HIDDEN, NORM)
    for row in range(block + blocks, rows, blocks):
        held = tl.load(residual + row * HIDDEN + cols, mask=mask, other=0.0) if NORM else mask
        total = sum_over_ranks(buffers, slot, x, row, cols, mask, HIDDEN, WORLD)
        finish(total, held, residual_out, scale, y, row, cols, mask, eps, offset, HIDDEN, NORM)
    advance(state, progress, MAX_BLOCKS)


@triton.jit(do_not_specialize=RUNTIME)
def two_shot(
    x,
    residual,
    residual_out,
    weight,
    y,
    state,
    buffer_pointers,
    signal_pointers,
    rank,
    rows,
    eps,
    offset,
    slot_bytes,
    spin_limit,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    WORLD: tl.constexpr,
    WORLD_POW2: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    NORM: tl.constexpr,
    WHOLE: tl.constexpr,
    GATHER: tl.constexpr,
    STAGED: tl.constexpr,
    TIMED: tl.constexpr,
):
    """Rank r reads the rows it owns, r * shard_rows and on, of all ranks; then all get them.

    With WHOLE (and NORM, GATHER, STAGED) they get the sums with the residual, whose norms every
    rank takes of all rows as they arrive; else the norms, which their owners take.

    Args:
        x: [rows, HIDDEN]; symmetric unless STAGED; at a multiple of 16 bytes.
        residual: [shard_rows, HIDDEN], the owned rows; with WHOLE all rows, of the dtype of ``x``;
            with NORM only.
        residual_out: like ``residual``, may be the same. Rows past the end become zero.
        weight: [HIDDEN]; with NORM only.
        y: with GATHER [rows, HIDDEN], symmetric unless STAGED; else [shard_rows, HIDDEN].
    """
    block, blocks = tl.program_id(0), tl.num_programs(0)
    progress = tl.load(state + block)
    theirs, signals = entries(signal_pointers, rank, WORLD, WORLD_POW2)
    fault = state + MAX_BLOCKS
    buffers = addresses(buffer_pointers, WORLD)
    own = tl.load(buffer_pointers + rank)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    shard_rows = tl.cdiv(rows, WORLD)
    if STAGED:
        x_bytes = ((progress // 2) % 2) * slot_bytes
        staged = at(own, x_bytes, x)
        copy_in(x, staged, rank, rows, shard_rows, cols, mask, HIDDEN, WORLD)
    else:
        x_bytes = x.to(tl.int64) - own
    if NORM:
        scale = tl.load(weight + cols, mask=mask, other=0.0).to(tl.float32) + offset
    barrier(theirs, signals, fault, progress + 1, spin_limit, WORLD, WORLD_POW2, TIMED)
    sources = with_own(buffers, x.to(tl.int64) - x_bytes, rank, WORLD)
    for local in range(block, shard_rows, blocks):
        row = rank * shard_rows + local
        inside = mask & (row < rows)
        total = sum_over_ranks(sources, x_bytes, x, row, cols, inside, HIDDEN, WORLD)
        if NORM:
            held = (row if WHOLE else local) * HIDDEN + cols
            total += tl.load(residual + held, mask=inside, other=0.0).to(tl.float32)
            total = total if WHOLE else keep(total, residual_out + held, scale, mask, eps, HIDDEN)
        if not GATHER:
            tl.store(y + local * HIDDEN + cols, total, mask=mask)
        elif STAGED:
            tl.store(staged + row * HIDDEN + cols, total, mask=inside)
        else:
            push(buffers, y.to(tl.int64) - own, y, total, row, cols, inside, HIDDEN, WORLD)
    if GATHER or not STAGED:
        barrier(theirs, signals, fault, progress + 2, spin_limit, WORLD, WORLD_POW2, TIMED)
    if WHOLE:
        norm_out(
            buffers,
            x_bytes,
            residual_out,
            scale,
            y,
            rows,
            shard_rows,
            cols,
            mask,
            eps,
            HIDDEN,
            WORLD,
        )
    elif GATHER and STAGED:
        copy_out(buffers, x_bytes, y, rows, shard_rows, shard_rows, cols, mask, HIDDEN, WORLD)
    advance(state, progress, MAX_BLOCKS)


@triton.jit(do_not_specialize=RUNTIME)
def all_gather(
    x,
    y,
    state,
    buffer_pointers,
    signal_pointers,
    rank,
    rows,
    slot_bytes,
    spin_limit,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    WORLD: tl.constexpr,
    WORLD_POW2: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    STAGED: tl.constexpr,
    TIMED: tl.constexpr,
):
    """Rank r gives its rows to all: through its slot (STAGED), or straight into symmetric ``y``.

    Args:
        x: [shard_rows, HIDDEN], the owned rows.
        y: [rows, HIDDEN]; symmetric unless STAGED.
    """
    block, blocks = tl.program_id(0), tl.num_programs(0)
    progress = tl.load(state + block)
    theirs, signals = entries(signal_pointers, rank, WORLD, WORLD_POW2)
    fault = state + MAX_BLOCKS
    buffers = addresses(buffer_pointers, WORLD)
    own = tl.load(buffer_pointers + rank)
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    shard_rows = tl.cdiv(rows, WORLD)
    slot = ((progress // 2) % 2) * slot_bytes
    if STAGED:
        staged = at(own, slot, x)
        for local in range(block, shard_rows, blocks):
            inside = mask & (rank * shard_rows + local < rows)
            values = tl.load(x + local * HIDDEN + cols, mask=inside)
            tl.store(staged + local * HIDDEN + cols, values, mask=inside)
    barrier(theirs, signals, fault, progress + 1, spin_limit, WORLD, WORLD_POW2, TIMED)
    if STAGED:
        copy_out(buffers, slot, y, rows, shard_rows, 0, cols, mask, HIDDEN, WORLD)
    else:
        for local in range(block, shard_rows, blocks):
            row = rank * shard_rows + local
            inside = mask & (row < rows)
            values = tl.load(x + local * HIDDEN + cols, mask=inside)
            push(buffers, y.to(tl.int64) - own, y, values, row, cols, inside, HIDDEN, WORLD)
        barrier(theirs, signals, fault, progress + 2, spin_limit, WORLD, WORLD_POW2, TIMED)
    advance(state, progress, MAX_BLOCKS)


@triton.jit
def add_norm(
    total,
    residual,
    residual_out,
    weight,
    y,
    eps,
    offset,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Addition and norm of one rank in one pass, a block a row; operands as of ``one_shot``."""
    cols = tl.arange(0, BLOCK)
    mask = cols < HIDDEN
    row = tl.program_id(0).to(tl.int64)  # there may be more elements than int32 counts
    values = tl.load(total + row * HIDDEN + cols, mask=mask, other=0.0).to(tl.float32)
    held = tl.load(residual + row * HIDDEN + cols, mask=mask, other=0.0)
    scale = tl.load(weight + cols, mask=mask, other=0.0)
    finish(values, held, residual_out, scale, y, row, cols, mask, eps, offset, HIDDEN, True)
