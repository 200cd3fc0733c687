"""Graph files: ``.spmd`` text, and programs saved by ``torch.export.save``."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind

from compiler.analysis.undeclared_inputs import undeclared
from compiler.cli.inputs.options import InputOptions, mesh_of
from compiler.cli.render.progress import say
from compiler.errors import CommPlanError, GraphError
from compiler.ir import access
from compiler.ir.graph import SpmdGraph, spmd_graph_of, well_formed
from compiler.ir.text import parse_graph
from compiler.ir.torch_logging import FAKE_TENSORS, PROGRAMS, unlogged

TEXT, PROGRAM = ".spmd", ".pt2"

ASSUMED = "numbers in a saved program are taken to be the same on all ranks"


def is_graph_file(name: str) -> bool:
    """Return whether ``name`` ends like a graph file."""
    return Path(name).suffix in (TEXT, PROGRAM)


def read_graph(name: str, options: InputOptions) -> SpmdGraph:
    """Return the graph in file ``name``.

    Raises:
        CommPlanError: the file cannot be read, or does not hold a graph.
    """
    path = Path(name)
    if path.suffix == PROGRAM:
        return program_graph(read_program(path), options, name)
    if path.suffix != TEXT:
        raise CommPlanError(
            "not a graph file", where=name, remedy=f"name a {TEXT} text or a {PROGRAM} program"
        )
    remedy = "leave it out: the text states mesh, groups and placements"
    options.refuse("--mesh", "--group", "--input", of=f"{TEXT} file", name=name, remedy=remedy)
    graph = parse_graph(read_text(path), file=name)
    well_formed(graph.graph)
    return graph


def read_text(path: Path) -> str:
    """Return the text in a file.

    Raises:
        CommPlanError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def read_program(path: Path) -> ExportedProgram:
    """Return a saved program, made functional."""
    try:
        with warnings.catch_warnings(), unlogged(PROGRAMS, FAKE_TENSORS):
            warnings.simplefilter("ignore")
            program: ExportedProgram = torch.export.load(path).run_decompositions({})
            return program
    except Exception as error:  # a foreign file can fail anywhere in PyTorch's reader
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CommPlanError:
    strerror = error.strerror if isinstance(error, OSError) else None
    why = strerror or next(iter(str(error).strip().splitlines()), "")
    return CommPlanError(
        "cannot read the file", where=str(path), found=f"{type(error).__name__}: {why}"
    )


def program_graph(program: ExportedProgram, options: InputOptions, name: str) -> SpmdGraph:
    """Return the graph of a functional program, on the mesh and inputs that ``options`` state."""
    if not options.mesh:
        raise CommPlanError(
            f"a {PROGRAM} file does not say what its ranks are",
            where=name,
            remedy="pass --mesh tp=8, and --group NAME=tp for groups that have other names",
        )
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CUSTOM_OBJ or spec.kind is InputKind.TOKEN:
            raise GraphError(
                f"the program reads {spec.target!r}, which is not a tensor",
                where=name,
                remedy="keep opaque objects out of forward",
            )
    for node in program.graph.nodes:
        if node.op != "output":
            node.meta.setdefault("val", None)
    mesh = mesh_of(options.mesh, options.groups)
    graph = spmd_graph_of(torch.nn.Module(), program.graph, mesh, options.placements)
    well_formed(graph.graph)
    return graph


def warn_undeclared(graph: SpmdGraph, options: InputOptions) -> None:
    """Warn on standard error where a graph of a file does not state what ranks hold."""
    if (warning := undeclared(graph, options.placements)) is not None:
        say(f"warning: {warning}")


def program_bytes(program: ExportedProgram, module: fx.GraphModule) -> bytes:
    """Return the file of ``program`` with the graph of ``module``, which has the same signature.

    Raises:
        CommPlanError: PyTorch cannot write it.
    """
    names = (node.name for node in access.results(access.output(module.graph)))
    outputs = [
        # Constants have a value, and are not among the results of the graph.
        spec
        if hasattr(spec.arg, "value")
        else replace(spec, arg=replace(spec.arg, name=next(names)))
        for spec in program.graph_signature.output_specs
    ]
    rewritten = ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(program.graph_signature.input_specs, outputs),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(rewritten, buffer)
    except Exception as error:  # PyTorch's writer can fail anywhere
        raise CommPlanError(
            "PyTorch cannot save the optimized program",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            remedy="write the graph as text with commplan dump --format text",
        ) from error
    return buffer.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, as ``write_bytes``."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        CommPlanError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "xb") as file:
            file.write(content)
        os.replace(partial, path)
    except OSError as error:
        raise CommPlanError(
            "cannot write the file", where=str(path), found=error.strerror or str(error)
        ) from None
    finally:
        partial.unlink(missing_ok=True)
