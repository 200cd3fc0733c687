"""Check two graphs against each other."""

from __future__ import annotations

from torch import fx
from torch.export import ExportedProgram

from compiler.check import Report, Verdict, check
from compiler.errors import CommPlanError, PlacementError
from compiler.ir.declared_inputs import Inputs
from compiler.ir.graph import check_arguments, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.optimize.source import functional, warn_undeclared


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
    check_arguments(mesh, *both, inputs=inputs)
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
