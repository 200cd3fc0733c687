"""Optimize a graph; check two graphs against each other."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch import fx

from compiler.analysis.layers import LayerMetadata, layer_metadata, layer_of
from compiler.analysis.reductions import Reduction, facts, number_of, reductions
from compiler.analysis.rows import at_hand, row_forms
from compiler.analysis.statistics import Statistics, statistics
from compiler.check import Report, Verdict, check
from compiler.errors import CommPlanError, VerificationError
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph, spmd_graph, well_formed
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement
from compiler.ir.remark import Remark, RemarkKind
from compiler.pipeline import Observer, PassRecord, Pipeline
from compiler.plan.comm_plan import CommPlan, RowStage, Stage
from compiler.plan.place_reductions import place_reductions
from compiler.plan.prices import Bytes
from compiler.plan.shard_rows import shard_rows
from passes import Canonicalize, EliminateDeadCode, OwnSlices, PlaceReductions, ShardRows

POLICIES = ("cost", "merge", "boundary", "off")
"""cost: reductions anywhere the laws allow; merge: none before the author's; boundary: merge, and
rows shared between ranks in sparse layers; off: none moved."""

UNVERIFIED = "verification was switched off: the graph is unproved"

Inputs = Mapping[str, Placement | Mapping[str, Placement]]


@dataclass(frozen=True)
class OptimizationResult:
    """What became of a graph.

    Attributes:
        graph_module: the rewritten graph, a new module; attributes are shared with the source.
        plan: what was decided.
        report: the checker's report; None if verification was switched off.
        remarks: what was done, what was not and why.
        before: collectives of the source.
        after: collectives of the result.
        spmd: the rewritten graph with its mesh and placements.
        records: the passes that ran.
        seconds: wall time per stage: canonicalize, plan, rewrite, check.
    """

    graph_module: fx.GraphModule
    plan: CommPlan
    report: Report | None
    remarks: tuple[Remark, ...]
    before: Statistics
    after: Statistics
    spmd: SpmdGraph
    records: tuple[PassRecord, ...] = field(repr=False, default=())
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The checker's verdict; UNPROVED where verification was switched off."""
        return self.report.verdict if self.report else Verdict.UNPROVED


def optimize_graph(
    gm: fx.GraphModule,
    *,
    mesh: Mesh,
    inputs: Inputs | None = None,
    machine: str = "auto",
    policy: str = "cost",
    verify: bool = True,
    layers: Sequence[LayerMetadata | str] | None = None,
    tokens: int | None = None,
    observers: Sequence[Observer] = (),
    bisect_limit: int | None = None,
    check_each: bool = False,
    widen: bool = False,
) -> OptimizationResult:
    """Place the reductions of an SPMD graph where they cost least, and prove the result.

    Args:
        gm: functional ATen and ``_c10d_functional`` calls with ``meta["val"]`` on every node, in
            any dtype. Not changed.
        mesh: resolves the group names in the graph; no process group is needed.
        inputs: placeholder or parameter name -> placement, or {axis: placement}. Placeholders
            left out are Replicate, parameters left out are Varying.
        machine: "auto"; placements are compared by payload bytes, then by number of collectives.
        policy: "cost", "merge", "boundary" or "off", see ``POLICIES``.
        verify: check the result; unverified graphs have verdict UNPROVED.
        layers: kind of each decoder layer, "dense" or "sparse"; default: read off the graph.
        tokens: what symbolic sizes count as when payloads are compared; default: their hints.
        observers: called after every pass.
        bisect_limit: run only the first so many passes.
        check_each: check after every pass that changed something.
        widen: reductions may move below conversions to a wider type, where that pays although
            the reduced tensor has more bytes.

    Raises:
        GraphError, MeshError, PlacementError: the arguments are not well-formed.
        VerificationError: the result could not be shown equivalent; nothing is returned.
    """
    check_options(machine, policy)
    source = spmd_graph(gm, mesh, inputs)
    well_formed(source.graph)
    return optimize_spmd(
        source,
        policy=policy,
        verify=verify,
        layers=layer_metadata(source, layers=layers),
        tokens=tokens,
        pipeline=Pipeline(observers, bisect_limit, check_each),
        widen=widen,
    )


def check_options(machine: str, policy: str) -> None:
    """Raise CommPlanError for a machine or policy there is not."""
    for name, found, known in (("machine", machine, ("auto",)), ("policy", policy, POLICIES)):
        if found not in known:
            raise CommPlanError(
                f"unknown {name}", found=repr(found), remedy=f"one of {', '.join(known)}"
            )


def optimize_spmd(
    source: SpmdGraph,
    *,
    policy: str,
    verify: bool,
    tokens: int | None,
    pipeline: Pipeline,
    layers: Sequence[LayerMetadata] | None = None,
    widen: bool = False,
    join: bool = True,
) -> OptimizationResult:
    """As ``optimize_graph``, for a graph that is known to be well-formed.

    ``join``: all_reduces may run over groups of ranks that the mesh has no name for yet.
    """
    known = layer_metadata(source) if layers is None else layers
    with collection_paused():
        return _optimized(
            source,
            policy=policy,
            verify=verify,
            layers=known,
            tokens=tokens,
            pipeline=pipeline,
            widen=widen,
            join=join,
        )


