"""Arguments and options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from compiler.cli.inputs.load_model import ALIASES, WORLD_SIZE
from compiler.cost import Launch
from compiler.plan.planner_options import POLICIES


class Format(StrEnum):
    """How results are printed, where there are no other forms."""

    TABLE = "table"
    JSON = "json"


POLICY = POLICIES[0]
"""The default."""


def known_policy(given: str) -> str:
    """``given``, which must be one of ``POLICIES``."""
    if given not in POLICIES:
        raise typer.BadParameter(f"{given!r} is not one of {', '.join(POLICIES)}")
    return given


Model = Annotated[
    str,
    typer.Argument(
        help=f"What to work on: {', '.join(f'`{a}`' for a in ALIASES)}; any `module:factory`, a "
        "callable that is called under an initialized process group and returns `(model, args)` "
        "or `(model, args, kwargs)`; or a graph file, `.spmd` or `.pt2`.",
        show_default=False,
    ),
]
Tp = Annotated[
    int | None,
    typer.Option(
        "--tp",
        min=1,
        metavar="N",
        help=f"World size under which a factory is called; {WORLD_SIZE} if left out.",
    ),
]
Capture = Annotated[
    str,
    typer.Option(
        "--capture",
        metavar="HOW",
        help="`record`: run the model once. `export`: torch.export. `auto`: record what can be.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Keyword argument of the factory, a Python literal or a string. Repeatable.",
    ),
]
MeshText = Annotated[
    str,
    typer.Option("--mesh", metavar="AXIS=N,…", help="Mesh of a `.pt2` file, such as `dp=2,tp=4`."),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="NAME=AXIS,…",
        help="Axes that a group name in a `.pt2` file spans, such as `0=tp`. Repeatable.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=PLACEMENT",
        help="Placement of an input of a `.pt2` file or a model: `R`, `V`, `P`, `P(op)`, `S(dim)`, "
        "or per axis `tp:S(0),dp:R`. In a name, `*` stands for one part. Left out: arguments R, "
        "the model's own tensors as it declares them, else V. Repeatable.",
    ),
]
PolicyOption = Annotated[
    str,
    typer.Option(
        callback=known_policy,
        metavar="|".join(POLICIES),
        help="`cost`: reduce, and with --machine share rows between ranks, where it costs least. "
        "`merge`: reduce never before the author does. `boundary`: likewise, and share rows in "
        "sparse layers. `off`: move nothing.",
    ),
]
MachineName = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="NAME",
        help="Plan by the time taken on a machine: a name of `commplan machine list` or a file of "
        "`commplan machine measure`. Without, by payload bytes.",
        show_default=False,
    ),
]
LaunchOption = Annotated[
    Launch, typer.Option("--launch", help="How kernels are launched on the machine.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the result.")]
Widen = Annotated[
    bool,
    typer.Option(
        "--widen",
        help="Let reductions move below conversions to a wider type, where that pays.",
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE instead.")
]
