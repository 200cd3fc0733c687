"""The graphs that the public functions are given."""

from __future__ import annotations

import warnings

import torch
from torch import fx
from torch.export import ExportedProgram

from compiler.analysis.undeclared_inputs import undeclared
from compiler.capture.export import functional_program
from compiler.ir.declared_inputs import Inputs
from compiler.ir.graph import SpmdGraph


def functional(program: fx.GraphModule | ExportedProgram) -> fx.GraphModule:
    """A program's graph with all of its tensors as inputs; what is not a program as it is."""
    if not isinstance(program, ExportedProgram):
        return program
    module: fx.GraphModule = functional_program(program).graph_module
    return module


def constants_of(program: fx.GraphModule | ExportedProgram) -> dict[str, torch.Tensor]:
    """Return the tensors that a program's own code made, by placeholder; none of graphs."""
    if not isinstance(program, ExportedProgram):
        return {}
    lifted = program.graph_signature.inputs_to_lifted_tensor_constants
    tensors = {name: program.constants[key] for name, key in lifted.items()}
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def warn_undeclared(graph: SpmdGraph, inputs: Inputs | None) -> None:
    """Warn the caller of the public function that calls this; see ``undeclared``."""
    if (warning := undeclared(graph, inputs)) is not None:
        warnings.warn(warning, stacklevel=3)
