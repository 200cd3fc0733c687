"""Refute what is declared of an op by its kernel, on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.dialects.read import function_of, written_by
from compiler.ir.dialects.registry import REGISTERED, load_installed
from compiler.ir.rules import Call, Meaning, opaque
from compiler.ir.rules.opaque import OpaqueOp
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged

DRAWS = 3
Tensors = list[torch.Tensor]


def check_op(name: str, *args: Any, ranks: int = 2, **kwargs: Any) -> tuple[str, ...]:
    """Check what is declared of an op against its kernel; see ``docs/dialects.md``.

    Args:
        name: of the op, as it is declared.
        args: arguments of a call. Floating-point tensors are drawn anew; all others stay.
        ranks: how many ranks a collective has.
        kwargs: further arguments.

    Returns:
        What was tried.

    Raises:
        CommPlanError: the op is not declared or not installed, or does otherwise than is declared.
    """
    load_installed()
    op, entry = _installed(name), REGISTERED.get(name)
    if entry is None:
        raise CommPlanError(f"op {name} is not declared", remedy="call register_ops first")
    tensors, tree = pytree.tree_flatten((args, kwargs))
    if isinstance(entry, OpaqueOp):
        return tuple(_claims_of_opaque(op, entry, tensors, tree))
    function = function_of(op, entry, lambda _: ranks, "")
    try:
        for seed in range(DRAWS):
            drawn = _drawn(tensors, seed)
            _compare(op, "results", _run(op, op, drawn, tree), _run(op, function, drawn, tree))
    except (NotImplementedError, RuntimeError) as error:
        if not isinstance(error, NotImplementedError) and "process group" not in str(error):
            raise
        _compare_types(op, function, tensors, tree)
        return ("shapes and types of the results, without data: " + _first_line(error),)
    return (f"the results of {DRAWS} calls",)


def _installed(name: str) -> OpOverload:
    namespace, _, rest = name.partition("::")
    base, _, overload = rest.partition(".")
    try:
        op = getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
    except AttributeError:
        raise CommPlanError(
            f"op {name} is not installed", remedy="import the package that defines it"
        ) from None
    assert isinstance(op, OpOverload), f"{name} is not an op"
    return op


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _drawn(leaves: Sequence[Any], seed: int) -> list[Any]:
    """Return the arguments with other numbers in their floating-point tensors."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if not x.is_floating_point():
            return x.clone()
        normal = torch.randn(x.shape, generator=generator)
        return normal.to(dtype=x.dtype, device=x.device)

    return list(map(drawn, leaves))


def _run(op: OpOverload, function: Any, leaves: Sequence[Any], tree: Any) -> Tensors:
    """Return the results of a call, then the tensors that ``op`` writes to."""
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in leaves]
    args, kwargs = pytree.tree_unflatten(copies, tree)
    names = access.parameters(op)[0]
    arguments = dict(zip(names, args, strict=False)) | kwargs
    with torch.no_grad():
        results = function(**arguments)
    written = [arguments[argument.name] for argument in written_by(op)]
    returned = results if op._schema.returns else ()
    leaves = pytree.tree_leaves((returned, written))
    return [x for x in leaves if isinstance(x, torch.Tensor)]


def _compare(op: OpOverload, what: str, actual: Tensors, wanted: Tensors) -> None:
    """Raise unless ``actual``, of the kernel, is what the declaration says, but for rounding."""
    types = [[(x.dtype, tuple(x.shape)) for x in xs] for xs in (actual, wanted)]
    if types[0] != types[1]:
        raise _refuted(op, what, f"the kernel gives {types[0]}, the declaration {types[1]}")
    for i, (x, y) in enumerate(zip(actual, wanted, strict=True)):
        difference = (x.double() - y.double()).abs().max().item() if x.numel() else 0.0
        size = y.double().abs().max().item() if x.numel() else 0.0
        if not difference <= _tolerance(x.dtype) * (1 + size):
            raise _refuted(op, what, f"result {i} of the kernel differs by {difference:.3g}")


def _tolerance(dtype: torch.dtype) -> float:
    if not dtype.is_floating_point:
        return 0.0
    eps = torch.finfo(dtype).eps
    return eps * (64 if dtype.itemsize > 2 else 8)


def _refuted(op: OpOverload, what: str, why: str) -> CommPlanError:
    return CommPlanError(
        f"{opaque.name_of(op)} does otherwise than is declared: {what}",
        found=why,
        remedy="correct its declaration",
    )


