"""Rules of ops that somebody declared: which dimensions correspond, in what an op is linear.

Nothing else is known of such an op. On every rank it is a function of that rank's operands alone;
the same function on all ranks, unless it is declared to differ.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch._ops import OpOverload

from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.rules.builders import converted
from compiler.ir.rules.meaning import Call, Dims, Labels, Meaning, Term

REST, BATCH, WHOLE = "*", "...", "_"
"""Any number of dimensions that are needed whole; that correspond; one that is needed whole."""

Names = tuple[tuple[str, tuple[str, ...]], ...]
"""Of several tensors, the argument, empty where it is not named, and the names of dimensions."""


@dataclass(frozen=True)
class OpaqueOp:
    """What is known of an op that is otherwise an unknown function of its operands.

    Attributes:
        dims: names of the dimensions of every tensor among the arguments, in the schema's order,
            and of every result: ``"t *, t * -> t *"``. A dimension that has a name may be cut into
            blocks, in all tensors that name it, and the results are the blocks of the results; one
            that only arguments name, and all of ``linear``, yields partial sums. ``_`` is a
            dimension that is needed whole, ``*`` any number of them, ``...`` any number of
            dimensions that correspond from the last on. Tensors that the op writes count as
            results, after those that it returns. Empty: every dimension is needed whole. Arguments
            may be named, ``"x: t *, mask: t -> t *"``; those left out are needed whole.
        linear: arguments in which the op is linear, all together, while the others stay.
        per_rank: the op may be another function on every rank (weights or caches that it reads
            from elsewhere).
    """

    dims: str = ""
    linear: tuple[str, ...] = ()
    per_rank: bool = False

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            CommPlanError: ``dims`` cannot be read.
        """
        parsed(self.dims)


@lru_cache
def parsed(dims: str) -> tuple[Names, Names]:
    """Return the names of the dimensions of operands and of results.

    Raises:
        CommPlanError: not of the form ``"t *, t * -> t *"``.
    """
    sides = dims.split("->") if dims else ["", ""]
    names = [tuple(map(_of_tensor, side.split(","))) if side else () for side in sides]
    listed = [own for side in names for _, own in side]
    many = [x for x in listed if sum(n in (REST, BATCH) for n in x) > 1]
    twice = [x for x in listed if max(Counter(_named(x)).values(), default=1) > 1]
    if len(names) != 2 or many or twice or len({bool(name) for name, _ in names[0]}) > 1:
        raise CommPlanError(
            "the dimensions of an op cannot be read",
            found=repr(dims),
            remedy="write names for each tensor, at most one of * and ... in each, for example "
            '"t *, t * -> t *"',
        )
    return names[0], names[1]


def _of_tensor(text: str) -> tuple[str, tuple[str, ...]]:
    """Read ``"x: t *"``."""
    name, _, names = text.rpartition(":")
    return name.strip(), tuple(names.split())


def names_in(dims: str) -> set[str]:
    """Return the names of dimensions that may be cut."""
    return {n for side in parsed(dims) for _, names in side for n in _named(names)}


def _named(names: tuple[str, ...]) -> list[str]:
    return [n for n in names if n not in (REST, BATCH, WHOLE)]


DECLARED: dict[str, OpaqueOp] = {}
"""Name of an op, as ``ns::name`` or ``ns::name.overload`` -> what is known of it."""


def op_called(target: object, first: object = None) -> OpOverload | None:
    """Return the op that a node calls, also where it is made functional by ``auto_functionalized``.

    Args:
        target: of the node.
        first: its first argument.
    """
    if str(target) in ("auto_functionalized", "auto_functionalized_v2"):
        target = first
    return target if isinstance(target, OpOverload) else None


def name_of(op: OpOverload) -> str:
    """Return the name of an op, as ``ns::name``, with ``.overload`` but for "default"."""
    return str(op.name())  # type: ignore[no-untyped-call]


