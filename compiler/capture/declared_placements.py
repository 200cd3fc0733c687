"""Placements that a model declares for its parameters: DTensor specs, or a ``tp_plan``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from torch import nn
from torch.distributed import tensor as dtensor
from torch.distributed.tensor import DTensor

from compiler.capture.trace import Cut, State, StateKind, Traced
from compiler.errors import PlacementError
from compiler.ir.declared_inputs import pattern
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Partial, Placement, Replicate, Shard, Varying

Declared = dict[str, dict[str, Placement]]
"""Key of a tensor of the model -> axis -> placement; axes left out are Replicate."""


STYLES: Mapping[str, Callable[[str, int], Placement]] = {
    "colwise": lambda key, rank: Shard(max(rank - 2, 0)),
    "colwise_gather_output": lambda key, rank: Shard(max(rank - 2, 0)),
    "rowwise": lambda key, rank: Replicate() if key.endswith("bias") else Shard(rank - 1),
    "embedding_rowwise": lambda key, rank: Shard(0),
    "grouped_gemm": lambda key, rank: Shard(0),
    "replicate": lambda key, rank: Replicate(),
}
"""Style -> placement of a tensor by its key and number of dimensions.

A linear layer's weight is [out, in]; column-parallel shards out, and its bias with it. The bias of
a row-parallel layer is added after the reduction: every rank holds it whole.
"""


def cut_of(model: nn.Module) -> Cut:
    """Return how the model's DTensors are cut, while their process groups exist."""
    placements_of: dict[str, tuple[tuple[str, Placement], ...]] = {}
    tables = (model.named_parameters, model.named_buffers)
    for key, tensor in itertools.chain(*(named(remove_duplicate=False) for named in tables)):
        if isinstance(tensor, DTensor):
            placements_of[key] = dims_of(tensor)
    return placements_of


def dims_of(tensor: DTensor) -> tuple[tuple[str, Placement], ...]:
    """Return per dimension of a DTensor's device mesh the process group and the placement."""
    return tuple(
        (str(tensor.device_mesh.get_group(dim).group_name), _from_dtensor(placement))
        for dim, placement in enumerate(tensor.placements)
    )


def declared_by(
    model: object, trace: Traced, mesh: Mesh, axis_of: Callable[[str], str | None]
) -> tuple[Declared, tuple[str, ...]]:
    """Return the placements of a model's DTensors or, without any, by its ``tp_plan``.

    Args:
        model: the model.
        trace: its trace.
        mesh: of the ranks.
        axis_of: process group name -> axis of the mesh, None if it is not an axis.

    Returns:
        The placements, and a remark for each pattern of the plan that names nothing.

    Raises:
        PlacementError: an unknown style, or a mesh of several axes none of which is ``tp``.
    """
    placements = {
        key: {axis: p for name, p in dims if (axis := axis_of(name)) is not None}
        for key, dims in trace.cut.items()
    }
    plan = getattr(model, "tp_plan", None) if isinstance(model, nn.Module) else None
    if placements or not plan or not isinstance(plan, Mapping):
        return placements, ()
    return _by_plan(plan, mesh, trace.state)


def groups_of(cut: Cut) -> set[str]:
    """Return the names of the process groups that DTensors are cut over."""
    return {name for dims in cut.values() for name, _ in dims}


def _from_dtensor(placement: dtensor.Placement) -> Placement:
    if type(placement) is dtensor.Shard:
        return Shard(placement.dim)
    if isinstance(placement, dtensor.Partial):
        return Partial(str(placement.reduce_op))
    return Replicate() if isinstance(placement, dtensor.Replicate) else Varying()


def _by_plan(
    plan: Mapping[str, str], mesh: Mesh, state: Mapping[str, State]
) -> tuple[Declared, tuple[str, ...]]:
    """Return placements by a plan of name patterns; what no pattern names is declared Replicate.

    A pattern names a tensor, or a module and means its weight and bias; ``*`` stands for one part
    of a dotted name. It speaks of parameters, and of buffers that checkpoints hold.
    """
    axis = _tensor_axis(mesh)
    tensors = [s for s in state.values() if s.kind in (StateKind.PARAMETER, StateKind.BUFFER)]
    placements: Declared = {state_tensor.key: {} for state_tensor in tensors}
    remarks: list[str] = []
    for text, style in plan.items():
        if style not in STYLES:
            raise PlacementError(
                f"tp_plan uses an unknown style for {text!r}",
                found=repr(style),
                remedy=f"use one of {', '.join(STYLES)}, or pass inputs={{name: placement}}",
            )
        matches = pattern(text, r"(\.(weight|bias))?").fullmatch
        named = [state_tensor for state_tensor in tensors if matches(state_tensor.key)]
        if not named:
            remarks.append(f"tp_plan: {text!r} names no tensor that the graph reads")
        for state_tensor in named:
            placements[state_tensor.key] = {
                axis: STYLES[style](state_tensor.key, state_tensor.tensor.dim())
            }
    return placements, tuple(remarks)


def _tensor_axis(mesh: Mesh) -> str:
    """Return the axis that a tp_plan is about."""
    wide = [axis for axis, extent in mesh.axes.items() if extent > 1]
    if len(wide) <= 1:
        return (wide or list(mesh.axes))[0]
    if "tp" in wide:
        return "tp"
    raise PlacementError(
        "tp_plan does not say which axis it is about",
        found=f"a mesh with axes {wide}",
        remedy="name the tensor-parallel axis 'tp', or pass inputs={name: {axis: placement}}",
    )
