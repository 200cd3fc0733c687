"""Load what a command works on: a graph file, or a model that is captured."""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compiler.capture import capture_ranks, hf_models
from compiler.cli.entry import printable
from compiler.cli.inputs.files import ASSUMED, PROGRAM, is_graph_file, read_graph, warn_undeclared
from compiler.cli.inputs.options import ALIASES, WORLD_SIZE, InputOptions, settings
from compiler.cli.inputs.own_packages import NAMES, import_own, is_own, location
from compiler.cli.render.layer_progress import LayerProgress
from compiler.cli.render.progress import Stages, stderr
from compiler.errors import CommPlanError
from compiler.ir.access import inside
from compiler.ir.graph import SpmdGraph

Call = tuple[tuple[Any, ...], dict[str, Any]]
LIBRARIES = (
    *(inside(sysconfig.get_path(name)) for name in ("stdlib", "purelib")),
    inside(Path(__file__).parents[2]),
)
"""Folders whose code is not the user's."""


@dataclass(frozen=True)
class Source:
    """A graph and where it comes from.

    Attributes:
        name: as the user wrote it, aliases resolved.
        graph: the graph.
        assumed: what was taken for granted.
        notes: what else a reader should know.
        written: output of the graph -> input that it is written back to.
        keys: input -> its key in the model's state_dict, where it has one.
        constants: input -> tensor that the model's code made.
    """

    name: str
    graph: SpmdGraph
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    written: Mapping[int, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)


def load(name: str, options: InputOptions, stages: Stages) -> Source:
    """Return the graph of a file, or of a model captured as several of its ranks.

    Raises:
        CommPlanError: there is no such model or file, or it cannot be used.
    """
    if is_graph_file(name):
        remedy = "leave it out: a saved graph is made for its mesh and its options"
        options.refuse("--set", "--tp", "--capture", of="graph file", name=name, remedy=remedy)
        with stages.stage("read", name):
            graph = read_graph(name, options)
        warn_undeclared(graph, options)
        return Source(printable(name), graph, (ASSUMED,) if name.endswith(PROGRAM) else ())
    options.refuse("--mesh", "--group", of="model", name=name, remedy="pass --tp for its ranks")
    keywords = settings(options.settings)
    if name in ALIASES:
        import_own("models")
        name = ALIASES[name]
    if name.startswith(hf_models.PREFIX):
        keywords["model_type"] = name.removeprefix(hf_models.PREFIX)
        factory = factory_of(f"{hf_models.__name__}:load", keywords)
    else:
        factory = factory_of(name, keywords)
    calls: list[Call] = []

    def model() -> nn.Module:
        module, call = built(name, factory)
        calls.append(call)
        layers.watch(module)
        return module

    with stages.stage("capture", name) as tell, ExitStack() as stack:
        layers = LayerProgress(tell)
        if stderr().is_terminal:
            stack.enter_context(layers.watching())
        capture = capture_ranks(
            model,
            lambda: calls[-1],
            options.tp or WORLD_SIZE,
            inputs=options.placements,
            progress=layers,
            capture=options.capture,
        )
    notes = tuple(map(str, capture.remarks))
    return Source(
        name, capture.graph, tuple(capture.assumed), notes,
        capture.mutations, capture.state, capture.constants,
    )  # fmt: skip


def factory_of(name: str, keywords: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the callable ``module:factory`` with its keyword arguments.

    Raises:
        CommPlanError: no such module or factory, or keywords that it does not take.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise CommPlanError(
            f"unknown model {name!r}",
            found=f"known models are {', '.join(ALIASES)}",
            remedy="name one of these, a module:factory, or a .spmd or .pt2 file",
        )
    value = _imported(module_name)
    for part in path.split("."):
        if not hasattr(value, part):
            public = sorted(k for k, x in vars(value).items() if callable(x) and k[0] != "_")
            raise CommPlanError(
                f"module {module_name!r} has no factory {path!r}",
                where=str(getattr(value, "__file__", name)),
                found=f"callables {', '.join(public) or '(none)'}",
                remedy="name a callable that returns (model, args) or (model, args, kwargs)",
            )
        value = getattr(value, part)
    if not callable(value):
        raise CommPlanError(f"{name!r} is not callable", found=type(value).__name__)
    signature = inspect.signature(value)
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise CommPlanError(
            f"factory {name!r} cannot be called with the given --set",
            found=f"{error}; its parameters are {signature}",
            remedy="pass --set key=value for parameters of the factory",
        ) from None
    return partial(value, **keywords)


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and not is_own(name.partition(".")[0]):
        sys.path.insert(0, here)  # a console script does not look there
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = (error.name if isinstance(error, ImportError) else None) or ""
        namesake = _namesake(missing.partition(".")[0])
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{missing}."):
            remedy = "run in the folder that holds it, or install it"
            if namesake:
                remedy = "rename one of the two: a process has one package of a name"
            raise CommPlanError(
                f"no module named {missing!r}",
                where=name,
                found=namesake or f"searched {here} and the installed packages",
                remedy=remedy,
            ) from None
        raise CommPlanError(
            f"module {name!r} cannot be imported",
            where=user_line(error),
            found=f"{type(error).__name__}: {error}",
            remedy=f"{namesake}: rename yours" if namesake else "",
        ) from None


def _namesake(package: str) -> str:
    """Return where ``package`` is, if this program has one of that name."""
    if package not in NAMES or (folder := location(package)) is None:
        return ""
    whose = "this program's own" if is_own(package) else "another than this program's own"
    return f"{package!r} is the package in {folder}, {whose}"


def built(name: str, factory: Callable[[], Any]) -> tuple[nn.Module, Call]:
    """Return the model and the call that a factory returns.

    Raises:
        CommPlanError: it raised, or returns something else.
    """
    try:
        result = factory()
    except CommPlanError:
        raise
    except (Exception, SystemExit) as error:  # the exit code is this program's to choose
        raise CommPlanError(
            f"factory {name!r} raised {type(error).__name__}",
            where=user_line(error),
            found=str(error),
        ) from error
    match result:
        case (nn.Module() as model, tuple() as args):
            return model, (args, {})
        case (nn.Module() as model, tuple() as args, dict() as kwargs):
            return model, (args, kwargs)
    parts = result if isinstance(result, tuple) else (result,)
    raise CommPlanError(
        f"factory {name!r} returns something else than a model and its arguments",
        found=f"({', '.join(type(part).__name__ for part in parts)})",
        remedy="return (model, args) or (model, args, kwargs): nn.Module, tuple, dict",
    )


def user_line(error: BaseException) -> str:
    """Return ``file.py:12 in build: code`` of the innermost frame of the user's own code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_file()]
    frames = [f for f in frames if not f.filename.startswith(LIBRARIES)] or frames
    if not frames:
        return ""
    frame = frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}"