def declared(call: Call) -> Meaning | None:
    """Return the meaning of a call of an op that somebody declared, or None."""
    op = op_called(call.target, call.arguments.get("0"))
    claim = None if op is None else DECLARED.get(name_of(op))
    if op is None or claim is None:
        return None
    listed = _operands(call, op)
    order, dims = dict(listed), _dims(call, claim, listed)
    linear = [order[name] for name in claim.linear if name in order]
    if not linear or len(linear) < len(claim.linear) or converted(call, linear):
        return Meaning(dims=_kept(dims), rank_dependent=claim.per_rank)
    others = tuple(i for i in range(len(call.shapes)) if i not in linear)
    terms = tuple(Term((i,), map=(call.key, i), fixed=others) for i in linear)
    return Meaning(terms=terms, dims=_kept(dims, linear), rank_dependent=claim.per_rank)


def _operands(call: Call, op: OpOverload) -> list[tuple[str, int]]:
    """Return name and index of each tensor among the arguments, in the schema's order."""
    bases = call.arguments.get("_all_bases", ())
    listed: list[tuple[str, int]] = []
    for argument in op._schema.arguments:
        name = argument.name
        written: Any = call.arguments.get(name)
        base = call.arguments.get(f"_{name}_base_index")
        if isinstance(base, int) and base < len(bases):
            written = bases[base]
        for x in written if isinstance(written, tuple) else (written,):
            if isinstance(x, access.Operand):
                listed.append((name, x.index))
    return listed


def _dims(call: Call, claim: OpaqueOp, order: list[tuple[str, int]]) -> Dims | None:
    """Return the labels that the declared names give, None where they do not fit the call."""
    arguments, results = parsed(claim.dims)
    by_name = {name: names for name, names in arguments if name}
    tensors = [(name, i) for name, i in order if call.dtypes[i] is not None]
    shapes = [call.shapes[i] for _, i in tensors]
    produced = [s for s, t in zip(call.result_shapes, call.result_dtypes, strict=True) if t]
    is_view = any("_slice_dim" in name or "_storage_offset" in name for name in call.arguments)
    if is_view or len(order) != len(call.shapes) or len(produced) != len(call.result_shapes):
        return None
    if len(results) != len(produced) or not (by_name or len(arguments) == len(tensors)):
        return None
    operands = [names for _, names in arguments]
    if by_name:
        operands = [by_name.get(name, (REST,)) for name, _ in tensors]
    of_results = [names for _, names in results]
    pairs = [*zip(operands, shapes, strict=True), *zip(of_results, produced, strict=True)]
    labels = [_labels(names, shape) for names, shape in pairs]
    sizes: dict[Any, set[Any]] = {}
    for (_, shape), own in zip(pairs, labels, strict=True):
        if len(own) != len(shape):
            return None
        for label, size in zip(own, shape, strict=True):
            sizes.setdefault(label, set()).add(size)
    same: list[Labels] = [tuple(x if len(sizes[x]) == 1 else None for x in own) for own in labels]
    in_order: list[Labels] = [()] * len(order)
    for (_, i), own in zip(tensors, same, strict=False):
        in_order[i] = own
    return Dims(tuple(in_order), tuple(same[len(shapes) :]))


def _labels(names: tuple[str, ...], shape: tuple[Any, ...]) -> Labels:
    """Return one label for each dimension, or of another number where the names do not fit."""
    labels: list[str | None] = []
    more = len(shape) - len(names) + 1
    for name in names:
        if name == BATCH:
            labels += [f"{BATCH}{d}" for d in range(more, 0, -1)]
        elif name == REST:
            labels += [None] * more
        else:
            labels.append(None if name == WHOLE else name)
    return tuple(labels)


def _kept(dims: Dims | None, linear: list[int] | None = None) -> Dims | None:
    """Return the labels without those that results lack, unless every term carries them."""
    if dims is None:
        return None
    lost = {x for own in dims.operands for x in own} - {x for own in dims.results for x in own}
    summed = {x for x in lost if linear and all(x in dims.operands[i] for i in linear)}
    gone = lost - summed
    return Dims(
        tuple(tuple(None if x in gone else x for x in own) for own in dims.operands), dims.results
    )
