"""Arguments are read without PyTorch, and their choices are those of the compiler."""

import subprocess
import sys

import pytest

from compiler.cli.arguments import LAUNCHES, POLICIES, parse
from compiler.cli.entry import ExitCode
from compiler.cli.inputs.options import InputOptions
from compiler.cost import Launch
from compiler.plan import planner_options


@pytest.mark.parametrize("arguments", ["--help", "plan -h", "--version", "plan --tp 0", "explain"])
def test_help_and_usage_errors_need_no_pytorch(arguments: str) -> None:
    code = (
        "import sys, atexit; from compiler.cli import main\n"
        "atexit.register(lambda: print({'torch', 'rich'} & sys.modules.keys()))\nmain()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == (3 if "--tp" in arguments or "explain" in arguments else 0)
    assert process.stdout.endswith("set()\n")


def test_choices_are_those_of_the_compiler() -> None:
    assert planner_options.POLICIES == POLICIES
    assert {str(launch) for launch in Launch} == set(LAUNCHES)


def test_options_of_inputs_are_one_value() -> None:
    command, values = parse(["check", "a.pt2", "b.pt2", "--mesh", "tp=2", "--input", "x=S(0)"])
    assert command == "check:check_graphs"
    assert values == {
        "source": "a.pt2",
        "target": "b.pt2",
        "format": "text",
        "options": InputOptions(mesh="tp=2", groups=[], inputs=["x=S(0)"]),
    }
    assert parse(["machine", "list"]) == ("machine:list_machines", {"format": "text"})


def test_options_have_one_spelling() -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["plan", "step3p5", "--tok", "1"])
    assert caught.value.code == ExitCode.BAD_INPUT
