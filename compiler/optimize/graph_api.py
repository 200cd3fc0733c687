"""Optimize a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from compiler.analysis.layers import LayerMetadata, layer_metadata
from compiler.analysis.reductions import reduction_of
from compiler.analysis.replication import replicated_over, replication
from compiler.analysis.row_shards import only_own_rows_read
from compiler.analysis.statistics import Statistics, statistics
from compiler.check import Report, Verdict, check
from compiler.cost import Launch, Machine
from compiler.errors import CommPlanError, VerificationError
from compiler.garbage import collection_paused
from compiler.ir import access
from compiler.ir.collectives import WAIT, Kind, check_numbers, collective
from compiler.ir.comm_plan import CommPlan
from compiler.ir.declared_inputs import Inputs
from compiler.ir.graph import SpmdGraph, spmd_graph, well_formed
from compiler.ir.mesh import Mesh
from compiler.ir.remark import Remark, RemarkKind
from compiler.optimize.source import functional, warn_undeclared
from compiler.optimize.validation import launch_of, machine_of
from compiler.pipeline import Observer, PassRecord, Pipeline
from compiler.plan.decision import Decision
from compiler.plan.planner import Planner
from compiler.plan.planner_options import POLICIES, PlannerOptions
from compiler.runtime.process_groups import bound
from compiler.runtime.rank_agreement import ranks_of
from passes import PlaceReductions

UNVERIFIED = "verification was switched off: the graph is unproved"


@dataclass(frozen=True)
class OptimizationResult:
    """What became of a graph.

    Attributes:
        plan: what was decided.
        report: the checker's report; None if verification was switched off.
        remarks: what was done, what was not and why.
        before: collectives of the source.
        after: collectives of the result.
        spmd: the rewritten graph with its mesh and placements.
        records: the passes that ran.
        seconds: wall time per stage: canonicalize, plan, rewrite, check.
    """

    plan: CommPlan
    report: Report | None
    remarks: tuple[Remark, ...]
    before: Statistics
    after: Statistics
    spmd: SpmdGraph
    records: tuple[PassRecord, ...] = field(repr=False, default=())
    seconds: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten graph, a new module; attributes are shared with the source.

        It runs in process groups of the names that it gives, with the numbers of one rank where it
        has rank constants; ``bind`` makes it this rank's.
        """
        return _as_the_source(self.spmd)

    @property
    def verdict(self) -> Verdict:
        """The checker's verdict; UNPROVED where verification was switched off."""
        return self.report.verdict if self.report else Verdict.UNPROVED

    def bind(self, groups: Mapping[str, Any] | None = None, *, group: Any = None) -> fx.GraphModule:
        """``graph_module`` with the groups and numbers of this rank, called as it is.

        All ranks call it together.

        Args:
            groups: axis, or group name of the mesh -> process group; those left out are the
                groups of that name, or are made.
            group: process group of all ranks of the mesh, in its order; default: all ranks of the
                job.

        Raises:
            MeshError: no process group, a name that does not resolve, or a process group of other
                ranks than the mesh says.
        """
        module = bound(self.spmd, groups or {}, ranks_of(group))
        return _as_the_source(self.spmd.with_graph(module.graph, {}))


