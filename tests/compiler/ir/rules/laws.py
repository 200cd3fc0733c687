"""The laws that a meaning states, executed on the kernel it speaks of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from compiler.ir.rules import BROADCAST, RANGE, RESHAPE, Meaning, Selection, Term, meaning

GENERATOR = torch.Generator().manual_seed(0)
RANKS = 2


@dataclass(frozen=True)
class Sample:
    """One call with real tensors.

    Attributes:
        target: the op.
        args: positional arguments.
        kwargs: named arguments.
        refuses: why the rule refuses partial sums that this call would keep.
        holds: why the rule wants a dimension whole that this call works on block by block.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    refuses: str = ""
    holds: str = ""

    def __str__(self) -> str:
        shapes = "_".join("x".join(map(str, t.shape)) or "0d" for t in operands(self))
        return f"{self.target}-{shapes}"


def sample(target: Any, *args: Any, refuses: str = "", holds: str = "", **kwargs: Any) -> Sample:
    """A sample; what the next one draws does not depend on those before it."""
    GENERATOR.manual_seed(0)
    return Sample(target, args, kwargs, refuses, holds)


def reals(*shape: int) -> torch.Tensor:
    """Quarters between -2 and 2, none of them zero: sums and products of few are exact."""
    drawn = torch.randint(-8, 9, shape, generator=GENERATOR, dtype=torch.float64) / 4
    return torch.where(drawn == 0, 0.75, drawn)


def rough(*shape: int) -> torch.Tensor:
    """Numbers that rounding changes."""
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def counts(*shape: int, below: int = 4, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=GENERATOR, dtype=dtype)


def masks(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=GENERATOR) < 0.5


def node(call: Sample) -> fx.Node:
    """The call as a node of a graph whose placeholders are its tensors."""
    graph = fx.Graph()

    def placeholder(x: torch.Tensor) -> fx.Node:
        found = graph.placeholder("x")
        found.meta["val"] = x
        return found

    found = graph.call_function(call.target, *_replaced((call.args, call.kwargs), placeholder))
    found.meta["val"] = call.target(*call.args, **call.kwargs)
    return found


def _replaced(tree: Any, convert: Any) -> Any:
    if isinstance(tree, list | tuple):
        return type(tree)(_replaced(x, convert) for x in tree)
    if isinstance(tree, dict):
        return {name: _replaced(x, convert) for name, x in tree.items()}
    return convert(tree) if isinstance(tree, torch.Tensor) else tree


def operands(call: Sample) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _replaced((call.args, call.kwargs), found.append)
    return found


def called(
    call: Sample, tensors: Sequence[torch.Tensor], shape: Sequence[int] | None = None
) -> tuple[Any, Any]:
    """Arguments with other tensors; ``shape`` replaces the result shape if that is an argument."""
    given = iter(tensors)
    args, kwargs = _replaced((call.args, call.kwargs), lambda _: next(given))
    for i, argument in enumerate(call.target._schema.arguments):
        if shape is not None and argument.name in ("size", "shape") and i < len(args):
            args = (*args[:i], list(shape), *args[i + 1 :])
        if shape is not None and argument.name == "sizes":  # of unflatten: part of the shape
            args = (*args[:i], list(shape[args[1] : args[1] + len(args[i])]), *args[i + 1 :])
        if shape is not None and argument.name == "length" and len(args) > 2:  # of narrow
            args = (*args[:i], shape[args[1]], *args[i + 1 :])
    return args, kwargs


