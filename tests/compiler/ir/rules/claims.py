"""Everything a meaning claims of one call, held against the kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from compiler.ir.rules import Meaning
from tests.compiler.ir.rules import laws
from tests.compiler.ir.rules.laws import GENERATOR, Sample


def terms(call: Sample, found: Meaning) -> Iterator[str]:
    """The sum of terms is the op, as far as the maps are known."""
    if found.terms is not None and not laws.follows_terms(call, found):
        yield "is not the sum of its terms"
    if not laws.has_parts(call, found):
        yield "has not the parts it names"


def partial_sums(call: Sample, found: Meaning) -> Iterator[str]:
    """What ``keeps_partial`` accepts adds up."""
    for partial in laws.placements(len(laws.operands(call))):
        kept = laws.keeps_partial(found, partial)
        if kept and not laws.adds_up(call, partial):
            yield f"accepts partial sums {partial}"


def refused_sums(call: Sample, found: Meaning) -> Iterator[str]:
    """What ``keeps_partial`` refuses does not add up."""
    for partial in laws.placements(len(laws.operands(call))):
        kept = laws.keeps_partial(found, partial)
        if not kept and laws.adds_up(call, partial):
            yield f"refuses partial sums {partial} for no reason"


def factors(call: Sample, found: Meaning) -> Iterator[str]:
    """Cutting a factor cuts the results, or yields partial sums of them."""
    if found.dims is None:
        return
    if len(found.dims.operands) != len(laws.operands(call)):
        yield "has not as many operands"
        return
    known = laws.labels(found)
    if unknown := {x for held in found.dims.results for x in held if x is not None} - set(known):
        yield f"results have factors {unknown} that no operand has"
        return
    for label in known:
        for count in laws.counts_of(call, found, label):
            if not laws.factors(call, found, label, count):
                yield f"cannot be cut along {label!r} in {count}"


def whole_dims(call: Sample, found: Meaning) -> Iterator[str]:
    """A dimension without a factor cannot be cut alone."""
    for operand, dim in laws.whole_dims(call, found):
        if laws.works_in_blocks(call, found, operand, dim):
            yield f"wants dimension {dim} of operand {operand} whole for no reason"


def accepted(call: Sample, found: Meaning) -> list[str]:
    """Claims that the kernel contradicts."""
    return [x for law in (terms, partial_sums, factors) for x in law(call, found)]


def refused(call: Sample, found: Meaning) -> list[str]:
    """Refusals that the kernel gives no reason for."""
    return [x for law in (refused_sums, whole_dims) for x in law(call, found)]


def resized(call: Sample, found: Meaning, counts: dict[int | str, int]) -> Sample:
    """The call with every factor cut into its smallest blocks, and ``counts[factor]`` of them.

    Blocks are drawn with replacement, so that indices stay in range and masks stay masks.
    """
    assert found.dims is not None
    tensors, results = laws.operands(call), laws.run(call, laws.operands(call))
    sides = ((tensors, found.dims.operands), (results, found.dims.results))
    sizes: dict[int | str, list[int]] = {}
    for side, held in sides:
        for x, names in zip(side, held, strict=True):
            for size, name in zip(x.shape, names, strict=True):
                if name is not None:
                    sizes.setdefault(name, []).append(size)
    blocks = {name: math.gcd(*found) for name, found in sizes.items()}
    drawn = {name: torch.randint(max(blocks[name], 1), (counts[name],), generator=GENERATOR)
             for name in blocks}  # fmt: skip
    larger = []
    for x, names in zip(tensors, found.dims.operands, strict=True):
        for d, name in enumerate(names):
            if name is not None:
                rows = x.shape[d] // blocks[name]
                x = x.index_select(d, (drawn[name][:, None] * rows + torch.arange(rows)).flatten())
        larger.append(x)
    first = zip(results[0].shape, found.dims.results[0], strict=True)
    shape = [n if name is None else n // blocks[name] * counts[name] for n, name in first]
    args, kwargs = laws.called(call, larger, shape)
    return Sample(call.target, args, kwargs)
