"""Arguments of every command, read before PyTorch is imported."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from compiler.cli.entry import ExitCode
from compiler.cli.inputs.options import ALIASES, WORLD_SIZE, InputOptions, is_count

VERSION = "0.1.0"
POLICIES = ("cost", "merge", "boundary", "off")
LAUNCHES = ("graph", "eager")
REMARKS = ("all", "missed", "passed")
FORMATS, TABLES = ("text", "json", "github", "markdown"), ("text", "json", "markdown")
"""Choices; of each the first is the default."""
REPEATABLE: dict[str, Any] = {"action": "append", "default": []}

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


def parser() -> ArgumentParser:
    """Return the parser of the program."""
    program = Parser(
        prog="commplan",
        description="Plan, rewrite and prove the collectives of tensor-parallel PyTorch models.",
        epilog=EPILOG,
    )
    program.add_argument("--version", action="version", version=f"commplan {VERSION}")
    add = _adder(program)

    plan = add("plan", PLAN, _model(), _policy(), _format(FORMATS))
    _add_machine_options(plan)
    option(plan, "--compare NAME[:TP],…", "predict for these machines and world sizes too, and "
           "print only what they take", default="")  # fmt: skip
    option(plan, "--plot FILE", "draw predicted times over tokens, .png or .svg", type=Path)
    option(plan, "--trace FILE", "write predicted timelines, before and after, as a .json that "
           "Perfetto and chrome://tracing open", type=Path)  # fmt: skip
    option(plan, "--remarks", "remarks on what was done, what not, or all", choices=REMARKS)
    option(plan, "--timing", "print the time of every pass to standard error")

    report = add("report", REPORT, _model(), _policy(), _format(("html", "json")))
    _add_machine_options(report)
    _add_output(report)

    dump = add("dump", DUMP, _model(), _policy(), _format(("text", "json", "dot")))
    option(dump, "--before", "the graph as captured")
    option(dump, "--after", "the optimized graph; the default")
    option(dump, "--both", "both")
    option(dump, "--layers A-B", "only these layers, as a graph of their own", default="")
    _add_output(dump)
    option(dump, "--print-after all|changed|PASS", "print the graph after passes, to standard "
           "error", default="")  # fmt: skip
    option(dump, "--dump-dir DIR", "write the graph after every pass to a file in DIR", type=Path)
    option(dump, "--opt-bisect-limit N", "run only the first N passes", type=at_least(0))
    option(dump, "--verify-each", "check that passes which report no change made none")
    option(dump, "--check-each", "prove every pass that changed something")

    _add_output(add("capture", CAPTURE, _model()))

    check = add("check", CHECK, _files(), _format(FORMATS), run="check_graphs")
    option(check, "source SOURCE", "graph file that says what is right")
    option(check, "target TARGET", "graph file to hold against it")

    verify = add("verify", VERIFY, _model(), _format(FORMATS))
    option(verify, "single SINGLE", "the model on one device, if it is another than MODEL with one "
           "rank", nargs="?", default="")  # fmt: skip

    listed = add("collectives", COLLECTIVES, _model(), _policy(widen=False), _format(FORMATS))
    option(listed, "--optimized", "of the optimized graph")
    option(listed, "--max KIND=N", "end with exit code 1 if there are more of a kind, such as "
           "all_reduce=90; repeatable", dest="most", **REPEATABLE)  # fmt: skip
    diff = add("diff", DIFF, _captured(), _format(FORMATS), module="collectives")
    option(diff, "old OLD", "a list of commplan collectives, or as MODEL")
    option(diff, "new NEW", "what to hold against it, likewise")

    lint = add("lint", LINT, _model(), _format(FORMATS))
    option(lint, "--require-coverage PERCENT", "end with exit code 2 unless placements are known "
           "of so much of the model, of all of it if no number is given",
           type=at_least(0, most=100), nargs="?", const=100, default=0)  # fmt: skip

    bench = add("bench", BENCH, _set(), _format(TABLES))
    option(bench, "model MODEL", "a module:factory, as commplan plan takes it, with weights")
    option(bench, "--machine NAME", "what plans are made for and times predicted by: a name of "
           "`commplan machine list`, or a file; auto: that of the GPUs, if it is known",
           default="auto")  # fmt: skip
    option(bench, "--launch", "how kernels are launched", choices=("eager", "graph"))
    option(bench, "--rounds N", "how often each form has its turn", type=at_least(1), default=10)

    optimize = add("optimize", OPTIMIZE, _files(), _policy())
    option(optimize, "file FILE", "graph file, .spmd or .pt2")
    _add_output(optimize, required=True)
    option(optimize, "--tokens N", "what symbolic sizes count as", type=at_least(1))

    by = Parser(add_help=False)
    option(by, "--by", "what a graph must be: proved, or give the same in simulation of its ranks",
           choices=("proof", "simulation"))  # fmt: skip
    add("bisect", BISECT, _model(), _policy(), by)
    reduce = add("reduce", REDUCE, _model(), _policy(), by, module="bisect")
    option(reduce, "--command CMD", "what must go on failing, in place of the passes: a command "
           "that gets the graph file for {}, or as its last argument", default="")  # fmt: skip
    option(reduce, "--seconds N", "how long to search", type=at_least(1), default=120)
    _add_output(reduce, required=True)

    rules = add("rules", RULES, _format(TABLES))
    option(rules, "pattern OP", "ops to list: part of a name, or a glob", nargs="?", default="")

    _add_machine(_adder(add("machine", MACHINE), "machine"))
    return program


def _add_machine_options(command: Parser) -> None:
    """Add the token counts that plans are shown for, and the machine that they are made for."""
    option(command, "--tokens N,…", "token counts to plan for", default="1,64,2048,16384")
    option(command, "--machine NAME", "plan by the time taken on a machine: a name of `commplan "
           "machine list`, or a file; without, by payload bytes")  # fmt: skip
    option(command, "--launch", "how kernels are launched on the machine; graph if left out",
           choices=LAUNCHES, default=None)  # fmt: skip


def _add_machine(add: Callable[..., Parser]) -> None:
    """Add the commands of ``commplan machine``."""
    formats = _format(TABLES)
    add("list", "List the machines that come with the package.", formats, run="list_machines")
    show = add("show", "Show a machine's numbers with their sources.", formats)
    option(show, "name MACHINE", "a machine's name, or a machine file")
    option(show, "--ranks N", "tables of this rank count alone", type=at_least(2))
    fit = add("fit", FIT, formats, run="fit_machines")
    option(fit, "measurements CSV", "measured rows; docs/machines.md has the columns", type=Path)
    option(fit, "--machine NAME", "a machine's name or file; repeatable, all if left out",
           dest="names", **REPEATABLE)  # fmt: skip
    option(fit, "-o --output FOLDER", "write the files here", dest="folder", type=Path)
    measure = add("measure", MEASURE)
    option(measure, "--name NAME", "the machine's name", default="measured")
    option(measure, "--min-bytes N", "smallest payload; doubled from there", type=at_least(4),
           default=512)  # fmt: skip
    option(measure, "--max-bytes N", "largest payload; if left out, 256 MiB on GPUs, 4 MiB on CPUs",
           type=at_least(4))  # fmt: skip
    _add_output(measure)


def _adder(program: Parser, module: str = "") -> Callable[..., Parser]:
    """Return a function that adds a command with its description and shared options."""
    commands = program.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def add(
        name: str, description: str, *parents: Parser, module: str = module, run: str = ""
    ) -> Parser:
        summary = description.split("\n", 1)[0]
        command: Parser = commands.add_parser(
            name, help=summary, description=description, parents=parents
        )
        where = run if ":" in run else f"{module or name}:{run or name}"
        command.set_defaults(run=where)
        return command

    return add


def option(command: Parser, usage: str, help: str, **rest: Any) -> None:
    """Add an option.

    Args:
        command: the parser of a command.
        usage: as the command line has it, ``-o --output FILE``; without a value it is a flag, or
            one of ``choices``, of which the first is the default.
        help: what it does.
        rest: further arguments of ``add_argument``.
    """
    *names, last = usage.split()
    if not last.startswith("-"):
        rest["metavar"] = last
    else:
        names.append(last)
        flag = {"default": rest["choices"][0]} if "choices" in rest else {"action": "store_true"}
        rest = flag | rest
    command.add_argument(*names, help=help, **rest)


def _files() -> Parser:
    """Return the options of graph files."""
    shared = Parser(add_help=False)
    option(shared, "--mesh AXIS=N,…", "mesh of a .pt2 file, such as dp=2,tp=4", default="")
    option(shared, "--group NAME=AXIS,…", "axes that a group name in a .pt2 file spans, such as "
           "0=tp; repeatable", dest="groups", **REPEATABLE)  # fmt: skip
    option(shared, "--input NAME=PLACEMENT", "placement of an input of a .pt2 file or a model: R, "
           "V, P, P(op), S(dim), or per axis tp:S(0),dp:R; in a name, * stands for one part. Left "
           "out: arguments R, the model's own tensors as it declares them, else V; repeatable",
           dest="inputs", **REPEATABLE)  # fmt: skip
    return shared


def _model() -> Parser:
    """Return MODEL and its options."""
    shared = Parser(add_help=False, parents=[_files(), _captured()])
    option(shared, "model MODEL", f"{', '.join(ALIASES)}; any module:factory, a callable that is "
           "called under an initialized process group and returns (model, args) or (model, args, "
           "kwargs); or a graph file, .spmd or .pt2")  # fmt: skip
    return shared


def _captured() -> Parser:
    """Return the options of models that are captured."""
    shared = Parser(add_help=False, parents=[_set()])
    option(shared, "--tp N", f"world size under which a factory is called; {WORLD_SIZE} if left "
           "out", type=at_least(1))  # fmt: skip
    option(shared, "--capture", "record: run the model once; export: torch.export; auto: record "
           "what can be", choices=("auto", "record", "export"))  # fmt: skip
    return shared


def _set() -> Parser:
    """Return the option of factories."""
    shared = Parser(add_help=False)
    option(shared, "--set KEY=VALUE", "keyword argument of the factory, a Python literal or a "
           "string; repeatable", dest="settings", **REPEATABLE)  # fmt: skip
    return shared


def _policy(*, widen: bool = True) -> Parser:
    """Return the options of planning."""
    shared = Parser(add_help=False)
    option(shared, "--policy", "cost: reduce, and with --machine share rows between ranks, where "
           "it costs least; merge: reduce never before the author does; boundary: likewise, and "
           "share rows in sparse layers; off: move nothing", choices=POLICIES)  # fmt: skip
    if widen:
        option(shared, "--widen", "let reductions move below conversions to a wider type, where "
               "that pays")  # fmt: skip
    return shared


def _format(choices: Sequence[str]) -> Parser:
    shared = Parser(add_help=False)
    option(
        shared,
        "--format",
        "how to print the result: as text, JSON, annotations for GitHub, "
        "Markdown, whichever of these there are",
        choices=choices,
    )
    return shared


def _add_output(command: Parser, required: bool = False) -> None:
    option(command, "-o --output FILE", "write the result to FILE", type=Path, required=required)


def at_least(minimum: int, most: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``minimum``, to ``most`` or of at most 12 digits."""

    def read(text: str) -> int:
        if not is_count(text, minimum) or (most is not None and int(text) > most):
            end = "of at most 12 digits" if most is None else f"to {most}"
            raise ArgumentTypeError(f"must be a whole number from {minimum}, {end}")
        return int(text)

    return read


