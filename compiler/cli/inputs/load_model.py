"""What a command works on: a graph file, or a model that is captured. Capture is met here only."""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from compiler.capture import capture_ranks
from compiler.cli.inputs.arguments import placements, settings
from compiler.cli.inputs.files import (
    ASSUMED,
    PROGRAM,
    Given,
    is_graph_file,
    read_graph,
    warn_undeclared,
)
from compiler.cli.inputs.own_packages import NAMES, import_own, is_own, location
from compiler.cli.render.progress import Stages
from compiler.errors import CommPlanError
from compiler.ir.access import inside
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Placement

ALIASES = {
    "step3p5": "models.step3p5.entry:prefill",
    "step3p5:decode": "models.step3p5.entry:decode",
}
"""Short names of models."""

WORLD_SIZE = 8

Call = tuple[tuple[Any, ...], dict[str, Any]]
Build = Callable[[], tuple[nn.Module, Call]]
LIBRARIES = (
    *(inside(sysconfig.get_path(name)) for name in ("stdlib", "purelib")),
    inside(Path(__file__).parents[2]),
)
"""Where code is that is not the user's, if any other took part."""


@dataclass(frozen=True)
class Source:
    """A graph and where it comes from.

    Attributes:
        name: as the user wrote it, aliases resolved.
        graph: the graph.
        assumed: what was taken for granted.
        notes: what else a reader should know.
        written: output of the graph -> input that it is written back to.
    """

    name: str
    graph: SpmdGraph
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    written: Mapping[int, str] = field(default_factory=dict)


def load(name: str, stages: Stages, *, tp: int | None, pairs: list[str], given: Given) -> Source:
    """The graph of a file or of a captured model.

    Raises:
        CommPlanError: there is no such model or file, or it cannot be used.
    """
    if not is_graph_file(name):
        if idle := replace(given, inputs=()).named:
            raise CommPlanError(
                f"{idle} given for a model", where=name, remedy="pass --tp for its ranks"
            )
        if name in ALIASES:
            import_own("models")
        name = ALIASES.get(name, name)
        build = factory(name, settings(pairs))
        with stages.stage("capture", name) as tell:
            held = placements(given.inputs)
            return captured(
                name, build, WORLD_SIZE if tp is None else tp, tell, held, given.capture
            )
    if tp is not None or pairs or given.capture != "auto":
        option = "--set" if pairs else "--tp" if tp is not None else "--capture"
        raise CommPlanError(
            f"{option} given for a graph file",
            where=name,
            remedy="leave it out: a saved graph is made for its mesh and its options",
        )
    with stages.stage("read", name):
        graph = read_graph(name, given)
    warn_undeclared(graph, given)
    return Source(name, graph, (ASSUMED,) if name.endswith(PROGRAM) else ())


def captured(
    name: str,
    build: Build,
    world_size: int,
    tell: Callable[[str], None],
    inputs: Mapping[str, Placement | Mapping[str, Placement]],
    capture: str = "auto",
) -> Source:
    """The model that ``build`` makes under a process group, captured as several of its ranks."""
    calls: list[Call] = []

    def model() -> nn.Module:
        made, call = build()
        calls.append(call)
        return made

    found = capture_ranks(
        model, lambda: calls[-1], world_size, inputs=inputs, progress=tell, capture=capture
    )
    notes = tuple(map(str, found.remarks))
    return Source(name, found.graph, tuple(found.assumed), notes, found.mutations)


def factory(name: str, keywords: Mapping[str, Any]) -> Build:
    """What builds the model ``module:factory`` and the arguments of its call.

    Raises:
        CommPlanError: no such module or factory, or keywords that it does not take.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise CommPlanError(
            f"unknown model {name!r}",
            found=f"known models are {', '.join(ALIASES)}",
            remedy="name one of these, a module:factory, or a .spmd or .pt2 file",
        )
    made: Any = _imported(module_name)
    for part in path.split("."):
        if not hasattr(made, part):
            public = [k for k, held in vars(made).items() if callable(held) and k[0] != "_"]
            raise CommPlanError(
                f"module {module_name!r} has no factory {path!r}",
                where=str(getattr(made, "__file__", name)),
                found=f"callables {', '.join(sorted(public)) or '(none)'}",
                remedy="name a callable that returns (model, args) or (model, args, kwargs)",
            )
        made = getattr(made, part)
    if not callable(made):
        raise CommPlanError(f"{name!r} is not callable", found=type(made).__name__)
    signature = inspect.signature(made)
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise CommPlanError(
            f"factory {name!r} cannot be called with the given --set",
            found=f"{error}; its parameters are {signature}",
            remedy="pass --set key=value for parameters of the factory",
        ) from None
    return lambda: _built(name, made, keywords)


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and not is_own(name.partition(".")[0]):
        sys.path.insert(0, here)  # a console script does not look there
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ImportError) else None
        namesake = _namesake(missing or "")
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{missing}."):
            raise CommPlanError(
                f"no module named {missing!r}",
                where=name,
                found=namesake or f"searched {here} and the installed packages",
                remedy="rename one of the two: a process has one package of a name"
                if namesake
                else "run in the folder that holds it, or install it",
            ) from None
        raise CommPlanError(
            f"module {name!r} cannot be imported",
            where=user_line(error),
            found=f"{type(error).__name__}: {error}",
            remedy=f"{namesake}: rename yours" if namesake else "",
        ) from None


def _namesake(missing: str) -> str:
    """Which package was searched for ``missing``, where this program has one of that name too."""
    package = missing.partition(".")[0]
    if package not in NAMES or (folder := location(package)) is None:
        return ""
    whose = "this program's own" if is_own(package) else "another than this program's own"
    return f"{package!r} is the package in {folder}, {whose}"


def _built(
    name: str, made: Callable[..., Any], keywords: Mapping[str, Any]
) -> tuple[nn.Module, Call]:
    try:
        result = made(**keywords)
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
    found = tuple(map(type, result)) if isinstance(result, tuple) else (type(result),)
    raise CommPlanError(
        f"factory {name!r} returns something else than a model and its arguments",
        found=f"({', '.join(one.__name__ for one in found)})",
        remedy="return (model, args) or (model, args, kwargs): nn.Module, tuple, dict",
    )


def user_line(error: BaseException) -> str:
    """``file.py:12 in build: code`` of the innermost frame of the user's own code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    files = [f for f in frames if Path(f.filename).is_file()]
    own = [f for f in files if not f.filename.startswith(LIBRARIES)] or files
    if not own:
        return ""
    frame = own[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}"
