"""Translation validation: do a source and a target graph compute the same function on every rank?

Both are interpreted in one random model (``compiler.check.algebra``); equal outputs are equal
functions over the reals, for all ranks of the mesh and all values of symbolic sizes at once.
An op that stands for a composition (``compiler.ir.decompositions``) is read as that composition.
Unequal outputs are decided by simulation where the inputs are small enough to hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

import sympy
import torch
from torch import fx
from torch.fx.node import map_arg

from compiler.check.algebra import vectors
from compiler.check.blocks import Value
from compiler.check.expand import expanded
from compiler.check.gathered_rows import with_gathered_rows
from compiler.check.interpret import Interpreter
from compiler.check.metadata import check_metadata
from compiler.check.real_normal_form import real_normal_form
from compiler.check.same_calls import same_calls
from compiler.check.selective_reductions import Logarithms
from compiler.check.simulate import PerRank, draw_inputs, is_fake, simulate
from compiler.check.sizes import RowSizes, renamed, symbols
from compiler.check.verdict import Counterexample, Report, UnprovedError, Verdict
from compiler.errors import CommPlanError
from compiler.garbage import collection_paused
from compiler.ir import access
from compiler.ir.collectives import WAIT, check_numbers, collective
from compiler.ir.graph import SpmdGraph, well_formed
from compiler.ir.row_ops import PAD_ROWS
from compiler.ir.rules.meaning import shape_key, size_key

SIMULATION_BYTES = 256 << 20
"""Inputs of all ranks together above which no counterexample is looked for."""

TOLERANCE = 1e-6
"""Relative difference that float64 rounding cannot explain."""

SMALLEST_SCALE = 1e-3
"""Differences are relative to at least this: inputs are of order 1, and where they cancel out, what
is left of the largest intermediate values is rounding."""

SEEDS = 3
"""Draws of inputs on which a counterexample is looked for."""


@collection_paused()
def check(source: SpmdGraph, target: SpmdGraph) -> Report:
    """The verdict on ``target`` as a replacement of ``source``; see ``Verdict``.

    Both must have the same mesh, but for groups that only the target names, and the same placements
    of inputs: those of ``source`` count.
    """
    start = time.perf_counter()
    count = len(source.graph.nodes) + len(target.graph.nodes)

    def report(verdict: Verdict, explanation: str, **more: object) -> Report:
        seconds = time.perf_counter() - start
        return Report(verdict, explanation, values=count, seconds=seconds, **more)  # type: ignore[arg-type]

    try:
        if why := _ill_formed(source, target) or _signature_difference(source, target):
            return report(Verdict.INVALID, why)
        target = _placed_alike(source, target)
        names = _attribute_names(source, target)
        if _identical(source, target):
            return report(Verdict.IDENTICAL, "source and target are the same graph")
        if same_calls(source, target, names):
            check_metadata(source, target)
            return report(Verdict.EQUIVALENT, "all outputs are the same calls of the inputs")
        source, target = _composed(source, target)
        before, after, unequal = _compared(source, target, names)
    except CommPlanError as error:
        verdict = Verdict.UNPROVED if isinstance(error, UnprovedError) else Verdict.INVALID
        return report(verdict, str(error))
    if not unequal:
        return report(
            Verdict.EQUIVALENT,
            f"all {len(_outputs(source))} outputs are the same function of the inputs on each of "
            f"{source.mesh.size} ranks, over the reals",
            roundings=tuple(_roundings(source, target, before, after)),
        )
    first = unequal[0]
    where = _divergence(before, after, *(_outputs(side)[first] for side in (source, target)))
    try:
        refutation = _counterexample(source, target)
    except CommPlanError as error:
        return report(Verdict.UNPROVED, f"output {first} differs: {where}. {error.what}")
    if refutation is not None:
        return report(
            Verdict.NOT_EQUIVALENT,
            f"output {refutation.output} on rank {refutation.rank} differs by "
            f"{refutation.difference:.3g} (relative) for the inputs of seed {refutation.seed}: "
            f"source {refutation.source}, target {refutation.target}. First difference: {where}",
            counterexample=refutation,
        )
    return report(
        Verdict.UNPROVED,
        f"output {first} is not shown equal: {where}. No counterexample in {SEEDS} simulations",
    )


def _ill_formed(source: SpmdGraph, target: SpmdGraph) -> str:
    """Why one of the two is not a graph to interpret, empty if both are."""
    for side, graph in (("source", source), ("target", target)):
        try:
            well_formed(graph.graph)
            check_numbers(graph.graph, graph.mesh)
        except CommPlanError as error:
            return f"{side}: {error}"
    return ""


def _composed(source: SpmdGraph, target: SpmdGraph) -> tuple[SpmdGraph, SpmdGraph]:
    """Both graphs as the model reads them: compositions in the place of calls that stand for them.

    What compositions say in few ops graphs say in many ways, so that both are brought to one form.
    """
    before, after = (expanded(with_gathered_rows(side))[0] for side in (source, target))
    for side in (before, after):
        check_numbers(side.graph, side.mesh)
    check_metadata(before, after)
    if before is source and after is target:
        return source, target
    return real_normal_form(before), real_normal_form(after)


def _outputs(graph: SpmdGraph) -> list[fx.Node]:
    return list(access.results(access.output(graph.graph)))


def _compared(
    source: SpmdGraph, target: SpmdGraph, names: dict[str, str]
) -> tuple[dict[fx.Node, Value], dict[fx.Node, Value], list[int]]:
    """Values of both graphs, and which outputs are not equal; ``names``: ``_attribute_names``.

    Tensors in one piece are quicker to interpret, and enough unless rows are cut or gathers moved.
    """
    sizes = RowSizes.of((source, target))
    outputs = list(zip(*map(_outputs, (source, target)), strict=True))

    def compared(
        in_blocks: RowSizes,
    ) -> tuple[dict[fx.Node, Value], dict[fx.Node, Value], list[int]]:
        before, after = _interpreted(source, target, names, in_blocks)
        return before, after, [i for i, o in enumerate(outputs) if not _equal(before, after, *o)]

    comparison = compared(sizes if sizes.cuts else RowSizes())
    return compared(sizes) if comparison[2] and sizes.sizes and not sizes.cuts else comparison


def _interpreted(
    source: SpmdGraph, target: SpmdGraph, names: dict[str, str], sizes: RowSizes
) -> tuple[dict[fx.Node, Value], dict[fx.Node, Value]]:
    """Both graphs in one random model; ``names``: see ``_attribute_names``."""
    logarithms = Logarithms.of((source, target))
    before = Interpreter(source, {n: n for n in names}, sizes, logarithms).run()
    return before, Interpreter(target, names, sizes, logarithms).run()


def _equal(
    before: dict[fx.Node, Value], after: dict[fx.Node, Value], source: fx.Node, target: fx.Node
) -> bool:
    if source not in before or target not in after:
        return source not in before and target not in after
    a, b = before[source], after[target]
    same = (a.cut, a.count, a.unit, a.padded) == (b.cut, b.count, b.unit, b.padded)
    return same and bool((a.data == b.data).all())


def _signature_difference(source: SpmdGraph, target: SpmdGraph) -> str:
    """Why the two do not take and give the same tensors, empty if they do."""
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


def _placed_alike(source: SpmdGraph, target: SpmdGraph) -> SpmdGraph:
    """The target, its inputs placed as the source says: by position, attributes by name."""
    both = zip(
        *(access.node_of(side.graph, "placeholder") for side in (source, target)), strict=True
    )
    placed = {str(twin.target): source.inputs[str(node.target)] for node, twin in both}
    attributes = [str(n.target) for n in access.node_of(target.graph, "get_attr")]
    placed |= {name: source.inputs.get(name, target.inputs[name]) for name in attributes}
    inputs = {**target.inputs, **placed}
    return target if inputs == target.inputs else replace(target, inputs=inputs)


def _structure(returned: object) -> str:
    """How a graph nests what it returns, values as ``%``; a list is as good as a tuple."""
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
        return f"size {_size_text(size_key(value), names)}"
    if not isinstance(value, torch.Tensor):
        return repr(value) if isinstance(value, int | float | str) else type(value).__name__
    sizes = ", ".join(_size_text(size, names) for size in shape_key(value))
    return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"


def _size_text(size: int | sympy.Expr, names: dict[str, str]) -> str:
    """A size with its symbols renamed before it is ordered and printed."""
    return str(renamed(size, names))


def _attribute_names(source: SpmdGraph, target: SpmdGraph) -> dict[str, str]:
    """Attribute of either graph -> a name that two share only if they hold the same tensor."""
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


def _identical(source: SpmdGraph, target: SpmdGraph) -> bool:
    """Whether both list the same nodes with the same arguments in the same order."""
    if len(source.graph.nodes) != len(target.graph.nodes):
        return False
    numbers: dict[fx.Node, int] = {}
    for i, (a, b) in enumerate(zip(source.graph.nodes, target.graph.nodes, strict=True)):
        numbers[a] = numbers[b] = i
        same_call = a.op == b.op and (a.op == "placeholder" or a.target == b.target)
        if not same_call or _numbered(a, numbers) != _numbered(b, numbers):
            return False
    return True


def _numbered(node: fx.Node, numbers: dict[fx.Node, int]) -> str:
    args, kwargs = access.map_operands(node, lambda n: ("%", numbers[n]))  # type: ignore[arg-type, return-value]
    constants = [c.values for c in access.rank_constants(node)]
    return repr((args if node.op != "placeholder" else (), kwargs, constants))


def _roundings(
    source: SpmdGraph,
    target: SpmdGraph,
    before: dict[fx.Node, Value],
    after: dict[fx.Node, Value],
) -> Iterator[str]:
    """Reductions of the target whose operand no reduction of the source has."""
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
            takes = _computed(reduction.operand)
            yield (
                f"{place}: {reduction.kind} over {reduction.group} takes "
                f"{takes.target} of {len(access.operands(takes))} operands: "
                "additions are reassociated"
            )


def _computed(node: fx.Node) -> fx.Node:
    """What ``node`` is but for rows that were added to share them evenly."""
    return access.operands(node)[0] if node.target is PAD_ROWS else node


def _divergence(
    before: dict[fx.Node, Value], after: dict[fx.Node, Value], source: fx.Node, target: fx.Node
) -> str:
    """Follows differing operands from an output back to where the two graphs part."""
    while source.target == target.target:
        pairs = list(zip(source.all_input_nodes, target.all_input_nodes, strict=False))
        unequal = [p for p in pairs if not _equal(before, after, *p)]
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


def _counterexample(source: SpmdGraph, target: SpmdGraph) -> Counterexample | None:
    """Inputs on which an output differs by more than rounding, or None.

    Raises:
        CommPlanError: the graphs cannot be simulated here.
    """
    needed = source.mesh.size * sum(
        access.payload_bytes(n) for n in source.graph.nodes
        if n.op in ("placeholder", "get_attr") and access.is_tensor(n)
    )  # fmt: skip
    if needed > SIMULATION_BYTES:
        raise CommPlanError(f"Not simulated: the inputs of all ranks take {needed >> 20} MiB")
    skipped = [x | y for x, y in zip(sampled(source), sampled(target), strict=True)]
    if all(skipped):
        raise CommPlanError("Not simulated: every output depends on random numbers")
    for seed in range(SEEDS):
        inputs = draw_inputs(source, seed)
        pairs = zip(
            access.node_of(source.graph, "placeholder"),
            access.node_of(target.graph, "placeholder"),
            strict=True,
        )
        renamed = inputs | {str(twin.target): inputs[str(node.target)] for node, twin in pairs}
        try:
            want = simulate(source, inputs, exact=True)
            got = simulate(target, renamed, exact=True)
        except Exception as error:
            raise CommPlanError(f"Not simulated: {type(error).__name__}: {error}") from error
        for output, (a, b) in enumerate(zip(want, got, strict=True)):
            if not skipped[output] and (refutation := difference(seed, output, a, b)):
                return refutation
    return None


def sampled(graph: SpmdGraph) -> list[bool]:
    """Per output, whether it depends on random numbers, which no two runs have in common."""
    drawn: set[fx.Node] = set()
    for node in graph.graph.nodes:
        rule, operands = graph.meanings.get(node), access.operands(node)
        reads = None if rule is None else rule.reads
        read = operands if reads is None else [operands[i] for i in reads]
        if (rule is not None and rule.random) or not drawn.isdisjoint(read):
            drawn.add(node)
    return [node in drawn for node in _outputs(graph)]


def difference(seed: int, output: int, want: PerRank, got: PerRank) -> Counterexample | None:
    """Return where an output differs by more than rounding, per rank; None if it does not."""
    for rank, (a, b) in enumerate(zip(want, got, strict=True)):
        if not isinstance(a, torch.Tensor) or a.numel() == 0:
            continue
        x, y = a.double().flatten(), b.double().flatten()
        gap = (x - y).abs()
        gap[(x == y) | (x.isnan() & y.isnan())] = 0  # infinities too
        at = int(gap.nan_to_num(torch.inf).argmax())
        scale = max(float(x.nan_to_num().abs().max()), SMALLEST_SCALE)
        if not float(gap[at]) <= TOLERANCE * scale:
            near = slice(max(at - 1, 0), at + 2)
            shown = [", ".join(f"{float(e):.6g}" for e in side[near]) for side in (x, y)]
            return Counterexample(seed, output, rank, float(gap[at]) / scale, *shown)
    return None
