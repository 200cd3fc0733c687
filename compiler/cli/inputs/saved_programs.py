"""Programs saved by ``torch.export.save``, read and written. Nothing that a file holds is run.

PyTorch's reader unpickles parts of the archive, loads libraries, evaluates expressions, and pastes
names into Python code that it executes. So all parts are looked at before it sees them:

- pickles have to be readable as tensors and plain containers; libraries are refused;
- sizes are calls of SymPy's classes on numbers and names of symbols, nothing else;
- targets are ops or arithmetic; every other text is a name, or JSON of names.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature

from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.torch_logging import FAKE_TENSORS, PROGRAMS, unlogged

NAME = re.compile(r"[\w.:+*/ -]*")
TARGET = re.compile(
    r"torch(\.ops(?!\.higher_order\.triton)(\.(?!__)\w+){2,3}|\._?sym_\w+)|math\.\w+"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos"
    r"|pow|rshift|sub|truediv|xor)"
)
TENSOR = re.compile(r"(weight|tensor)_\d+")
"""Parts that are one tensor; PyTorch unpickles the others, whatever their names say."""
FUNCTION = re.compile(r"[A-Z]\w*|floor|ceiling")
IMPORTING = {"__enum__", "default_factory_module"}
"""Keys of tree specifications that make PyTorch import a module."""
AS_DATA = {"as_string", "as_strings", "metadata", "guards_code"}
"""Keys of texts that PyTorch takes as data; guards are dropped."""
SYNTAX = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp,
    ast.Compare, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


def read_program(path: Path) -> ExportedProgram:
    """Return a saved program, made functional.

    Raises:
        CommPlanError: the file cannot be read, or holds more than tensors and a graph.
    """
    try:
        with warnings.catch_warnings(), unlogged(PROGRAMS, FAKE_TENSORS):
            warnings.simplefilter("ignore")
            if unsafe := next(_unsafe(path), ""):
                raise CommPlanError(
                    "the program holds what would run when it is read",
                    where=str(path),
                    found=unsafe,
                    remedy="save it with example inputs that are tensors, numbers, tuples, lists "
                    "and dictionaries, by a PyTorch of 2.8 or later",
                )
            program: ExportedProgram = torch.export.load(path)
            program._guards_code = []  # it would be executed
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except CommPlanError:
        raise
    except Exception as error:  # a foreign file can fail anywhere in PyTorch's reader
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> CommPlanError:
    """Return the error that a file cannot be read."""
    why = next(iter(str(error).strip().splitlines()), "")
    problem, remedy = f"{type(error).__name__}: {why}", ""
    if isinstance(error, OSError) and error.strerror:
        problem = error.strerror
    elif isinstance(error, UnicodeDecodeError):
        problem, remedy = f"{why}, not text in UTF-8", "save it as UTF-8"
    return CommPlanError("cannot read the file", where=str(path), found=problem, remedy=remedy)


def _unsafe(path: Path) -> Iterator[str]:
    """Yield what must not be read of an archive, by the names of its parts."""
    with zipfile.ZipFile(path) as archive:
        if "version" in archive.namelist():
            yield "the form that PyTorch 2.7 and older wrote"
    reader = torch._C.PyTorchFileReader(os.fspath(path))
    for name in reader.get_all_records():
        if name.startswith("data/aotinductor/"):
            yield f"compiled code, {name}"
        elif name.endswith(".pt"):
            yield from _pickles(name, reader.get_record(name))
        elif name.endswith(".json") or name.startswith("models/"):
            content = json.loads(reader.get_record(name))
            yield from (f"{text} in {name}" for text in _texts(content))
            if name.endswith("_config.json"):
                for payload in content["config"].values():
                    part = os.path.join(os.path.dirname(name), payload["path_name"])
                    if not TENSOR.fullmatch(payload["path_name"]):
                        yield f"an object that is not a tensor, {part}"
                    elif payload["use_pickle"]:
                        yield from _pickles(part, reader.get_record(part))


def _pickles(name: str, content: bytes) -> Iterator[str]:
    try:
        if content:
            torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception:  # whatever the pickle does
        yield f"a pickle of more than tensors, {name}"


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """Yield the texts that PyTorch would take for more than a name."""
    if isinstance(value, dict):
        yield from (f"the key {name!r}" for name in value if name in IMPORTING)
        for name, part in value.items():
            yield from _texts(name)
            yield from _texts(part, name) if name not in AS_DATA else ()
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)
    elif isinstance(value, str):
        if key == "expr_str":
            is_safe = _is_expression(value)
        elif key in ("target", "as_operator"):
            is_safe = TARGET.fullmatch(value) is not None
        elif value.startswith(("[", "{", '"')):
            yield from _texts(json.loads(value))
            return
        else:
            is_safe = NAME.fullmatch(value) is not None
        if not is_safe:
            yield repr(value[:80])


def _is_expression(text: str) -> bool:
    """Return whether ``text`` only calls SymPy's classes on numbers and names."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        if not isinstance(node, SYNTAX):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and FUNCTION.fullmatch(node.func.id)
        ):
            return False
        if isinstance(node, ast.Constant) and not re.fullmatch(r"[\w.+-]*", str(node.value)):
            return False
    return True


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
