"""Graph files: ``.spmd`` text, and programs saved by ``torch.export.save``."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from compiler.analysis.undeclared_inputs import undeclared
from compiler.cli.inputs.options import InputOptions, mesh_of
from compiler.cli.inputs.saved_programs import read_program, unreadable
from compiler.cli.render.progress import say
from compiler.errors import CommPlanError, GraphError
from compiler.ir.graph import SpmdGraph, spmd_graph_of, well_formed
from compiler.ir.text import parse_graph

TEXT, PROGRAM = ".spmd", ".pt2"
LONGEST = 200_000_000
"""Characters of a text; devices never end."""

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
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None
    if len(text) > LONGEST:
        raise CommPlanError(f"a text of more than {LONGEST:,} characters", where=str(path))
    return text


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


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, unless it is there.

    Raises:
        CommPlanError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise CommPlanError("cannot make the folder", where=str(folder), found=why) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, as ``write_bytes``."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; behind a link the file it names, to a device or pipe as is.

    Raises:
        CommPlanError: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise CommPlanError(
            "cannot write the file", where=str(path), found=error.strerror or str(error)
        ) from None


def _replace(path: Path, content: bytes) -> None:
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if path.exists() and not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    partial = path.with_name(f".{os.getpid()}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
