"""How ranks reach and await each other in kernels. Imported only where Triton is present.

Protocol. Progress advances by 2 with every call, so it numbers the calls: call c = progress / 2.
A barrier writes its number (progress + 1 or + 2) into ``signals[b, rank]`` of every peer, after
all that the block wrote before, and waits until every entry of its own row has reached that number.
Numbers only grow, so nothing is ever reset, and a peer that is already further on is not a mistake.
The counters live on the device: a replayed graph goes on counting where the last call stopped. Each
block keeps its own, which nobody else reads or writes during a call, so counting takes no atomics;
block 0 advances those of the blocks that a call did not launch, and all agree between calls.
"""

import triton
import triton.language as tl


@triton.jit
def load_acquire(pointers):
    """int64 values at ``pointers``; later reads see what their writers wrote before."""
    return tl.inline_asm_elementwise(
        "ld.acquire.sys.global.u64 $0, [$1];",
        "=l,l",
        [pointers.to(tl.int64)],
        dtype=tl.int64,
        is_pure=False,
        pack=1,
    )


@triton.jit
def entries(signal_pointers, rank, WORLD: tl.constexpr, WORLD_POW2: tl.constexpr):
    """Pointers to this block's entry in every rank's signals, and to its own row."""
    peers = tl.minimum(tl.arange(0, WORLD_POW2), WORLD - 1)
    row = tl.program_id(0) * WORLD
    theirs = tl.load(signal_pointers + peers).to(tl.pointer_type(tl.int64)) + row + rank
    own = tl.load(signal_pointers + rank).to(tl.pointer_type(tl.int64)) + row + peers
    return theirs, own


@triton.jit
def barrier(
    theirs,
    own,
    fault,
    number,
    spin_limit,
    WORLD: tl.constexpr,
    WORLD_POW2: tl.constexpr,
    TIMED: tl.constexpr,
):
    """Meets this block of every other rank.

    With TIMED, a peer that is not there after ``spin_limit`` looks is written to ``fault`` as
    1 + its rank, and the block goes on: what it computes from here on is meaningless.
    """
    peers = tl.arange(0, WORLD_POW2)
    tl.debug_barrier()  # all threads have written; one of them will say so
    tl.atomic_xchg(theirs, number, mask=peers < WORLD, sem="release", scope="sys")
    seen = load_acquire(own)
    if TIMED:
        looks = 0
        while (tl.min(seen, 0) < number) & (looks < spin_limit):
            seen = load_acquire(own)
            looks += 1
        missing = tl.min(tl.where(seen < number, peers, WORLD), 0)
        if missing < WORLD:
            tl.store(fault, (missing + 1).to(tl.int64))
    else:
        while tl.min(seen, 0) < number:
            seen = load_acquire(own)
    tl.debug_barrier()  # what one thread has seen, all may read


@triton.jit
def advance(state, progress, MAX_BLOCKS: tl.constexpr):
    """Counts the call: for this block, and once for all that were not launched."""
    tl.store(state + tl.program_id(0), progress + 2)
    if tl.program_id(0) == 0:
        places = tl.arange(0, MAX_BLOCKS)
        tl.store(state + places, progress + 2, mask=places >= tl.num_programs(0))


@triton.jit
def addresses(buffer_pointers, WORLD: tl.constexpr):
    """The table as a tuple of scalars: read once, before the loops that store."""
    found = ()  # type: ignore[assignment, unused-ignore]
    for peer in tl.static_range(WORLD):
        found = found + (tl.load(buffer_pointers + peer),)  # type: ignore  # noqa: RUF005
    return found


@triton.jit
def with_own(buffers, address, rank, WORLD: tl.constexpr):
    """The tuple with ``address`` in the place of this rank's."""
    found = ()  # type: ignore[assignment, unused-ignore]
    for peer in tl.static_range(WORLD):
        found = found + (tl.where(peer == rank, address, buffers[peer]),)  # type: ignore  # noqa: RUF005
    return found


@triton.jit
def at(address, offset_bytes, like):
    """Pointer to elements like those of ``like``; both parts are multiples of 16 bytes."""
    pointer = (address + offset_bytes).to(tl.pointer_type(like.dtype.element_ty))
    return tl.multiple_of(pointer, 16)
