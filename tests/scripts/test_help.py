"""Every script says what it does, and starts nothing then."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.with_suffix("").exists())


@pytest.mark.parametrize("name", COMMANDS)
def test_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = import_module(f"scripts.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        sys.exit(script.main())
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
