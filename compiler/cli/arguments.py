"""Arguments of every command, read before PyTorch is imported."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from compiler.cli.entry import ExitCode
from compiler.cli.inputs.options import ALIASES, WORLD_SIZE, InputOptions

VERSION = "0.1.0"
POLICIES = ("cost", "merge", "boundary", "off")
LAUNCHES = ("graph", "eager")
TABLE_OR_JSON, TEXT_OR_JSON = ("table", "json"), ("text", "json")
"""Choices; of each the first is the default."""

EPILOG = """\
Results go to standard output, progress and logs to standard error.
Graph files, .spmd and .pt2, are read as data; a model is code, and runs.
Exit codes: 0 ok, 1 not equivalent or findings, 2 unproved, 3 bad input,
70 internal error, 130 interrupted, 141 nobody reads the output any more."""


class Parser(ArgumentParser):
    """Takes options by their full names, and ends with this program's exit codes."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter, **keywords
        )

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the arguments, and exit."""
        self.print_usage(sys.stderr)
        self.exit(ExitCode.BAD_INPUT, f"error: {message}\n")


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the command, as ``module:function``, and its keyword arguments.

    Options that say how inputs are read become one ``InputOptions``.
    """
    if not arguments:
        parser().print_help(sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)
    values = vars(parser().parse_args(arguments))
    names = {field.name for field in fields(InputOptions)} & values.keys()
    options = {name: values.pop(name) for name in names}
    return values.pop("run"), values | ({"options": InputOptions(**options)} if options else {})


def parser() -> Parser:
    """Return the parser of the program."""
    program = Parser(
        prog="commplan",
        description="Plan, rewrite and prove the collectives of tensor-parallel PyTorch models.",
        epilog=EPILOG,
    )
    program.add_argument("--version", action="version", version=f"commplan {VERSION}")
    add = _adder(program)

    plan = add("plan", PLAN, _model(), _policy(), _format(TABLE_OR_JSON))
    plan.add_argument("--tokens", metavar="N,…", default="1,64,2048,16384",
                      help="token counts to plan for")  # fmt: skip
    plan.add_argument("--machine", metavar="NAME",
                      help="plan by the time taken on a machine: a name of `commplan machine "
                      "list`, or a file; without, by payload bytes")  # fmt: skip
    plan.add_argument("--launch", choices=LAUNCHES, default=LAUNCHES[0],
                      help="how kernels are launched on the machine")  # fmt: skip
    plan.add_argument("--compare", metavar="NAME[:TP],…", default="",
                      help="predict for these machines and world sizes too, and print only "
                      "what they take")  # fmt: skip
    plan.add_argument("--plot", metavar="FILE", type=Path,
                      help="draw predicted times over tokens, .png or .svg")  # fmt: skip
    plan.add_argument("--remarks", choices=("all", "missed", "passed"), default="all",
                      help="remarks to print: what was done, what was not, or both")  # fmt: skip
    plan.add_argument("--timing", action="store_true",
                      help="print the time of every pass to standard error")  # fmt: skip

    dump = add("dump", DUMP, _model(), _policy(), _format(("text", "json", "dot", "html")))
    dump.add_argument("--before", action="store_true", help="the graph as captured")
    dump.add_argument("--after", action="store_true", help="the optimized graph; the default")
    dump.add_argument("--both", action="store_true",
                      help="both; the default, and side by side, in HTML")  # fmt: skip
    dump.add_argument("--layers", metavar="A-B", default="",
                      help="only these layers, as a graph of their own")  # fmt: skip
    _add_output(dump)
    dump.add_argument("--print-after", metavar="all|changed|PASS", default="",
                      help="print the graph after passes, to standard error")  # fmt: skip
    dump.add_argument("--dump-dir", metavar="DIR", type=Path,
                      help="write the graph after every pass to a file in DIR")  # fmt: skip
    dump.add_argument("--opt-bisect-limit", metavar="N", type=at_least(0),
                      help="run only the first N passes")  # fmt: skip
    dump.add_argument("--verify-each", action="store_true",
                      help="check that passes which report no change made none")  # fmt: skip
    dump.add_argument("--check-each", action="store_true",
                      help="prove every pass that changed something")  # fmt: skip

    check = add("check", CHECK, _files(), _format(TEXT_OR_JSON), run="check_graphs")
    check.add_argument("source", metavar="SOURCE", help="graph file that says what is right")
    check.add_argument("target", metavar="TARGET", help="graph file to hold against it")

    verify = add("verify", VERIFY, _model(), _format(TEXT_OR_JSON))
    verify.add_argument("single", metavar="SINGLE", nargs="?", default="",
                        help="the model on one device, if it is another than MODEL with one "
                        "rank")  # fmt: skip

    add("lint", LINT, _model(), _format((*TEXT_OR_JSON, "github")))

    forms = _format(("text", "json", "github", "markdown"))
    listed = add("collectives", COLLECTIVES, _model(), _policy(widen=False), forms)
    listed.add_argument("--optimized", action="store_true", help="those of the optimized graph")
    listed.add_argument("--max", dest="most", metavar="KIND=N", action="append", default=[],
                        help="exit with 1 if there are more of a kind, such as all_reduce=90; "
                        "repeatable")  # fmt: skip
    diff = add("diff", DIFF, _captured(), forms, run="collectives:diff")
    diff.add_argument("old", metavar="OLD", help="a list, .json, of `commplan collectives "
                      "--format json`, or as MODEL")  # fmt: skip
    diff.add_argument("new", metavar="NEW", help="what to hold against it, likewise")

    optimize = add("optimize", OPTIMIZE, _files(), _policy())
    optimize.add_argument("file", metavar="FILE", help="graph file, .spmd or .pt2")
    _add_output(optimize, required=True)
    optimize.add_argument("--tokens", metavar="N", type=at_least(1),
                          help="what symbolic sizes count as")  # fmt: skip

    rules = add("rules", RULES, _format(TABLE_OR_JSON))
    rules.add_argument("pattern", metavar="OP", nargs="?", default="",
                       help="ops to list: part of a name, or a glob")  # fmt: skip

    _add_machine(_adder(add("machine", MACHINE), "machine"))
    return program