def optimize_graph(
    gm: fx.GraphModule | ExportedProgram,
    *,
    mesh: Mesh,
    inputs: Inputs | None = None,
    machine: str | Path | Machine | None = "auto",
    launch: str = "graph",
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
            any dtype; or an ExportedProgram, whose tensors and written values are inputs and
            outputs of the result. Not changed.
        mesh: resolves the group names in the graph; no process group is needed.
        inputs: name of a placeholder or parameter, or a pattern such as ``layers.*.weight``, in
            which ``*`` stands for one part -> placement, or {axis: placement}. Left out,
            parameters are Varying, also where ``run_decompositions`` or AOTAutograd made them
            placeholders; other placeholders are Replicate.
        machine: what plans are compared on: a name (``commplan machine list``), the path of a
            machine file, or a ``Machine``. "auto" and None: none, plans compare by payload bytes,
            then by number of collectives.
        launch: how kernels are launched on it, "eager" or in a CUDA "graph".
        policy: one of ``compiler.plan.planner_options.POLICIES``: "cost", "merge", …
        verify: check the result; unverified graphs have verdict UNPROVED.
        layers: kind of each decoder layer, "dense" or "sparse"; default: read off the graph.
        tokens: what symbolic sizes count as when plans are compared; default: their hints.
        observers: called after every pass.
        bisect_limit: run only the first so many passes.
        check_each: check after every pass that changed something.
        widen: reductions may move below conversions to a wider type, where that pays although
            the reduced tensor has more bytes.

    Raises:
        GraphError, MeshError, PlacementError: the arguments are not well-formed.
        MachineError: no such machine, or one that does not know a collective of the graph.
        CommPlanError: no such policy or way to launch, tokens or a bisect_limit that are no
            count, or observers that cannot be called.
        VerificationError: the result could not be shown equivalent; nothing is returned.

    Warns:
        UndeclaredInputs: nothing says which inputs differ between the ranks of a collective.
    """
    check_policy(policy)
    check_tokens(tokens)
    check_pipeline(observers, bisect_limit)
    known_machine, how = machine_of(machine), launch_of(launch)
    source = spmd_graph(functional(gm), mesh, inputs)
    well_formed(source.graph)
    warn_undeclared(source, inputs)
    check_numbers(source.graph, source.mesh)
    return optimize_spmd(
        source,
        policy=policy,
        verify=verify,
        layers=layer_metadata(source, layers=layers),
        machine=known_machine,
        launch=how,
        tokens=tokens,
        pipeline=Pipeline(observers, bisect_limit, check_each),
        widen=widen,
    )


def check_policy(policy: str) -> None:
    """Raise CommPlanError for a policy there is not."""
    if policy not in POLICIES:
        raise CommPlanError(
            "unknown policy", found=repr(policy), remedy=f"one of {', '.join(POLICIES)}"
        )


def check_tokens(tokens: object) -> None:
    """Raise CommPlanError unless ``tokens`` is a count or None."""
    if tokens is not None and not _is_count(tokens, least=1):
        raise CommPlanError(
            "tokens= must be a count of tokens",
            found=repr(tokens),
            remedy="an integer of >= 1, or None",
        )


def check_pipeline(observers: object, bisect_limit: object) -> None:
    """Raise CommPlanError unless passes can be told to these, and so many can be run."""
    if not isinstance(observers, Sequence) or not all(map(callable, observers)):
        raise CommPlanError(
            "observers= must be a sequence of functions",
            found=repr(observers),
            remedy="functions of one PassRecord, as in observers=[print]",
        )
    if bisect_limit is not None and not _is_count(bisect_limit, least=0):
        raise CommPlanError(
            "bisect_limit= must be a number of passes",
            found=repr(bisect_limit),
            remedy="an integer of >= 0, or None",
        )


def _is_count(number: object, *, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def optimize_spmd(
    source: SpmdGraph,
    *,
    policy: str,
    verify: bool,
    tokens: int | None,
    pipeline: Pipeline,
    layers: Sequence[LayerMetadata] | None = None,
    machine: Machine | None = None,
    launch: Launch = Launch.GRAPH,
    widen: bool = False,
    join: bool = True,
) -> OptimizationResult:
    """As ``optimize_graph``, for a graph known to be well-formed; see ``PlannerOptions``."""
    metadata = layer_metadata(source) if layers is None else layers
    options = PlannerOptions(policy, machine, launch, widen, join)
    with collection_paused():
        planner = Planner(source, options, metadata, pipeline)
        return finished(planner, planner.decide(tokens), tokens=tokens, verify=verify)


def finished(
    planner: Planner, decided: Decision, *, tokens: int | None, verify: bool
) -> OptimizationResult:
    """The planned graph, written and proved.

    A step that is not shown to be right is withdrawn, and what comes after it decided anew.

    Raises:
        VerificationError: not even the source could be shown equivalent to itself.
    """
    source, policy, clock = planner.source, planner.options.policy, planner.clock
    written = planner.write(decided)
    clock.lap("rewrite")
    report = check(source, written.graph) if verify else None
    clock.lap("check")
    if report is not None and not report.verdict.runs:
        records = written.pipeline.records
        if not records:
            raise VerificationError(
                f"the rewritten graph is {report.verdict}: nothing was optimized",
                found=report.explanation,
                remedy="report this; policy='off' leaves the graph as it is",
            )
        wrong = _first_wrong(source, records)
        why = f"{records[wrong].name} withdrawn: the graph would be "
        why += f"{report.verdict}: {report.explanation}"
        fewer = planner.without(decided, wrong)
        result = finished(fewer, fewer.decide(tokens), tokens=tokens, verify=verify)
        return replace(result, remarks=(*result.remarks, Remark(RemarkKind.MISSED, "", why)))
    return OptimizationResult(
        plan=decided.plan(policy, tokens),
        report=report,
        remarks=(
            *_general_remarks(source, policy, verify=verify),
            *_still_true(written.pipeline.records),
            *(_of_the_same(written.graph) if policy != "off" else ()),
            *(_unscattered(written.graph) if policy != "off" else ()),
            *_unsent(planner, decided, tokens),
        ),
        before=statistics(source.graph, tokens),
        after=statistics(written.graph.graph, tokens),
        spmd=written.graph,
        records=tuple(written.pipeline.records),
        seconds=dict(clock.seconds),
    )


def _first_wrong(source: SpmdGraph, records: Sequence[PassRecord]) -> int:
    """Position of a pass whose graph is not shown to be equivalent, but its operand is: bisected.

    The graph after all passes is known not to be.
    """
    low, high = -1, len(records) - 1
    while high - low > 1:
        middle = (low + high) // 2
        runs = check(source, records[middle].graph).verdict.runs
        low, high = (middle, high) if runs else (low, middle)
    return high


def _as_the_source(graph: SpmdGraph) -> fx.GraphModule:
    """The graph as a module that holds all that the source holds, and is called as it is."""
    root, like_source = graph.root, graph.module
    if isinstance(root, fx.GraphModule):
        if type(root.graph._codegen) is not fx.graph.CodeGen:  # arguments are trees
            like_source = graph.own_copy().module
            like_source.graph.set_codegen(root.graph._codegen)
            like_source.recompile()
        like_source.meta.update(root.meta)
    for path, tensor in root.state_dict(keep_vars=True).items():
        owner: nn.Module = like_source
        *modules, name = path.split(".")
        for module in modules:
            if not hasattr(owner, module):
                owner.add_module(module, nn.Module())
            owner = owner.get_submodule(module)
        if hasattr(owner, name):
            continue
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(name, tensor)
        else:
            owner.register_buffer(name, tensor)
    return like_source


def _still_true(records: Sequence[PassRecord]) -> Iterator[Remark]:
    """Remarks of all passes, but of those reductions kept that a later one moved or scattered."""
    moved: list[set[tuple[str, str]]] = [set()]
    for record in reversed(records):
        passed = {(r.value, r.layer) for r in record.remarks if r.kind is RemarkKind.PASSED}
        moved.append(moved[-1] | passed)
    for record, later in zip(records, reversed(moved[:-1]), strict=True):
        for remark in record.remarks:
            kept = record.name == PlaceReductions.name and remark.kind is RemarkKind.MISSED
            if not kept or (remark.value, remark.layer) not in later:
                yield remark


def _of_the_same(graph: SpmdGraph) -> Iterator[Remark]:
    """Reductions of what ranks hold alike: no rank owes another a term, so no law moves them."""
    same = replication(graph)
    for node in graph.graph.nodes:
        what = collective(node) if node.target is WAIT else None
        reduction = reduction_of(graph, node) if what else None
        if what is None or reduction is None or reduction.groups.axis_size == 1:
            continue
        if replicated_over(same[what.operand], reduction.groups):
            why = (
                f"{what.kind} kept: by the placements of the graph's inputs its operand is the "
                "same on every rank; declare inputs that differ in inputs= (--input)"
            )
            layer = access.layer_path(what.operand)
            yield Remark(RemarkKind.MISSED, f"%{node.name}", why, layer)


def _unscattered(graph: SpmdGraph) -> Iterator[Remark]:
    """All_reduces that are left although ranks read no more than their own rows."""
    for groups in dict.fromkeys(graph.mesh.groups.values()):
        own = only_own_rows_read(graph, groups)
        for node in filter(own.__contains__, graph.graph.nodes):  # sets have orders of their own
            what = collective(node)
            if what is not None and what.kind is Kind.ALL_REDUCE:
                why = f"{what.kind} kept: the plan shares no rows of which ranks read their own"
                layer = access.layer_path(what.operand)
                yield Remark(RemarkKind.MISSED, f"%{node.name}", why, layer)


def _unsent(planner: Planner, decided: Decision, tokens: int | None) -> Iterator[Remark]:
    """Experts whose rows are not sent to the ranks that own them."""
    for node, why in planner.unsent(decided, tokens):
        what = collective(node)
        layer = access.layer_path(what.operand) if what else ""
        yield Remark(
            RemarkKind.MISSED, f"%{node.name}", f"rows are not sent to experts: {why}", layer
        )


def _general_remarks(source: SpmdGraph, policy: str, *, verify: bool) -> tuple[Remark, ...]:
    notes = []
    if source.mesh.size == 1:
        notes.append("world size 1: no rank owes another a sum, nothing to optimize")
    elif not statistics(source.graph).collectives:
        notes.append("the graph has no collectives, nothing to optimize")
    if policy == "off":
        notes.append("policy 'off': reductions stay where they are")
    if not verify:
        notes.append(UNVERIFIED)
    without_rule = sorted({str(n.target) for n, m in source.meanings.items() if m is None})
    if without_rule:
        notes.append(f"ops without a rule, left alone: {', '.join(without_rule)}")
    return tuple(Remark(RemarkKind.NOTE, "", why) for why in notes)
