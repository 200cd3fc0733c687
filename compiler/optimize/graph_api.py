"""Optimize a graph; check two graphs against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import fx
from torch.export import ExportedProgram

from compiler.analysis.layers import LayerMetadata, layer_metadata
from compiler.check import Report, Verdict, check
from compiler.cost import Machine
from compiler.errors import CommPlanError, PlacementError
from compiler.ir.collectives import check_numbers
from compiler.ir.declared_inputs import Inputs
from compiler.ir.graph import check_given, spmd_graph, well_formed
from compiler.ir.mesh import Mesh
from compiler.optimize.optimizer import optimize
from compiler.optimize.result import OptimizationResult
from compiler.optimize.source import functional, warn_undeclared
from compiler.optimize.validation import check_pipeline, check_tokens, planner_options
from compiler.pipeline import Observer, Pipeline
from compiler.plan.planner import Planner


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
    options = planner_options(policy, machine, launch, widen=widen)
    check_tokens(tokens)
    check_pipeline(observers, bisect_limit)
    source = spmd_graph(functional(gm), mesh, inputs)
    well_formed(source.graph)
    warn_undeclared(source, inputs)
    check_numbers(source.graph, source.mesh)
    planner = Planner(
        source,
        options,
        layer_metadata(source, layers=layers),
        pipeline=Pipeline(observers, bisect_limit, check_each),
    )
    return optimize(planner, planner.decide(tokens), tokens=tokens, verify=verify)


def check_equivalence(
    source: fx.GraphModule | ExportedProgram,
    target: fx.GraphModule | ExportedProgram,
    *,
    mesh: Mesh,
    inputs: Inputs | None = None,
) -> Report:
    """Whether ``target`` computes the same function as ``source`` on every rank.

    Args:
        source: as in ``optimize_graph``.
        target: likewise; placeholders correspond by position, attributes by name.
        mesh: resolves the group names of both.
        inputs: placements of the source's inputs, as in ``optimize_graph``.

    Returns:
        The report; ``.verdict`` is one of IDENTICAL, EQUIVALENT, NOT_EQUIVALENT, UNPROVED and
        INVALID. An ill-formed graph is a verdict, not an error.

    Raises:
        GraphError, MeshError: no graph modules, or no mesh.
        PlacementError: ``inputs`` does not fit the source.

    Warns:
        UndeclaredInputs: as ``optimize_graph``.
    """
    both = functional(source), functional(target)
    check_given(mesh, *both, inputs=inputs)
    graphs = []
    for side, gm, declared in zip(("source", "target"), both, (inputs, None), strict=True):
        try:
            graphs.append(spmd_graph(gm, mesh, declared))
        except PlacementError:
            raise
        except CommPlanError as error:
            return Report(Verdict.INVALID, f"{side}: {error}")
    warn_undeclared(graphs[0], inputs)
    return check(*graphs)
