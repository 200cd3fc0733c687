"""The names of the package, which are imported when they are used."""

import subprocess
import sys

import compiler


def test_every_name_has_a_home():
    listed = [name for names in compiler._HOMES.values() for name in names]
    assert sorted(listed) == sorted(compiler.__all__)
    assert {getattr(compiler, name).__name__ for name in listed} == set(listed)
    assert set(compiler.__all__) <= set(dir(compiler))


def test_the_command_line_starts_without_pytorch():
    code = "import sys, compiler.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
