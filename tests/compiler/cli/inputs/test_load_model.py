"""Models by name: what a user can get wrong gives one message, exit code 3 and no traceback."""

import importlib
import inspect
import logging
from pathlib import Path

import pytest

import compiler
from compiler.cli.inputs.load_model import ALIASES, user_line
from compiler.ir.torch_logging import FAKE_TENSORS, PROGRAMS


def message(found):
    assert (found.code, found.out) == (3, "")
    assert "Traceback" not in found.err
    start = found.err.index("error: ")
    return found.err[start:]


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_name_factories(name):
    module, _, factory = ALIASES[name].partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), factory)).parameters
    assert {"experts", "layers"} <= parameters.keys()


def test_a_folder_beside_the_libraries_is_the_users(monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("1 / 0", f"{Path(compiler.__file__).parent}2/build.py", "exec"))
    assert user_line(caught.value).startswith("build.py:1 in <module>")


def test_unknown_model(run):
    text = message(run("plan", "step4"))
    assert text.startswith("error: unknown model 'step4'\n  found: known models are step3p5,")


def test_unknown_module(run, factories):
    assert message(run("plan", "no_such.package:model")).startswith(
        "error: no module named 'no_such'\n  where: no_such.package\n"
    )


def test_module_that_cannot_be_imported(run, factories, tmp_path):
    (tmp_path / "cli_broken.py").write_text("import math\nmath.no_such_function()\n")
    (tmp_path / "cli_syntax.py").write_text("def f(:\n")
    (tmp_path / "cli_needs.py").write_text("import no_such_dependency\n")
    broken = message(run("plan", "cli_broken:model"))
    assert "where: cli_broken.py:2 in <module>: math.no_such_function()" in broken
    assert "found: AttributeError" in broken
    assert "where: cli_syntax.py:1: def f(:" in message(run("plan", "cli_syntax:model"))
    needs = message(run("plan", "cli_needs:model"))
    assert "module 'cli_needs' cannot be imported" in needs
    assert "No module named 'no_such_dependency'" in needs


def test_unknown_factory(run, factories):
    text = message(run("plan", f"{factories}:layer"))
    assert text.startswith("error: module 'cli_factories' has no factory 'layer'")
    assert "layers, no_tuple, one_layer" in text
    assert "is not callable" in message(run("plan", f"{factories}:NOT_CALLABLE"))


def test_factory_that_destroys_the_process_group(run, factories):
    text = message(run("plan", f"{factories}:destroys"))
    assert "error: factory 'cli_factories:destroys' raised ValueError\n" in text
    assert "Default process group has not been initialized" in text


def test_factory_that_raises(run, factories):
    text = message(run("plan", f"{factories}:raises"))
    assert "error: factory 'cli_factories:raises' raised ValueError\n" in text
    assert 'in raises: raise ValueError("no such checkpoint")' in text
    assert "found: no such checkpoint" in text


def test_code_that_exits(run, factories, tmp_path):
    text = message(run("lint", f"{factories}:exits"))
    assert text == (
        "error: factory 'cli_factories:exits' raised SystemExit\n"
        f"  where: cli_factories.py:{line_of(tmp_path, 'raise SystemExit(7)')} in exits: "
        "raise SystemExit(7)\n"
        "  found: 7\n"
    )
    (tmp_path / "cli_exits.py").write_text("raise SystemExit(7)\n")
    assert message(run("lint", "cli_exits:model")) == (
        "error: module 'cli_exits' cannot be imported\n"
        "  where: cli_exits.py:1 in <module>: raise SystemExit(7)\n"
        "  found: SystemExit: 7\n"
    )


def line_of(folder, code):
    lines = (folder / "cli_factories.py").read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.strip() == code)


@pytest.mark.parametrize("name", ["missing", "empty", "garbage", "folder"])
def test_program_that_cannot_be_read(run, tmp_path, name, logged):
    path = tmp_path / f"{name}.pt2"
    if name == "folder":
        path.mkdir()
    elif name != "missing":
        path.write_bytes(b"garbage" * (name == "garbage"))
    text = message(run("lint", path, "--mesh", "tp=4"))
    assert text.startswith(f"error: cannot read the file\n  where: {path}\n  found: ")
    assert not logged


def test_arguments_of_a_wrong_shape(run, factories, logged):
    text = message(run("lint", f"{factories}:wrong_shape", "--tp", "2"))
    assert text.startswith("error: the model cannot be exported\n")
    assert not logged


@pytest.fixture
def logged():
    """What PyTorch logs, by the loggers that print tracebacks."""
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logs = [logging.getLogger(name) for name in (FAKE_TENSORS, PROGRAMS)]
    for log in logs:
        log.addHandler(handler)
    yield records
    for log in logs:
        log.removeHandler(handler)


def test_factory_with_another_result(run, factories):
    text = message(run("plan", f"{factories}:no_tuple"))
    assert "returns something else than a model and its arguments" in text
    assert "found: (Layers)" in text


def test_keywords_the_factory_does_not_take(run, factories):
    text = message(run("plan", f"{factories}:layers", "--set", "sum=3"))
    assert "unexpected keyword argument 'sum'; its parameters are (sums=2)" in text


def test_model_that_cannot_be_captured(run, factories):
    text = message(run("plan", f"{factories}:data_dependent", "--tp", 2))
    assert "takes a Python decision on the values of a tensor" in text
    assert "cli_factories.py:" in text


def test_real_model_that_does_not_divide(run):
    text = message(run("plan", "step3p5", "--tp", 3, "--set", "layers=1"))
    assert "factory 'models.step3p5.entry:prefill' raised ParallelError" in text
    assert "cannot be divided over 3 ranks" in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--set", "sums"], "cannot read --set\n  found: 'sums'"),
        (["--tokens", "0"], "cannot read --tokens"),
        (["--tokens", "1,,2"], "cannot read --tokens"),
        (["--mesh", "tp=2"], "--mesh given for a model"),
    ],
)
def test_bad_values(run, factories, options, text):
    assert text in message(run("plan", f"{factories}:layers", *options))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--tp", "0"], "--tp"),
        (["--tp", "two"], "--tp"),
        (["--policy", "best"], "--policy"),
        (["--format", "html"], "--format"),
        (["--remarks", "some"], "--remarks"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_options(run, two_sums, options, text):
    found = run("plan", two_sums, *options)
    assert (found.code, found.out) == (3, "")
    assert text in found.err
    assert "Traceback" not in found.err


def test_options_for_models_are_refused_for_files(run, two_sums):
    assert "--tp given for a graph file" in message(run("plan", two_sums, "--tp", 4))
    assert "--set given for a graph file" in message(run("plan", two_sums, "--set", "a=1"))


def test_missing_argument_and_unknown_command(run):
    assert run("plan").code == 3
    assert run("explain").code == 3


@pytest.mark.parametrize("command", ["plan", "dump", "check", "lint", "optimize"])
def test_help(run, command):
    assert command in run("--help").out
    found = run(command, "--help")
    assert found.code == 0
    assert found.out.startswith(f"usage: commplan {command} ")
