"""The commands as one program: exit codes, and errors without tracebacks."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from compiler.cli.commands.check import check_graphs
from compiler.cli.commands.collectives import collectives, diff
from compiler.cli.commands.dump import dump
from compiler.cli.commands.lint import lint
from compiler.cli.commands.machine import machine
from compiler.cli.commands.optimize import optimize
from compiler.cli.commands.plan import plan
from compiler.cli.commands.rules import rules
from compiler.cli.commands.verify import verify
from compiler.cli.entry import ExitCode
from compiler.errors import CommPlanError, VerificationError

ClickException: type[Exception] = typer.BadParameter.__mro__[2]
"""Base of the errors in options and arguments; typer's own copy of click has no public name."""


class Commands(TyperGroup):
    """Ends the process with this program's exit codes."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run one command and raise SystemExit with its code."""
        try:
            code = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except CommPlanError as error:
            typer.echo(f"error: {error}", err=True)
            failed = isinstance(error, VerificationError)
            code = ExitCode.NOT_EQUIVALENT if failed else ExitCode.BAD_INPUT
        except ClickException as error:
            error.show()  # type: ignore[attr-defined]
            code = ExitCode.BAD_INPUT
        sys.exit(code or ExitCode.OK)


app = typer.Typer(
    name="commplan",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Plans, rewrites and proves the collectives of tensor-parallel PyTorch models.",
    epilog="Results go to standard output, progress and logs to standard error. "
    "Exit codes: 0 ok, 1 not equivalent or findings, 2 unproved, 3 bad input, "
    "70 internal error, 130 interrupted, 141 nobody reads the output any more.",
)
app.command()(plan)
app.command()(dump)
app.command("check")(check_graphs)
app.command()(verify)
app.command()(lint)
app.command()(collectives)
app.command()(diff)
app.command()(optimize)
app.add_typer(machine, name="machine")
app.command()(rules)
