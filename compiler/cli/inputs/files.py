"""Graph files: ``.spmd`` text, and programs saved by ``torch.export.save``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from compiler.analysis.undeclared_inputs import undeclared
from compiler.cli.inputs.arguments import mesh_of, placements
from compiler.cli.render.progress import stderr
from compiler.errors import CommPlanError, GraphError
from compiler.ir.graph import SpmdGraph, spmd_graph_of, well_formed
from compiler.ir.text import parse_graph
from compiler.ir.torch_logging import FAKE_TENSORS, PROGRAMS, unlogged

TEXT, PROGRAM = ".spmd", ".pt2"

ASSUMED = "numbers in a saved program are taken to be the same on all ranks"


@dataclass(frozen=True)
class Given:
    """What a saved program does not say about itself.

    Attributes:
        mesh: axes and sizes as text, empty if not given.
        groups: names of groups and the axes they span, as text.
        inputs: placements of inputs as text.
        capture: how a model is captured; not for saved graphs.
    """

    mesh: str = ""
    groups: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    capture: str = "auto"

    @property
    def named(self) -> str:
        """The options that were given."""
        pairs = (("--mesh", self.mesh), ("--group", self.groups), ("--input", self.inputs))
        return ", ".join(option for option, held in pairs if held)


def is_graph_file(name: str) -> bool:
    """Whether ``name`` ends like a graph file."""
    return Path(name).suffix in (TEXT, PROGRAM)


def read_graph(name: str, given: Given) -> SpmdGraph:
    """The graph in file ``name``.

    Raises:
        CommPlanError: the file cannot be read, or is no graph.
    """
    path = Path(name)
    if path.suffix == TEXT:
        if given.named:
            raise CommPlanError(
                f"{given.named} given for a {TEXT} file",
                where=name,
                remedy="leave it out: the text states mesh, groups and placements",
            )
        return read_text(path)
    if path.suffix == PROGRAM:
        return program_graph(read_program(path), given, name)
    raise CommPlanError(
        "not a graph file", where=name, remedy=f"name a {TEXT} text or a {PROGRAM} program"
    )


def read_text(path: Path) -> SpmdGraph:
    """The graph that a text file prints."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None
    graph = parse_graph(text, file=str(path))
    well_formed(graph.graph)
    return graph


def read_program(path: Path) -> ExportedProgram:
    """A saved program, functional."""
    try:
        with warnings.catch_warnings(), unlogged(PROGRAMS, FAKE_TENSORS):
            warnings.simplefilter("ignore")
            program: ExportedProgram = torch.export.load(path).run_decompositions({})
            return program
    except Exception as error:  # a foreign file can fail anywhere in PyTorch's reader
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> CommPlanError:
    """The error for a file that cannot be read."""
    lines = str(error).strip().splitlines()
    found = error.strerror if isinstance(error, OSError) and error.strerror else (lines or [""])[0]
    return CommPlanError(
        "cannot read the file", where=str(path), found=f"{type(error).__name__}: {found}"
    )


def program_graph(program: ExportedProgram, given: Given, name: str) -> SpmdGraph:
    """The graph of a functional program on the mesh that was given."""
    if not given.mesh:
        raise CommPlanError(
            f"a {PROGRAM} file does not say what its ranks are",
            where=name,
            remedy="pass --mesh tp=8, and --group NAME=tp for groups that have other names",
        )
    mesh = mesh_of(given.mesh, given.groups)
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
    graph = spmd_graph_of(torch.nn.Module(), program.graph, mesh, placements(given.inputs))
    well_formed(graph.graph)
    return graph


def warn_undeclared(graph: SpmdGraph, given: Given) -> None:
    """Say on standard error where a graph of a file does not tell what ranks hold."""
    if (warning := undeclared(graph, placements(given.inputs))) is not None:
        stderr().print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        CommPlanError: the file cannot be written.
    """
    write_bytes(path, [text.encode()])


def write_bytes(path: Path, parts: Iterable[bytes]) -> None:
    """Writes a file whole or not at all.

    Raises:
        CommPlanError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "xb") as file:
            file.writelines(parts)
        os.replace(partial, path)
    except OSError as error:
        raise CommPlanError(
            "cannot write the file", where=str(path), found=error.strerror or str(error)
        ) from None
    finally:
        partial.unlink(missing_ok=True)
