"""Check a tensor-parallel model against the model on one device."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx
from torch.export import ExportedProgram

from compiler.check import Report
from compiler.check.single_device import Declared, check_single_device
from compiler.ir.graph import check_arguments, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.optimize.source import constants_of, functional


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
            each by itself; ``{"dp": Varying()}`` where replicas have inputs of their own. Left out:
            what the shapes of both say, and where both models split what becomes of a sharded
            dimension into parts, ``Packed`` with those parts.

    Returns:
        The report. EQUIVALENT holds of every rank, over the reals, if ``.premises`` do.

    Raises:
        GraphError, MeshError: no graph modules, no mesh, or a group that does not resolve.
        PlacementError: inputs that do not correspond, or whose shapes say nothing.
    """
    both = functional(single), functional(parallel)
    check_arguments(mesh, *both, inputs=inputs)
    alone = Mesh(dict.fromkeys(mesh.axes, 1))
    graphs = spmd_graph(both[0], alone), spmd_graph(both[1], mesh)
    constants = constants_of(single), constants_of(parallel)
    return check_single_device(*graphs, inputs, constants)