def _add_machine(add: Callable[..., Parser]) -> None:
    """Add the commands of ``commplan machine``."""
    add("list", "List the machines that come with the package.", _format(TABLE_OR_JSON),
        run="list_machines")  # fmt: skip
    show = add("show", "Show a machine's numbers with their sources.", _format(TABLE_OR_JSON))
    show.add_argument("name", metavar="MACHINE", help="a machine's name, or a machine file")
    show.add_argument("--ranks", metavar="N", type=at_least(2),
                      help="tables of this rank count alone")  # fmt: skip
    fit = add("fit", "Fit machine files to a table of measurements and print the errors.",
              _format(TABLE_OR_JSON), run="fit_machines")  # fmt: skip
    fit.add_argument("measurements", metavar="CSV", type=Path,
                     help="measured rows; docs/machines.md has the columns")  # fmt: skip
    fit.add_argument("--machine", dest="names", action="append", metavar="NAME",
                     help="a machine's name or file; repeatable, all if left out")  # fmt: skip
    fit.add_argument("-o", "--output", dest="folder", type=Path, metavar="FOLDER",
                     help="write the files here")  # fmt: skip
    measure = add("measure", MEASURE)
    measure.add_argument("--name", metavar="NAME", default="measured", help="the machine's name")
    measure.add_argument("--min-bytes", metavar="N", type=at_least(4), default=512,
                         help="smallest payload; doubled from there")  # fmt: skip
    measure.add_argument("--max-bytes", metavar="N", type=at_least(4),
                         help="largest payload; on GPUs 256 MiB, on CPUs 4 MiB")  # fmt: skip
    _add_output(measure)


def _adder(program: Parser, module: str = "") -> Callable[..., Parser]:
    """Return a function that adds a command with its description and shared options."""
    commands = program.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, description: str, *parents: Parser, run: str = "") -> Parser:
        summary = description.split("\n", 1)[0]
        command: Parser = commands.add_parser(
            name, help=summary, description=description, parents=parents
        )
        where = run if ":" in run else f"{module or name}:{run or name}"
        command.set_defaults(run=where)
        return command

    return add


def _files() -> Parser:
    """Return the options of graph files."""
    shared = Parser(add_help=False)
    shared.add_argument("--mesh", metavar="AXIS=N,…", default="",
                        help="mesh of a .pt2 file, such as dp=2,tp=4")  # fmt: skip
    shared.add_argument("--group", dest="groups", metavar="NAME=AXIS,…", action="append",
                        default=[], help="axes that a group name in a .pt2 file spans, such as "
                        "0=tp; repeatable")  # fmt: skip
    shared.add_argument("--input", dest="inputs", metavar="NAME=PLACEMENT", action="append",
                        default=[], help="placement of an input of a .pt2 file or a model: R, V, "
                        "P, P(op), S(dim), or per axis tp:S(0),dp:R; in a name, * stands for one "
                        "part. Left out: arguments R, the model's own tensors as it declares "
                        "them, else V; repeatable")  # fmt: skip
    return shared


def _model() -> Parser:
    """Return MODEL and its options."""
    shared = Parser(add_help=False, parents=[_files(), _captured()])
    shared.add_argument("model", metavar="MODEL", help=f"{', '.join(ALIASES)}; any "
                        "module:factory, a callable that is called under an initialized process "
                        "group and returns (model, args) or (model, args, kwargs); or a graph "
                        "file, .spmd or .pt2")  # fmt: skip
    return shared


