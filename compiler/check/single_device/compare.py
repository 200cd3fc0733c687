"""Does a tensor-parallel model compute what the model on one device computes?"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.check.expand import expanded
from compiler.check.gathered_rows import with_gathered_rows
from compiler.check.metadata import check_metadata
from compiler.check.real_normal_form import real_normal_form
from compiler.check.simulate import is_fake
from compiler.check.single_device import grid, refute
from compiler.check.single_device.cuts import Cuts, Range
from compiler.check.single_device.difference import first_difference
from compiler.check.single_device.evaluate import Evaluation, Shared
from compiler.check.single_device.layouts import Declared, Layout, Packed, layout, listed
from compiler.check.single_device.relations import Dimensions
from compiler.check.single_device.replicas import of_one, replicas, replicated_axes
from compiler.check.single_device.softmax import with_softmax_written_out
from compiler.check.single_device.sorted_rows import with_rows_in_order
from compiler.check.single_device.writes import without_writes
from compiler.check.verdict import Report, UnprovedError, Verdict
from compiler.errors import CommPlanError, PlacementError
from compiler.garbage import collection_paused
from compiler.ir import access
from compiler.ir.collectives import check_numbers
from compiler.ir.declared_inputs import by_input
from compiler.ir.graph import SpmdGraph, input_names, well_formed
from compiler.ir.placement import Placement, Replicate, Shard

Constants = Mapping[str, torch.Tensor]

REALS = "conversions between floating-point types are identities: roundings may differ"
"""What the verdict takes for granted in every graph."""


@collection_paused()
def check_single_device(
    single: SpmdGraph,
    parallel: SpmdGraph,
    inputs: Mapping[str, Declared] | None = None,
    constants: Sequence[Constants] = ({}, {}),
    *,
    simulates: bool = True,
) -> Report:
    """Return the verdict on ``parallel`` as the model ``single`` on several ranks.

    Args:
        single: the model on one device.
        parallel: the model as each rank has it.
        inputs: name of an input of ``parallel``, or a pattern -> how it is cut out of the input
            of the same name of ``single``; those left out as their shapes say.
        constants: of both, placeholder -> tensor that the model's code made, the same on all ranks.
        simulates: look for a counterexample where outputs are not shown equal.

    Raises:
        PlacementError: inputs that do not correspond.
    """
    start = time.perf_counter()
    count = len(single.graph.nodes) + len(parallel.graph.nodes)

    def report(verdict: Verdict, explanation: str, **more: Any) -> Report:
        seconds = time.perf_counter() - start
        return Report(verdict, explanation, values=count, seconds=seconds, **more)

    if single.mesh.size != 1:
        raise PlacementError(
            "the model on one device has several ranks",
            found=repr(single.mesh),
            remedy="capture it without a process group, or for one rank",
        )
    try:
        if axes := replicated_axes(inputs or {}):
            declared = of_one(inputs or {}, axes)
            reports = [
                check_single_device(single, one, declared, constants, simulates=simulates)
                for one in replicas(parallel, axes)
            ]
            return next((x for x in reports if not x.verdict.runs), reports[0])
        graphs = _prepared("single", single), _prepared("parallel", parallel)
        comparison = _Comparison.of(*graphs, inputs or {}, constants)
    except PlacementError:
        raise
    except CommPlanError as error:
        verdict = Verdict.UNPROVED if isinstance(error, UnprovedError) else Verdict.INVALID
        return report(verdict, str(error))
    premises = comparison.premises()
    wrong = comparison.wrong_output()
    if wrong is None:
        return report(
            Verdict.EQUIVALENT,
            f"all {len(comparison.outputs)} outputs are the same function of the inputs on each of "
            f"{parallel.mesh.size} ranks as on one device, over the reals",
            premises=premises,
        )
    where = str(first_difference(comparison.source, comparison.target, wrong[1]))
    number = [pair for pair, _ in comparison.outputs].index(wrong)
    try:
        if not simulates:
            raise CommPlanError("Not simulated: not asked for")
        one = refute.counterexample(
            *graphs, comparison.layouts, comparison.outputs, comparison.tensors
        )
    except CommPlanError as error:
        why = f"output {number} differs: {where}. {error.what}"
        return report(Verdict.UNPROVED, why, premises=premises)
    if one is not None:
        return report(
            Verdict.NOT_EQUIVALENT,
            f"output {one.output} on rank {one.rank} differs by {one.difference:.3g} (relative) "
            f"for the inputs of seed {one.seed}: on one device {one.source}, here {one.target}. "
            f"First difference: {where}",
            counterexample=one,
            premises=premises,
        )
    return report(
        Verdict.UNPROVED,
        f"output {number} is not shown equal: {where}. No counterexample in {refute.SEEDS} "
        "simulations",
        premises=premises,
    )


def layouts_of(
    single: SpmdGraph,
    parallel: SpmdGraph,
    inputs: Mapping[str, Declared] | None = None,
    constants: Constants | None = None,
) -> dict[str, Layout]:
    """Return what ranks hold of each input but ``constants``: as declared, otherwise by shape."""
    cuts = Cuts()
    before, after = Dimensions(single, cuts), Dimensions(parallel, cuts)
    layouts = _input_layouts(before, after, inputs or {}, constants or {})
    return {str(node.target): own for node, (_, own) in layouts.items()}


def _prepared(side: str, graph: SpmdGraph) -> SpmdGraph:
    """Return a graph as the model reads it: compositions written out, over the reals."""
    try:
        well_formed(graph.graph)
        check_numbers(graph.graph, graph.mesh)
        whole = expanded(with_gathered_rows(graph))[0]
        check_metadata(whole, whole)
    except UnprovedError:
        raise
    except CommPlanError as error:
        raise CommPlanError(f"{side}: {error}") from error
    return real_normal_form(with_rows_in_order(with_softmax_written_out(without_writes(whole))))


@dataclass(frozen=True)
class _Comparison:
    """Both graphs, evaluated.

    Attributes:
        source: of the model on one device.
        target: of the parallel one.
        layouts: input of the parallel graph -> input of the other, and what ranks hold of it.
        outputs: pairs of outputs, and what ranks hold of them.
        shared: what both evaluations share.
        tensors: of both graphs, inputs whose values are there.
    """

    source: Evaluation
    target: Evaluation
    layouts: Mapping[fx.Node, tuple[fx.Node, Layout]]
    outputs: list[tuple[tuple[fx.Node, fx.Node], Layout]]
    shared: Shared
    tensors: Sequence[Mapping[fx.Node, torch.Tensor]]

    @staticmethod
    def of(
        single: SpmdGraph,
        parallel: SpmdGraph,
        declared: Mapping[str, Declared],
        constants: Sequence[Constants],
    ) -> _Comparison:
        """Find where dimensions are cut, and evaluate both graphs."""
        cuts, shared = Cuts(), Shared()
        before, after = (Dimensions(graph, cuts) for graph in (single, parallel))
        layouts = _input_layouts(before, after, declared, constants[1])
        outputs = [
            ((u, v), layout(f"output {i}", before.shape(u), after.shape(v), parallel.mesh))
            for i, (u, v) in enumerate(_results(before, after))
        ]
        for (u, v), own in [*(((s, t), own) for t, (s, own) in layouts.items()), *outputs]:
            _relate(cuts, before.of(u), after.of(v), own)
        cuts.solve()
        tensors = [
            _made(graph, own) for graph, own in zip((single, parallel), constants, strict=True)
        ]

        def drawn(node: fx.Node) -> Field:
            tensor = tensors[0].get(node)
            return _drawn(before, node) if tensor is None else _constant(before, node, tensor)

        source = Evaluation(before, drawn, shared, defines=True)

        def leaf(node: fx.Node) -> Field:
            if (tensor := tensors[1].get(node)) is not None:
                return _constant(after, node, tensor)
            if node not in layouts:
                return _drawn_per_rank(after, node)
            twin, own = layouts[node]
            return cut_out(source.data(twin), before, twin, own, parallel.mesh.size)

        target = Evaluation(after, leaf, shared, defines=False)
        return _Comparison(source, target, layouts, outputs, shared, tensors)

    def wrong_output(self) -> tuple[fx.Node, fx.Node] | None:
        """Return the first pair of outputs that is not shown equal."""
        ranks = self.target.ranks
        for (u, v), own in self.outputs:
            wanted = cut_out(self.source.data(u), self.source.dimensions, u, own, ranks)
            result = self.target.data(v)
            if wanted.shape[1:] != result.shape[1:] or not bool((wanted == result).all()):
                return u, v
        return None

    def premises(self) -> tuple[str, ...]:
        """Return what the comparison takes for granted."""
        named = {str(node.target): own for node, (_, own) in self.layouts.items()}
        shown = [
            name for name, own in named.items() if " of each" in str(own) or "blocks" in str(own)
        ]
        lines = [f"inputs are held as declared or as their shapes say: {listed(named, shown)}"]
        outputs = {f"output {i}": own for i, (_, own) in enumerate(self.outputs) if own.cuts}
        if outputs:
            lines.append(f"outputs likewise: {listed(outputs, outputs)}")
        inputs = [n for n in self.target.spmd.graph.nodes if n.op in ("placeholder", "get_attr")]
        alone = [n for n in inputs if n.users and n not in {**self.layouts, **self.tensors[1]}]
        if alone:
            names = ", ".join(str(n.target) for n in alone)
            lines.append(f"inputs that nothing on one device corresponds to: {names}")
        return (*lines, *self.shared.premises, REALS)


def _relate(cuts: Cuts, whole: tuple[int, ...], part: tuple[int, ...], own: Layout) -> None:
    for d, pair in enumerate(zip(whole, part, strict=True)):
        if d not in own.cuts:
            cuts.unite(pair)
            continue
        for segments in dict.fromkeys(own.cuts[d]):
            at = 0
            for start, length in segments:
                cuts.relate(Range(*pair, start, at, length, cuts=True))
                at += length


def _drawn(dimensions: Dimensions, node: fx.Node) -> Field:
    """Return random blocks of an input of the model on one device."""
    sizes = tuple(map(len, dimensions.blocks(node)))
    keys = [f"leaf {node.target} {at}".encode() for at in np.ndindex(*sizes)]
    return grid.shaped(algebra.random_vectors([keys]), sizes)


def _made(graph: SpmdGraph, constants: Constants) -> dict[fx.Node, torch.Tensor]:
    """Return the inputs whose values are there: constants of the code, attributes."""
    tensors: dict[fx.Node, torch.Tensor] = {}
    for node in graph.graph.nodes:
        value = constants.get(str(node.target)) if node.op == "placeholder" else None
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(graph.root)
        if isinstance(value, torch.Tensor) and not is_fake(value):
            tensors[node] = value
    return tensors


def _constant(dimensions: Dimensions, node: fx.Node, value: torch.Tensor) -> Field:
    """Return the blocks of a tensor that is there: equal ones are equal, whatever their names."""
    sizes = tuple(map(len, dimensions.blocks(node)))
    first = value.flatten()[0].item() if value.numel() else 0
    if isinstance(first, int | float) and math.isfinite(first) and bool((value == first).all()):
        number = algebra.element(Fraction(first))
        return np.broadcast_to(number, (1, *sizes, *grid.CELL)).copy()
    content = hashlib.sha256(repr((value.dtype, value.shape)).encode())
    content.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    keys = [content.digest() + repr(at).encode() for at in np.ndindex(*sizes)]
    return grid.shaped(algebra.random_vectors([keys]), sizes)


def _drawn_per_rank(dimensions: Dimensions, node: fx.Node) -> Field:
    sizes = tuple(map(len, dimensions.blocks(node)))
    ranks = dimensions.graph.mesh.size
    keys = [
        [f"only on ranks: {node.target} {r} {at}".encode() for at in np.ndindex(*sizes)]
        for r in range(ranks)
    ]
    return grid.shaped(algebra.random_vectors(keys), sizes)


def cut_out(whole: Field, dimensions: Dimensions, node: fx.Node, own: Layout, ranks: int) -> Field:
    """Return what every rank holds of a value on one device."""
    for dim, segments in own.cuts.items():
        offsets = dimensions.cuts.offsets(dimensions.of(node)[dim])
        by_rank = []
        for cells, ranges in zip(algebra.of_ranks(whole, ranks), segments, strict=True):
            taken = list[int]()
            for start, length in ranges:
                if start not in offsets or start + length not in offsets:
                    ends = f"{start} and {start + length}"
                    raise UnprovedError(f"%{node.name} cannot be cut at {ends}")
                taken += range(offsets.index(start), offsets.index(start + length))
            by_rank.append(np.take(cells, taken, axis=dim))
        whole = np.stack(by_rank)
    return algebra.alike(whole)


def _results(before: Dimensions, after: Dimensions) -> list[tuple[fx.Node, fx.Node]]:
    """Return the pairs of tensors that both models return; numbers beside them must agree."""
    listed = [access.results(access.output(one.graph.graph)) for one in (before, after)]
    numbers = [
        [one.number(access.value(n)) for n in own if not access.is_operand(n)]
        for one, own in zip((before, after), listed, strict=True)
    ]
    tensors = [[n for n in own if access.is_operand(n)] for own in listed]
    if numbers[0] != numbers[1] or len(tensors[0]) != len(tensors[1]):
        texts = [f"{len(own)} tensors" + "".join(f", {n}" for n in counts)
                 for own, counts in zip(tensors, numbers, strict=True)]  # fmt: skip
        raise CommPlanError(
            "the models return different things",
            found=f"{texts[0]} on one device, {texts[1]} on each rank",
        )
    return list(zip(*tensors, strict=True))


def _input_layouts(
    before: Dimensions, after: Dimensions, declared: Mapping[str, Declared], constants: Constants
) -> dict[fx.Node, tuple[fx.Node, Layout]]:
    """Return what ranks hold of each input, but ``constants``, that one device has too."""
    single, parallel = before.graph, after.graph
    named = by_input(declared, input_names(parallel.graph), "parallel model")  # type: ignore[arg-type]
    nodes = [n for n in single.graph.nodes if n.op in ("placeholder", "get_attr")]
    by_name = {name: n for n in nodes for name in (access.state_key(n), str(n.target)) if name}
    layouts: dict[fx.Node, tuple[fx.Node, Layout]] = {}
    for node in parallel.graph.nodes:
        if node.op not in ("placeholder", "get_attr") or not access.is_operand(node):
            continue
        name = str(node.target)
        twin = by_name.get(name) or by_name.get(access.state_key(node))
        if twin is None or name in constants:
            continue
        shapes = before.shape(twin), after.shape(node)
        own = layout(name, *shapes, parallel.mesh, named.get(name) or _placed(parallel, name))
        if own.dim is not None and name not in named:
            sizes = _packed(before, after, twin, node, own.dim)
            packed = None if sizes is None else Packed(own.dim, sizes)
            own = layout(name, *shapes, parallel.mesh, packed)
        layouts[node] = twin, own
    return layouts


def _placed(graph: SpmdGraph, name: str) -> Mapping[str, Placement] | None:
    """Return over which axes an input is sharded, where the graph says so and shapes may not."""
    placed = dict(zip(graph.mesh.axes, graph.inputs[name], strict=True))
    says = all(isinstance(p, Replicate | Shard) for p in placed.values())
    several = sum(n > 1 for n in graph.mesh.axes.values()) > 1
    return placed if says and several and set(placed.values()) != {Replicate()} else None


def _packed(
    before: Dimensions, after: Dimensions, twin: fx.Node, node: fx.Node, dim: int
) -> tuple[int, ...] | None:
    """Return sizes into which both models split what becomes of a dimension, if they do."""
    whole, part = before.splits(before.of(twin)[dim]), after.splits(after.of(node)[dim])
    count = before.shape(twin)[dim] // after.shape(node)[dim]
    for sizes in whole:
        if all(s % count == 0 for s in sizes) and tuple(s // count for s in sizes) in part:
            return sizes
    return None
