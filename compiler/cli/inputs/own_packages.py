"""Import this program's own packages, whatever else has their names.

They are called ``compiler``, ``passes`` and ``models``, as are packages of many users, and the
working directory may stand before this program on the path.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

NAMES = ("bench", "compiler", "passes", "models")
ROOT = Path(__file__).resolve().parents[3]


def is_own(name: str) -> bool:
    """Return whether what is imported as ``name`` is a package of this program."""
    return location(name) == ROOT / name


def location(name: str) -> Path | None:
    """Return the folder of the imported package ``name``; None if there is none."""
    folders = list(getattr(sys.modules.get(name), "__path__", ()))
    return Path(folders[0]).resolve() if folders else None


def import_own(name: str) -> None:
    """Import the package of this program, which hides any other of its name from here on."""
    if is_own(name):
        return
    spec = PathFinder.find_spec(name, [str(ROOT)])
    assert spec, f"{name} is not in {ROOT}"
    assert spec.loader, f"{name} is not a package in {ROOT}"
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