@contextmanager
def collection_paused() -> Iterator[None]:
    """No cyclic garbage collection within it.

    Every full collection walks all graphs that are alive: with it, time would grow with the
    square of the number of layers.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _optimized(
    source: SpmdGraph,
    policy: str,
    verify: bool,
    layers: Sequence[LayerMetadata],
    tokens: int | None,
    pipeline: Pipeline,
    widen: bool,
    join: bool,
) -> OptimizationResult:
    seconds = {"canonicalize": 0.0, "plan": 0.0, "rewrite": 0.0, "check": 0.0}
    clock = _Clock(seconds)
    graph = source.own_copy()
    for rewrite in (Canonicalize(), OwnSlices(), EliminateDeadCode()):
        graph = pipeline.run(rewrite, graph)
    clock.lap("canonicalize")
    stages: list[Stage] = []
    placed: dict[object, int] = {}
    while policy != "off" and (reduction := _next_reduction(graph, placed)) is not None:
        known = facts(graph, reduction, widen=widen, join=join)
        stage = place_reductions(graph, known, tokens=tokens, hoist=policy == "cost")
        stages.append(stage)
        clock.lap("plan")
        for step in (PlaceReductions(stage), EliminateDeadCode()):
            graph = pipeline.run(step, graph)
        placed[reduction.key] = number_of(graph)[reduction.key]
        clock.lap("rewrite")
    rows: list[RowStage] = []
    sparse = {layer.index for layer in layers if layer.kind == "sparse"}
    for group in _sharing_groups(graph) if policy != "off" else ():
        groups = graph.mesh.group(group)
        free = at_hand(graph, groups, row_forms(graph, groups))
        layered = sparse if policy == "boundary" else frozenset[int]()
        allowed = partial(_may_share, free, layered)
        share = shard_rows(graph, group, Bytes(tokens), allowed=allowed)
        if not share.shares:
            continue
        rows.append(share)
        clock.lap("plan")
        for move in (ShardRows(share), EliminateDeadCode()):
            graph = pipeline.run(move, graph)
        clock.lap("rewrite")
    report = check(source, graph) if verify else None
    clock.lap("check")
    if report is not None and not report.verdict.runs:
        raise VerificationError(
            f"the rewritten graph is {report.verdict}: nothing was optimized",
            found=report.explanation,
            remedy="report this; policy='off' leaves the graph as it is",
        )
    return OptimizationResult(
        graph_module=graph.module,
        plan=CommPlan(policy, tokens, tuple(stages), tuple(rows)),
        report=report,
        remarks=(*_general_remarks(source, policy, verify=verify), *pipeline.remarks),
        before=statistics(source.graph, tokens),
        after=statistics(graph.graph, tokens),
        spmd=graph,
        records=tuple(pipeline.records),
        seconds=seconds,
    )


def _sharing_groups(graph: SpmdGraph) -> tuple[str, ...]:
    """Names of the groups that reduce or gather, one for each set of replica groups."""
    found = {graph.mesh.group(c.group): c.group for _, c in collectives(graph.graph)}
    return tuple(name for groups, name in found.items() if groups.axis_size > 1)


def _may_share(free: Set[fx.Node], layers: Set[int], node: fx.Node) -> bool:
    return node in free or layer_of(node) in layers


def _next_reduction(graph: SpmdGraph, placed: Mapping[object, int]) -> Reduction | None:
    """The first that there are more of than when it was placed.

    Placing one may make others, over its groups and orthogonal ones together.
    """
    found = number_of(graph)
    return next((r for r in reductions(graph) if found[r.key] > placed.get(r.key, 0)), None)


class _Clock:
    """Adds the time since the last lap to a stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now


def _general_remarks(source: SpmdGraph, policy: str, *, verify: bool) -> tuple[Remark, ...]:
    found = []
    if source.mesh.size == 1:
        found.append("world size 1: no rank owes another a sum, nothing to optimize")
    elif not statistics(source.graph).collectives:
        found.append("the graph has no collectives, nothing to optimize")
    if policy == "off":
        found.append("policy 'off': reductions stay where they are")
    if not verify:
        found.append(UNVERIFIED)
    without_rule = sorted({str(n.target) for n, m in source.meanings.items() if m is None})
    if without_rule:
        found.append(f"ops without a rule, left alone: {', '.join(without_rule)}")
    return tuple(Remark(RemarkKind.NOTE, "", why) for why in found)


def check_equivalence(
    source: fx.GraphModule,
    target: fx.GraphModule,
    *,
    mesh: Mesh,
    inputs: Inputs | None = None,
) -> Report:
    """Whether ``target`` computes the same function as ``source`` on every rank.

    Args:
        source: functional ATen and ``_c10d_functional`` calls, ``meta["val"]`` on every node.
        target: likewise; placeholders correspond by position, attributes by name.
        mesh: resolves the group names of both.
        inputs: placements of the source's inputs, as in ``optimize_graph``.

    Returns:
        The report; ``.verdict`` is one of IDENTICAL, EQUIVALENT, NOT_EQUIVALENT, UNPROVED and
        INVALID. An ill-formed graph is a verdict, not an error.

    Raises:
        PlacementError: ``inputs`` does not fit the source.
    """
    graphs = []
    for side, gm in (("source", source), ("target", target)):
        given = _for_target(source, target, inputs) if side == "target" else inputs
        try:
            graphs.append(spmd_graph(gm, mesh, given))
        except CommPlanError as error:
            if error.what.startswith("inputs="):
                raise
            return Report(Verdict.INVALID, f"{side}: {error}")
    return check(*graphs)


def _for_target(
    source: fx.GraphModule, target: fx.GraphModule, inputs: Inputs | None
) -> dict[str, Placement | Mapping[str, Placement]]:
    """Placements of the source's inputs under the names the target gives them."""
    sides = [
        [str(n.target) for n in gm.graph.nodes if n.op == "placeholder"] for gm in (source, target)
    ]
    names = dict(zip(*sides, strict=False))
    attributes = {str(n.target) for n in target.graph.nodes if n.op == "get_attr"}
    given = {names.get(name, name): placement for name, placement in (inputs or {}).items()}
    return {n: p for n, p in given.items() if n in attributes or n in sides[1]}
