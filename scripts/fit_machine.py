"""Fits the shipped machine files to a CSV file of measurements and prints the error per table.

`commplan machine fit`, writing where the package keeps its machines. The result depends on the
measurements and on what the files state beside their tables, and on nothing else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compiler.cli.commands.machine import fit_machines
from compiler.cli.render.progress import stderr
from compiler.cost.machine_files import FOLDER
from compiler.errors import CommPlanError


def main() -> int:
    """Writes the files unless asked not to; 1 if the measurements cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, help="measured rows; docs/machines.md has the columns")
    parser.add_argument("--dry-run", action="store_true", help="print errors, write nothing")
    arguments = parser.parse_args()
    try:
        return fit_machines(arguments.csv, None, None if arguments.dry_run else FOLDER, "table")
    except CommPlanError as error:
        stderr().print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