PLAN = """\
Show which collectives move, what that saves, why, and whether it is proved.

Captures MODEL, places its reductions for each token count, and checks the result.

  commplan plan step3p5 --tp 8 --machine h200x8 --tokens 64,4096 --set experts=ep"""
REPORT = """\
Write one HTML page on MODEL: plans, layers, collectives, reasons, passes, premises.

The page loads nothing from elsewhere; its data stands in it as JSON, which
--format json prints alone. Exit codes are those of plan.

  commplan report step3p5 --machine h200x8 -o step3p5.html"""
DUMP = """\
Print a model's graph before and after optimization, as text, JSON or DOT.

Beside each value stands what ranks hold of it, as derived from the inputs: R the
same, S(dim) blocks, P partial sums, V something else or not known.
The text is what check, plan and optimize read. The optimized graph is printed
whatever the checker would say of it; plan and check tell. Options that look at
passes see those of planning, then those that make a planned graph run.

  commplan dump step3p5 --layers 3-4 -o layers.spmd"""
CAPTURE = """\
Save a model's graph as text, so that other commands need not capture it again.

Source lines, layers and names of values are kept: read again, the graph is
planned, linted and printed as the model is. Weights are not in it.

  commplan capture step3p5 -o step3p5.spmd; commplan plan step3p5.spmd"""
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
COLLECTIVES = """\
List the collectives of MODEL: kind, axis, operand on one rank, layers and line.

The JSON is for commplan diff. Exit code 0: there they are. 1: more than --max
allows. 3: there is no graph to look at."""
DIFF = """\
Say which collectives NEW has more and less than OLD, by layer and line of the model.

Exit code 0: none. 1: some. 3: there is nothing to compare."""
LINT = """\
Find wrong reductions in MODEL: double, missing, over wrong ranks, of wrong terms.

Partial sums are known by the placements that the model declares for its
parameters, or that --input gives; the coverage says of how much of the model they
are known. Exit code 0: no finding. 1: findings. 2: less was looked at than
--require-coverage asks for. 3: there is no graph to look at."""
BENCH = """\
Time MODEL as written, merged and planned, in turns, on the ranks that run it.

Started by torchrun, over NCCL, or over gloo without GPUs. Printed are medians and
quartiles of rounds, collectives as they ran, the part of the time that they took,
and with a machine the prediction beside what was measured.

  torchrun --nproc-per-node 8 --no-python commplan bench my_model:factory"""
OPTIMIZE = """\
Optimize the graph in FILE, check it, and write it in the same form.

Nothing is written unless the result is shown to be equivalent."""
BISECT = """\
Name the rewrite after which MODEL is not proved, or computes something else.

MODEL is planned and lowered without proof; the passes are bisected. Exit code 0:
every rewrite is right. 1 and 2: the verdict on the rewrite at fault."""
REDUCE = """\
Write the smallest graph that fails as MODEL does: a proof, a pass, or a command.

  commplan reduce model.spmd -o small.spmd --command 'python check.py {}'"""
RULES = """\
List the ops that have a rule, each with what its rule says.

An op is a sum of terms, each linear in some operands, or it is uninterpreted. It
maps partial sums to partial sums if every term has one partial operand and the
rest is the same on every rank. Dimensions that are not needed whole can be sharded.

  commplan rules 'aten.index*'"""
MACHINE = "Show, fit or measure what machines take for collectives and kernels."
FIT = "Fit machine files to a table of measurements and print the errors."
MEASURE = """\
Measure this machine and write its file.

Under torchrun --nproc-per-node N --no-python commplan machine measure, collectives
over NCCL, or over gloo without GPUs; without torchrun memory, matmul and launches
alone."""