def _captured() -> Parser:
    """Return the options of models that are captured."""
    shared = Parser(add_help=False)
    shared.add_argument("--tp", metavar="N", type=at_least(1), help="world size under which a "
                        f"factory is called; {WORLD_SIZE} if left out")  # fmt: skip
    shared.add_argument("--capture", choices=("auto", "record", "export"), default="auto",
                        help="record: run the model once; export: torch.export; auto: record "
                        "what can be")  # fmt: skip
    shared.add_argument("--set", dest="settings", metavar="KEY=VALUE", action="append", default=[],
                        help="keyword argument of the factory, a Python literal or a string; "
                        "repeatable")  # fmt: skip
    return shared


def _policy(*, widen: bool = True) -> Parser:
    """Return the options of planning."""
    shared = Parser(add_help=False)
    shared.add_argument("--policy", choices=POLICIES, default=POLICIES[0],
                        help="cost: reduce, and with --machine share rows between ranks, where it "
                        "costs least; merge: reduce never before the author does; boundary: "
                        "likewise, and share rows in sparse layers; off: move nothing")  # fmt: skip
    if widen:
        shared.add_argument("--widen", action="store_true", help="let reductions move below "
                        "conversions to a wider type, where that pays")  # fmt: skip
    return shared


def _format(choices: Sequence[str]) -> Parser:
    shared = Parser(add_help=False)
    shared.add_argument("--format", choices=choices, default=choices[0],
                        help="how to print the result")  # fmt: skip
    return shared


def _add_output(command: Parser, required: bool = False) -> None:
    command.add_argument("-o", "--output", metavar="FILE", type=Path, required=required,
                         help="write the result to FILE")  # fmt: skip


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``minimum``, of at most 12 digits."""

    def read(text: str) -> int:
        if not text.isdecimal() or len(text) > 12 or int(text) < minimum:
            raise ArgumentTypeError(f"must be a whole number from {minimum}, of at most 12 digits")
        return int(text)

    return read


PLAN = """\
Show which collectives move, what that saves, why, and whether it is proved.

Captures MODEL, places its reductions for each token count, and checks the result.

  commplan plan step3p5 --tp 8 --machine h200x8 --tokens 64,4096 --set experts=ep"""
DUMP = """\
Print a model's graph before and after optimization, as text, JSON, DOT or HTML.

Beside each value stands what ranks hold of it, as derived from the inputs: R the
same, S(dim) blocks, P partial sums, V something else or not known.
The text is what check, plan and optimize read. The optimized graph is printed
whatever the checker would say of it; plan and check tell. Options that look at
passes see those of planning, then those that make a planned graph run.

  commplan dump step3p5 --format html --layers 3-4 -o layers.html"""
CHECK = """\
Say whether TARGET computes the same function as SOURCE on every rank.

Inputs correspond by position, parameters by name; placements are those of SOURCE.
Exit code 0: yes. 1: no, with a counterexample. 2: not shown either way. 3: the
files cannot be compared."""
VERIFY = """\
Say whether MODEL on several ranks computes what SINGLE computes on one device.

Parameters and arguments correspond by name. What ranks hold of each is what
--input says, otherwise what the shapes of both models say; the report lists it.
Exit code 0: yes. 1: no, with a counterexample. 2: not shown either way. 3: the
models cannot be compared.

  commplan verify step3p5 --tp 8 --set experts=ep"""
LINT = """\
Find wrong reductions in MODEL: double, missing, over wrong ranks, of wrong terms.

Partial sums are known by the placements that the model declares for its
parameters, or that --input gives. Exit code 0: no finding. 1: findings. 3: there
is no graph to look at."""
OPTIMIZE = """\
Optimize the graph in FILE, check it, and write it in the same form.

Nothing is written unless the result is shown to be equivalent."""
COLLECTIVES = """\
List the collectives of MODEL: kind, axis, operand on one rank, layers and line.

Exit code 0: there they are. 1: more than --max allows. 3: there is no graph to
look at."""
DIFF = """\
Say which collectives NEW has more and less than OLD, by layer and line of the model.

Exit code 0: none. 1: some. 3: there is nothing to compare."""
RULES = """\
List the ops that have a rule, each with what its rule says.

An op is a sum of terms, each linear in some operands, or it is uninterpreted. It
maps partial sums to partial sums if every term has one partial operand and the
rest is the same on every rank. Dimensions that are not needed whole can be sharded.

  commplan rules 'aten.index*'"""
MACHINE = "Show, fit or measure what machines take for collectives and kernels."
MEASURE = """\
Measure this machine and write its file.

Under torchrun --nproc-per-node N --no-python commplan machine measure, collectives
over NCCL, or over gloo without GPUs; without torchrun memory, matmul and launches
alone."""
