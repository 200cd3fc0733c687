"""Saved programs with another graph."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature

from compiler.errors import CommPlanError
from compiler.ir import access


def rewritten(program: ExportedProgram, module: fx.GraphModule) -> ExportedProgram:
    """``program`` with the graph of ``module``, which takes and gives the same tensors."""
    returned = [node.name for node in access.results(access.output(module.graph))]
    names = iter(returned)
    specs = []
    for spec in program.graph_signature.output_specs:
        is_value = not hasattr(spec.arg, "value")  # else a constant, no result of the graph
        arg = replace(spec.arg, name=next(names)) if is_value else spec.arg
        specs.append(replace(spec, arg=arg))
    signature = ExportGraphSignature(program.graph_signature.input_specs, specs)
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )


def saved(program: ExportedProgram) -> Iterable[bytes]:
    """The bytes of the program's file.

    Raises:
        CommPlanError: PyTorch cannot write it.
    """
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, buffer)
    except Exception as error:  # whatever PyTorch's writer meets
        raise CommPlanError(
            "PyTorch cannot save the optimized program",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            remedy="write the graph as text with commplan dump --format text",
        ) from error
    return (buffer.getvalue(),)