def run(
    call: Sample, tensors: Sequence[torch.Tensor], shape: Sequence[int] | None = None
) -> tuple[torch.Tensor, ...]:
    """Results on other tensors, see ``called``."""
    args, kwargs = called(call, tensors, shape)
    found = call.target(*args, **kwargs)
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def close(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    """Whether results agree up to a few roundings of single precision."""
    try:
        torch.testing.assert_close(
            [_number(x) for x in found],
            [_number(x) for x in wanted],
            rtol=1e-5,
            atol=1e-6,
            equal_nan=True,
            check_stride=False,
        )
    except AssertionError:
        return False
    return True


def parts(x: torch.Tensor) -> list[torch.Tensor]:
    """Random tensors, one a rank, whose sum is ``x``; indices stay between zero and ``x``."""
    if x.dtype is torch.bool:
        kept = torch.rand(x.shape, generator=GENERATOR) < 0.5
        return [x & kept, x & ~kept]
    if not (x.dtype.is_floating_point or x.dtype.is_complex):
        share = torch.rand(x.shape, generator=GENERATOR, dtype=torch.float64)
        first = (x * share).round().to(x.dtype)
        return [first, x - first]
    if x.dtype.itemsize == 1:  # few differences of single bytes are single bytes
        kept = torch.rand(x.shape, generator=GENERATOR) < 0.5
        return [torch.where(k, _number(x), 0).to(x.dtype) for k in (kept, ~kept)]
    first = reals(*x.shape).to(x.dtype)
    return [first, x - first]


def combined(call: Sample, partial: Sequence[bool]) -> tuple[torch.Tensor, ...]:
    """Sum over ranks of the results, with the marked operands split into partial sums."""
    split = [parts(x) if p else [x] * RANKS for x, p in zip(operands(call), partial, strict=True)]
    ranks = [run(call, [x[r] for x in split]) for r in range(RANKS)]
    return tuple(sum(_number(x) for x in found) for found in zip(*ranks, strict=True))  # type: ignore[misc]


def _number(x: torch.Tensor) -> torch.Tensor:
    """A tensor that adds and compares: booleans count, single bytes widen."""
    if x.dtype is torch.bool:
        return x.to(torch.int64)
    return x.float() if x.dtype.is_floating_point and x.dtype.itemsize == 1 else x


def keeps_partial(found: Meaning, partial: Sequence[bool]) -> bool:
    """Whether partial sums in go to partial sums out, all other operands replicated."""
    return (
        bool(found.terms)
        and not found.rank_dependent
        and all(
            [partial[i] for i in term.operands].count(True) == 1
            and not any(partial[i] for i in term.fixed)
            for term in found.terms or ()
        )
    )


def adds_up(call: Sample, partial: Sequence[bool]) -> bool:
    """Whether the kernel maps these partial sums to partial sums, on several random splits."""
    wanted = [_number(x) for x in run(call, operands(call))]
    try:
        return all(close(combined(call, partial), wanted) for _ in range(3))
    except (RuntimeError, IndexError):
        return False


REDUCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "max": lambda x, y: torch.maximum(_number(x), _number(y)),
    "min": lambda x, y: torch.minimum(_number(x), _number(y)),
    "product": lambda x, y: _number(x) * _number(y),
}


def distributes(call: Sample, found: Selection, kind: str) -> bool:
    """Whether the kernel on reduced operands gives the reduced results, for some random ranks."""
    read = {i for term in found.terms for i in term.operands}

    def drawn(x: torch.Tensor) -> torch.Tensor:
        if x.dtype is torch.bool:
            return torch.rand(x.shape, generator=GENERATOR) < 0.5
        return (4 * reals(*x.shape)).to(x.dtype)

    for _ in range(3):
        ranks = [
            [drawn(x) if i in read else x for i, x in enumerate(operands(call))]
            for _ in range(RANKS)
        ]
        whole = [
            REDUCTIONS[kind](*xs) if i in read else xs[0]
            for i, xs in enumerate(zip(*ranks, strict=True))
        ]
        results = zip(*(run(call, mine) for mine in ranks), strict=True)
        if not close(run(call, whole), [REDUCTIONS[kind](*xs) for xs in results]):
            return False
    return True


def placements(count: int) -> Iterator[tuple[bool, ...]]:
    """All choices of partial operands, at least one."""
    return (p for p in itertools.product((False, True), repeat=count) if any(p))


