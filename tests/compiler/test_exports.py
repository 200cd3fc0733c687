"""The names of the package, which are imported when they are used."""

import subprocess
import sys
from pathlib import Path

import commplan
import compiler

ROOT = Path(__file__).parents[2]


def test_every_name_has_a_home():
    listed = [name for names in compiler._HOMES.values() for name in names]
    assert sorted(listed) == sorted(compiler.__all__)
    assert {getattr(compiler, name).__name__ for name in listed} == set(listed)
    assert set(compiler.__all__) <= set(dir(compiler))


def test_the_command_line_starts_without_pytorch():
    code = "import sys, compiler.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_commplan_has_the_same_objects():
    assert commplan.__all__ == compiler.__all__
    assert all(getattr(commplan, name) is getattr(compiler, name) for name in compiler.__all__)
    assert set(commplan.__all__) <= set(dir(commplan))


def test_python_m_commplan_is_the_command_line():
    command = [sys.executable, "-m", "commplan", "--version"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout.startswith("commplan ")


def test_another_package_called_compiler_is_named(tmp_path):
    (tmp_path / "compiler.py").write_text("")
    code = "import sys; sys.path.insert(0, ''); import commplan"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "needs its own package 'compiler', and another one of this name" in ran.stderr
    assert str(tmp_path / "compiler.py") in ran.stderr


def test_the_public_package_starts_without_pytorch():
    code = "import sys, commplan; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
