"""Translation validation: do a source and a target graph compute the same function on every rank?

Both are interpreted in one random model (``compiler.check.algebra``); equal outputs are equal
functions over the reals, for all ranks of the mesh and all values of symbolic sizes at once.
An op that stands for a composition (``compiler.ir.fused_ops``) is read as that composition.
Where outputs are not equal, simulation looks for a counterexample, if the inputs are small enough
to hold; where there is none, both are compared once more with all dimensions in blocks
(``compiler.check.all_blocks``), unless the ranks are many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

import torch
from torch import fx
from torch.fx.node import map_arg

from compiler.check.algebra import vectors
from compiler.check.all_blocks import equal_in_blocks
from compiler.check.compare import compared, equal, outputs
from compiler.check.expand import expanded
from compiler.check.gathered_rows import with_gathered_rows
from compiler.check.metadata import check_metadata
from compiler.check.real_normal_form import narrowings, real_normal_form
from compiler.check.refutation import FEW_RANKS, SEEDS, counterexample
from compiler.check.representatives import Representatives
from compiler.check.same_calls import identical, same_calls
from compiler.check.seal import Values
from compiler.check.simulate import is_fake
from compiler.check.sizes import renamed, symbols
from compiler.check.verdict import Counterexample, Report, UnprovedError, Verdict
from compiler.errors import CommPlanError
from compiler.garbage import collection_paused
from compiler.ir import access
from compiler.ir.collectives import WAIT, check_numbers, collective
from compiler.ir.graph import SpmdGraph, well_formed
from compiler.ir.row_ops import PAD_ROWS
from compiler.ir.rules.meaning import shape_key, size_key


@collection_paused()
def check(source: SpmdGraph, target: SpmdGraph) -> Report:
    """Return the verdict on ``target`` as a replacement of ``source``; see ``Verdict``.

    Both must have the same mesh, but for groups that only the target names, and the same placements
    of inputs: those of ``source`` count.
    """
    start, many_ranks = time.perf_counter(), list[str]()
    count = len(source.graph.nodes) + len(target.graph.nodes)

    def report(verdict: Verdict, explanation: str, **more: object) -> Report:
        seconds, many = time.perf_counter() - start, tuple(many_ranks)
        return Report(verdict, explanation, many_ranks=many, values=count, seconds=seconds, **more)  # type: ignore[arg-type]

    try:
        if why := _ill_formed(source, target) or _signature_difference(source, target):
            return report(Verdict.INVALID, why)
        target = placed_alike(source, target)
        names = attribute_names(source, target)
        if identical(source, target):
            return report(Verdict.IDENTICAL, "source and target are the same graph")
        if same_calls(source, target, names):
            check_metadata(source, target)
            return report(Verdict.EQUIVALENT, "all outputs are the same calls of the inputs")
        source, target = composed(source, target)
        comparison = compared(source, target, names)
    except CommPlanError as error:
        verdict = Verdict.UNPROVED if isinstance(error, UnprovedError) else Verdict.INVALID
        return report(verdict, str(error))
    before, after = comparison.before, comparison.after
    many_ranks.extend(comparison.many_ranks())
    if comparison.unequal:
        first, kept = comparison.unequal[0], comparison.kept
        refutation, why = _refutation(source, target, kept)
        in_blocks = refutation is None and source.mesh.size <= FEW_RANKS
        if not (in_blocks and equal_in_blocks(source, target, names)):
            pair = (outputs(side)[first] for side in (source, target))
            where = _divergence(before, after, *pair)
            if refutation is None:
                text = f"output {first} is not shown equal: {where}. {why}"
                return report(Verdict.UNPROVED, text)
            text = f"{why}. First difference: {where}"
            return report(Verdict.NOT_EQUIVALENT, text, counterexample=refutation)
    return report(
        Verdict.EQUIVALENT,
        f"all {len(outputs(source))} outputs are the same function of the inputs on each of "
        f"{source.mesh.size} ranks, over the reals",
        roundings=tuple(_roundings(source, target, before, after)),
    )


def _ill_formed(source: SpmdGraph, target: SpmdGraph) -> str:
    """Return why one of the two is not a graph to interpret, empty if both are."""
    for side, graph in (("source", source), ("target", target)):
        try:
            well_formed(graph.graph)
            check_numbers(graph.graph, graph.mesh)
        except CommPlanError as error:
            return f"{side}: {error}"
    return ""


def composed(source: SpmdGraph, target: SpmdGraph) -> tuple[SpmdGraph, SpmdGraph]:
    """Write out compositions in both graphs, in the place of the calls that stand for them.

    What compositions say in few ops graphs say in many ways, so that both are brought to one form.
    """
    before, after = (expanded(with_gathered_rows(side))[0] for side in (source, target))
    for side in (before, after):
        check_numbers(side.graph, side.mesh)
    check_metadata(before, after)
    if before is source and after is target:
        return source, target
    if added := narrowings(target) - narrowings(source):  # the form leaves conversions out
        ((wide, narrow, _), count), *_ = added.items()
        raise UnprovedError(f"{count} more conversions from {wide} to {narrow} than in the source")
    return real_normal_form(before), real_normal_form(after)


def _signature_difference(source: SpmdGraph, target: SpmdGraph) -> str:
    """Return why the two do not take and give the same tensors, empty if they do."""
    if not target.mesh.extends(source.mesh):
        return f"the meshes differ: source {source.mesh!r}, target {target.mesh!r}"
    renamed = [symbols(source), symbols(target)]
    for kind in ("placeholder", "output"):
        sides = []
        for graph, names in zip((source, target), renamed, strict=True):
            nodes = access.node_of(graph.graph, kind)
            listed = access.results(nodes[0]) if kind == "output" else nodes
            sides.append([_type_text(n, names) for n in listed])
        if len(sides[0]) != len(sides[1]):
            return f"source has {len(sides[0])} {kind}s, target has {len(sides[1])}"
        for i, (a, b) in enumerate(zip(*sides, strict=True)):
            if a != b:
                return f"{kind} {i} is {a} in the source and {b} in the target"
    returned = [_structure(access.returned(graph.graph)) for graph in (source, target)]
    if returned[0] != returned[1]:
        return f"source returns {returned[0]}, target returns {returned[1]}"
    return ""


def placed_alike(source: SpmdGraph, target: SpmdGraph) -> SpmdGraph:
    """Return the target with inputs placed as in the source: by position, attributes by name."""
    placed = {twin: source.inputs[name] for name, twin in _placeholders(source, target).items()}
    attributes = [str(n.target) for n in access.node_of(target.graph, "get_attr")]
    placed |= {name: source.inputs.get(name, target.inputs[name]) for name in attributes}
    inputs = {**target.inputs, **placed}
    return target if inputs == target.inputs else replace(target, inputs=inputs)


def _placeholders(source: SpmdGraph, target: SpmdGraph) -> dict[str, str]:
    """Return placeholder of the source -> that of the target in its position."""
    sides = (access.node_of(side.graph, "placeholder") for side in (source, target))
    return {str(node.target): str(twin.target) for node, twin in zip(*sides, strict=True)}


def _structure(returned: object) -> str:
    """Return how a graph nests what it returns, values as ``%``; a list is as good as a tuple."""
    if isinstance(returned, fx.Node):
        return "%"
    if isinstance(returned, dict):
        entries = (f"{name!r}: {_structure(x)}" for name, x in returned.items())
        return "{" + ", ".join(entries) + "}"
    if isinstance(returned, list | tuple):
        return "(" + ", ".join(map(_structure, returned)) + ("," * (len(returned) == 1)) + ")"
    return repr(returned)


def _type_text(node: fx.Node, names: dict[str, str]) -> str:
    value = access.value(node)
    if isinstance(value, torch.SymInt):
        return f"size {renamed(size_key(value), names)}"
    if not isinstance(value, torch.Tensor):
        return repr(value) if isinstance(value, int | float | str) else type(value).__name__
    sizes = ", ".join(str(renamed(size, names)) for size in shape_key(value))
    return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"


def attribute_names(source: SpmdGraph, target: SpmdGraph) -> dict[str, str]:
    """Return attribute of either graph -> a name, the same only for the same tensor."""
    names = {str(n.target): str(n.target) for n in access.node_of(source.graph, "get_attr")}
    for node in access.node_of(target.graph, "get_attr"):
        name = str(node.target)
        tensor = attrgetter(name)
        if name in names and not _same_tensor(tensor(source.root), tensor(target.root)):
            raise CommPlanError(f"attribute {name!r} holds another tensor in the target")
        names.setdefault(name, f"only in target: {name}")
    return names


def _same_tensor(left: object, right: object) -> bool:
    if left is right or not (isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)):
        return left is right or left == right
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if is_fake(left) or is_fake(right):
        return True
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


def _roundings(
    source: SpmdGraph, target: SpmdGraph, before: Values, after: Values
) -> Iterator[str]:
    """Yield a line per reduction of the target whose operand no reduction of the source has."""
    reduced = {
        str(vectors(before[reduction.operand].data))
        for node in source.graph.nodes
        if (reduction := collective(node)) is not None and reduction.op
    }
    for node in target.graph.nodes:
        reduction = collective(node)
        if reduction is None or node.target is WAIT or not reduction.op:
            continue
        if str(vectors(after[reduction.operand].data)) not in reduced:
            place = access.layer_path(reduction.operand) or f"%{node.name}"
            takes = reduction.operand
            if takes.target is PAD_ROWS:  # added to share rows evenly
                (takes,) = access.operands(takes)
            yield (
                f"{place}: {reduction.kind} over {reduction.group} takes "
                f"{takes.target} of {len(access.operands(takes))} operands: "
                "additions are reassociated"
            )


def _divergence(before: Values, after: Values, source: fx.Node, target: fx.Node) -> str:
    """Follow differing operands from an output back to where the two graphs part."""
    while source.target == target.target:
        pairs = list(zip(source.all_input_nodes, target.all_input_nodes, strict=False))
        unequal = [p for p in pairs if not equal(before, after, *p)]
        if len(source.all_input_nodes) != len(target.all_input_nodes) or len(unequal) != 1:
            break
        source, target = unequal[0]
    return f"source {_described(source)} against target {_described(target)}"


class _Written(str):
    """Text that stands for itself among arguments."""

    __repr__ = str.__str__


def _described(node: fx.Node) -> str:
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: _Written(f"%{n.name}"))
    read = ", ".join([*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())])
    place = ", ".join(x for x in (access.layer_path(node), access.source_line(node)) if x)
    return f"%{node.name} = {node.target}({read})" + (f" [{place}]" if place else "")


def _refutation(
    source: SpmdGraph, target: SpmdGraph, kept: Representatives
) -> tuple[Counterexample | None, str]:
    """Return inputs that refute, if there are, and what they show, or why there are none."""
    try:
        one = counterexample(source, target, _placeholders(source, target), kept)
    except CommPlanError as error:
        return None, error.what
    if one is None:
        return None, f"No counterexample in {SEEDS} simulations"
    return one, (
        f"output {one.output} on rank {one.rank} differs by {one.difference:.3g} (relative) for "
        f"the inputs of seed {one.seed}: source {one.source}, target {one.target}"
    )
