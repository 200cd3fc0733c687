"""Check two graphs against each other, of the same ranks or one of a single device."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx
from torch.export import ExportedProgram

from compiler.check import Report, Verdict, check
from compiler.check.single_device import Declared, check_single_device
from compiler.errors import CommPlanError, PlacementError
from compiler.ir.declared_inputs import Inputs
from compiler.ir.graph import check_given, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.optimize.source import constants_of, functional, warn_undeclared


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


def check_parallel(
    single: fx.GraphModule | ExportedProgram,
    parallel: fx.GraphModule | ExportedProgram,
    *,
    mesh: Mesh,
    inputs: Mapping[str, Declared] | None = None,
) -> Report:
    """Return whether a tensor-parallel model computes what the model on one device computes.

    ``check_equivalence`` compares graphs of the same inputs; here each rank holds a shard of what
    one device holds, so that shapes differ and ``inputs`` say how.

    Args:
        single: the model on one device, as in ``optimize_graph``.
        parallel: the model as each rank of ``mesh`` has it. Inputs and parameters correspond by
            name, outputs by position.
        mesh: resolves the group names of ``parallel``.
        inputs: name of an input or parameter of ``parallel``, or a pattern -> Shard(dim),
            Replicate(), {axis: placement}, or ``Packed`` where several tensors in one are sharded
            each by itself. Left out: what the shapes of both say, and where both models split what
            becomes of a sharded dimension into parts, ``Packed`` with those parts.

    Returns:
        The report. EQUIVALENT holds of every rank, over the reals, if ``.premises`` do.

    Raises:
        GraphError, MeshError: no graph modules, no mesh, or a group that does not resolve.
        PlacementError: inputs that do not correspond, or whose shapes say nothing.
    """
    both = functional(single), functional(parallel)
    check_given(mesh, *both, inputs=inputs)
    alone = Mesh(dict.fromkeys(mesh.axes, 1))
    graphs = spmd_graph(both[0], alone), spmd_graph(both[1], mesh)
    constants = constants_of(single), constants_of(parallel)
    return check_single_device(*graphs, inputs, constants)
