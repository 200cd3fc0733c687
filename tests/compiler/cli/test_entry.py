"""The program as a process: streams that fail, interrupts, and packages of the same names."""

import os
import signal
import subprocess
import sys
import time
from io import TextIOWrapper
from pathlib import Path

import pytest

from compiler.cli import main
from compiler.cli.commands import rules
from compiler.cli.inputs.own_packages import ROOT

CONSOLE_SCRIPT = "import sys; sys.path.pop(0); from compiler.cli import main; sys.exit(main())"


def command(*arguments, start=("-m", "compiler")):
    return [sys.executable, *start, *map(str, arguments)]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(*arguments, start=("-m", "compiler"), **how):
    how = {"stdout": subprocess.PIPE, "env": environment(), **how}
    return subprocess.run(
        command(*arguments, start=start), stderr=subprocess.PIPE, text=True, timeout=120, **how
    )


def ended(monkeypatch, *arguments):
    """Exit code of the program in this process."""
    monkeypatch.setattr(sys, "argv", ["commplan", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_full_disk_is_one_line(unbuffered, monkeypatch, capsys):
    with open("/dev/full", "wb", buffering=0 if unbuffered else -1) as full:
        monkeypatch.setattr(sys, "stdout", TextIOWrapper(full, write_through=unbuffered))
        assert ended(monkeypatch, "machine", "list") == 3
    line = "error: cannot write standard output: No space left on device\n"
    assert capsys.readouterr().err == line


def test_a_reader_that_has_gone_is_no_verdict(two_sums):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        process = run("plan", two_sums, stdout=closed)
    assert process.returncode == 141
    assert "rror" not in process.stderr


def test_readers_of_output_and_errors_that_have_gone(two_sums, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", closed)
        assert ended(monkeypatch, "plan", two_sums) == 141


def test_an_interrupt_during_imports_is_silent(tmp_path):
    """PyTorch is the package of this folder, which takes its time."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('importing', flush=True)\ntry:\n    time.sleep(60)\n"
        "except BaseException as error:\n    raise ImportError('no torch') from error\n"
    )
    process = subprocess.Popen(
        command("machine", "list"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"),
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


@pytest.fixture
def namesakes(tmp_path):
    """A working directory with packages ``models`` and ``passes``."""
    for name in ("models", "passes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "models" / "mine.py").write_text("def build():\n    raise ValueError('built')\n")
    (tmp_path / "reader.py").write_text("from passes import mine\n")
    return tmp_path


def test_own_models_and_those_of_the_working_directory(namesakes):
    """Factories of both are found: what they are called with is wrong, or what they do."""
    start = ("-c", CONSOLE_SCRIPT)
    own = run("plan", "step3p5", "--set", "no_such=1", cwd=namesakes)
    assert own.returncode == 3
    assert "error: factory 'models.step3p5.entry:prefill' cannot be called" in own.stderr
    users = run("plan", "models.mine:build", cwd=namesakes, start=start)
    assert users.returncode == 3
    assert "error: factory 'models.mine:build' raised ValueError" in users.stderr


def test_a_package_that_this_program_hides(namesakes, monkeypatch, capsys):
    monkeypatch.chdir(namesakes)
    monkeypatch.setattr(sys, "path", [str(namesakes), *sys.path])
    assert ended(monkeypatch, "plan", "reader:build") == 3
    assert capsys.readouterr().err.endswith(
        f"remedy: 'passes' is the package in {ROOT / 'passes'}, this program's own: rename yours\n"
    )
    assert ended(monkeypatch, "plan", "passes.mine:build") == 3
    assert capsys.readouterr().err.endswith(
        "error: no module named 'passes.mine'\n"
        "  where: passes.mine\n"
        f"  found: 'passes' is the package in {ROOT / 'passes'}, this program's own\n"
        "  remedy: rename one of the two: a process has one package of a name\n"
    )


def test_an_internal_error_is_told_from_a_verdict(monkeypatch, capsys):
    def broken(**_):
        raise AssertionError("an invariant")

    monkeypatch.setattr(rules, "rules", broken)
    assert ended(monkeypatch, "rules") == 70
    assert "AssertionError: an invariant" in capsys.readouterr().err