def _compare_types(
    op: OpOverload, function: Callable[..., Any], leaves: Sequence[Any], tree: Any
) -> None:
    try:
        with FakeTensorMode() as mode, unlogged(FAKE_TENSORS):
            fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in leaves]
            of_op, of_function = (_run(op, f, fakes, tree) for f in (op, function))
    except (NotImplementedError, RuntimeError) as error:
        raise CommPlanError(
            f"op {opaque.name_of(op)} cannot be tried here",
            found=f"neither its kernel nor its form without data runs: {_first_line(error)}",
            remedy="try it where its kernel and its process group are",
        ) from error
    types = [[(x.dtype, tuple(x.shape)) for x in xs] for xs in (of_op, of_function)]
    if types[0] != types[1]:
        raise _refuted(op, "shapes", f"the op gives {types[0]}, the declaration {types[1]}")


# ---- opaque ops


def _claims_of_opaque(
    op: OpOverload, entry: OpaqueOp, leaves: list[Any], tree: Any
) -> Iterator[str]:
    """Try every claim; yield those that were not refuted."""
    meaning = _meaning(op, leaves, tree)
    if unknown := [name for name in entry.linear if name not in access.parameters(op)[0]]:
        raise _refuted(op, "linear", f"it has no argument {unknown[0]!r}")
    if entry.dims and meaning.dims is None:
        raise _refuted(op, f"dimensions {entry.dims!r}", "they do not fit this call")
    if lost := sorted(opaque.names_in(entry.dims).difference(_labels(meaning))):
        why = f"{lost[0]!r} names different sizes, or is summed where the op is not linear"
        raise _refuted(op, f"dimensions {entry.dims!r}", why)
    for seed in range(DRAWS):
        drawn = _drawn(leaves, seed)
        first = _run(op, op, drawn, tree)
        _compare(op, "a function of its arguments", _run(op, op, drawn, tree), first)
        for label in _labels(meaning):
            _compare(op, f"blocks of {label!r}", first, _of_blocks(op, meaning, label, drawn, tree))
        if meaning.terms:
            _check_linear(op, meaning, drawn, tree, seed)
    yield from (f"blocks of {label!r}" for label in _labels(meaning))
    if meaning.terms:
        yield f"linear in {', '.join(entry.linear)}"


def _meaning(op: OpOverload, leaves: list[Any], tree: Any) -> Meaning:
    """Return what the declaration says of this call."""
    graph = fx.Graph()

    def placeholder(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        node = graph.placeholder("x")
        node.meta["val"] = x
        return node

    args, kwargs = pytree.tree_unflatten(list(map(placeholder, leaves)), tree)
    node = graph.call_function(op, args, kwargs)
    results = _run(op, op, leaves, tree)
    node.meta["val"] = results[0] if len(results) == 1 else tuple(results)
    meaning = opaque.declared(Call.of(node))
    assert meaning is not None, f"{op} is not declared"
    return meaning


def _labels(meaning: Meaning) -> list[int | str]:
    every = dict.fromkeys(x for own in meaning.dims.operands for x in own) if meaning.dims else {}
    return [x for x in every if x is not None]


def _of_blocks(
    op: OpOverload, meaning: Meaning, label: int | str, leaves: list[Any], tree: Any
) -> Tensors:
    """Return the results from those of two blocks of the dimensions called ``label``."""
    assert meaning.dims is not None, "labels are of dimensions"
    order = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    blocks = []
    for half in range(2):
        own = list(leaves)
        for i, labels in zip(order, meaning.dims.operands, strict=True):
            for dim in (d for d, x in enumerate(labels) if x == label):
                size = own[i].shape[dim]
                start, end = (0, size // 2) if half == 0 else (size // 2, size)
                own[i] = own[i].narrow(dim, start, end - start)
        try:
            blocks.append(_run(op, op, own, tree))
        except (RuntimeError, ValueError, IndexError) as error:
            raise _refuted(op, f"blocks of {label!r}", f"it refuses them: {error}") from error
    return [
        torch.cat(pair, labels.index(label)) if label in labels else pair[0] + pair[1]
        for labels, *pair in zip(meaning.dims.results, *blocks, strict=True)
    ]


def _check_linear(
    op: OpOverload, meaning: Meaning, leaves: list[Any], tree: Any, seed: int
) -> None:
    order = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    linear = {order[i] for term in meaning.terms or () for i in term.operands}
    others = _drawn(leaves, DRAWS + seed)
    pairs = list(zip(leaves, others, strict=True))
    second = [y if i in linear else x for i, (x, y) in enumerate(pairs)]
    both = [x - 3 * y if i in linear else x for i, (x, y) in enumerate(pairs)]
    first, last, sums = (_run(op, op, xs, tree) for xs in (leaves, second, both))
    wanted = [x - 3 * y for x, y in zip(first, last, strict=True)]
    _compare(op, "linear", sums, wanted)