def moved(key: object, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
    """What a RESHAPE or a range takes of ``x``; None for another map."""
    if key == RESHAPE:
        return x.reshape(like.shape)
    if not isinstance(key, tuple) or key[0] != RANGE:
        return None
    _, count, *taken, first = key
    assert count == x.numel()
    sizes, strides = [n for n, _ in reversed(taken)], [apart for _, apart in reversed(taken)]
    return x.contiguous().as_strided(sizes, strides, first).reshape(like.shape)


def literal(term: Term, tensors: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor | None:
    """The value of a constant, BROADCAST, RESHAPE or range term; None for another map."""
    factor = float(term.coefficient)
    if not term.operands:
        return torch.full(like.shape, factor, dtype=torch.float64)
    if term.map != BROADCAST:
        found = moved(term.map, _number(tensors[term.operands[0]]), like)
        return None if found is None else found * factor
    found = torch.full((), factor, dtype=torch.float64)
    for i in term.operands:
        found = found * _number(tensors[i])
    return found.expand(like.shape)


def follows_terms(call: Sample, found: Meaning) -> bool:
    """Whether the terms with known maps are what remains when all other terms are zeroed."""
    assert found.terms is not None
    tensors = operands(call)
    known = (BROADCAST, RESHAPE)
    opaque = [t for t in found.terms if t.operands and t.map not in known and t.map[0] != RANGE]  # type: ignore[index]
    zeroed = {i for t in opaque for i in t.operands}
    tensors = [torch.zeros_like(x) if i in zeroed else x for i, x in enumerate(tensors)]
    results = run(call, tensors)
    for result in results:
        wide = torch.complex128 if result.dtype.is_complex else torch.float64
        total = torch.zeros(result.shape, dtype=wide)
        for term in found.terms:
            if (value := literal(term, tensors, result)) is not None:
                total = total + value
        if not close([total], [result.to(wide)]):
            return False
    return True


def has_parts(call: Sample, found: Meaning) -> bool:
    """Whether every result is the part of operand 0 that is named."""
    if not found.parts:
        return True
    x, results = operands(call)[0], run(call, operands(call))
    both = zip(found.parts, results, strict=True)
    return all(torch.equal(moved(part, x, y), y) for part, y in both)  # type: ignore[arg-type]


def blocks(
    call: Sample, tensors: Sequence[torch.Tensor], cut: dict[int, list[int]], count: int,
    shape: Sequence[int] | None = None,
) -> list[tuple[torch.Tensor, ...]]:  # fmt: skip
    """Results per rank with operand i cut into ``count`` blocks along its dimensions ``cut[i]``."""
    found = []
    for r in range(count):
        mine = []
        for i, x in enumerate(tensors):
            for d in cut.get(i, ()):
                x = x.chunk(count, d)[r]
            mine.append(x)
        found.append(run(call, mine, shape))
    return found


def labels(found: Meaning) -> list[int | str]:
    assert found.dims is not None
    everything = dict.fromkeys(d for labels in found.dims.operands for d in labels)
    return [d for d in everything if d is not None]


def counts_of(call: Sample, found: Meaning, label: int | str) -> list[int]:
    """Numbers of blocks (2, 3) into which every dimension of this factor can be cut."""
    assert found.dims is not None
    sizes = [
        size
        for tensors, held in (
            (operands(call), found.dims.operands),
            (run(call, operands(call)), found.dims.results),
        )
        for x, names in zip(tensors, held, strict=True)
        for size, name in zip(x.shape, names, strict=True)
        if name == label
    ]
    return [n for n in (2, 3) if all(size % n == 0 for size in sizes)]


def factors(call: Sample, found: Meaning, label: int | str, count: int) -> bool:
    """Whether cutting a factor cuts the results, or yields partial sums of them."""
    assert found.dims is not None
    tensors, whole = operands(call), run(call, operands(call))
    cut = {i: [d for d, x in enumerate(held) if x == label]
           for i, held in enumerate(found.dims.operands)}  # fmt: skip
    first = found.dims.results[0]
    shape = [n // count if x == label else n for n, x in zip(whole[0].shape, first, strict=True)]
    ranks = blocks(call, tensors, cut, count, shape)
    for j, (result, held) in enumerate(zip(whole, found.dims.results, strict=True)):
        mine = [r[j] for r in ranks]
        if label in held:
            joined = torch.cat(mine, held.index(label))
        else:
            assert found.terms is not None, f"{label} is lost, but {call} is no sum"
            joined = sum(mine)  # type: ignore[assignment]
        if not close([joined], [result]):
            return False
    return True


def works_in_blocks(call: Sample, found: Meaning, operand: int, dim: int) -> bool:
    """Whether cutting this one dimension gives blocks, partial sums or copies of the results."""
    tensors, whole = operands(call), run(call, operands(call))
    try:
        ranks = blocks(call, tensors, {operand: [dim]}, 2)
    except (RuntimeError, IndexError, ValueError):
        return False
    for j, result in enumerate(whole):
        mine = [r[j] for r in ranks]
        sums = mine[0].shape == mine[1].shape and result.dtype is not torch.bool
        options = [mine[0] + mine[1]] if sums else []
        options += [mine[0]] if close([mine[0]], [mine[1]]) else []
        for d in range(result.dim()):
            try:
                options.append(torch.cat(mine, d))
            except RuntimeError:
                continue
        if not any(close([x], [result]) for x in options):
            return False
    return True


def meaning_of(call: Sample) -> Meaning:
    found = meaning(node(call))
    assert found is not None, f"{call.target} has no rule"
    return found


def whole_dims(call: Sample, found: Meaning) -> list[tuple[int, int]]:
    """The operand dimensions without a factor that two ranks could share."""
    held = [(None,) * x.dim() for x in operands(call)]
    names = held if found.dims is None else found.dims.operands
    return [
        (i, d)
        for i, x in enumerate(operands(call))
        for d, size in enumerate(x.shape)
        if names[i][d] is None and size and size % 2 == 0
    ]
