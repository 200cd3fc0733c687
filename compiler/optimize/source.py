"""The graphs that the public functions are given."""

from __future__ import annotations

import warnings

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


def warn_undeclared(graph: SpmdGraph, inputs: Inputs | None) -> None:
    """Warn the caller of the public function that calls this; see ``undeclared``."""
    if (warning := undeclared(graph, inputs)) is not None:
        warnings.warn(warning, stacklevel=3)
