"""Collectives of transformers' decoders at tensor parallel 4, before and after, as a table.

Small configurations of transformers' own classes, sharded by their own plans, in bfloat16; sizes
are symbolic. Both graphs run on all ranks in float64.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter

import torch
import transformers
from rich.console import Console

from compiler.analysis.statistics import Statistics
from tests.families.families import FAMILIES
from tests.families.measured import PREFILL, Measured, measured

COLUMNS = ("family", "layers", "all_reduces", "other collectives", "payload bytes", "verdict",
           "moved", "sharded")  # fmt: skip


def row(name: str, found: Measured) -> tuple[str, ...]:
    """One family's line."""
    before, after = found.report.before, found.report.after
    kinds = Counter(layer.kind for layer in found.report.layers)
    return (
        name,
        ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        f"{before.all_reduces} → {after.all_reduces}",
        f"{_others(before)} → {_others(after)}",
        f"{before.payload_bytes:,} → {after.payload_bytes:,}",
        str(found.report.verdict),
        f"{found.moved:.1e}",
        f"{found.sharded:.1e}",
    )


def _others(found: Statistics) -> int:
    return len(found.collectives) - found.all_reduces


def main() -> int:
    """Prints a Markdown table on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--static", action="store_true", help="fixed sizes: much faster to export")
    given = parser.parse_args()
    if unknown := set(given.families) - set(FAMILIES):
        parser.error(f"unknown families {sorted(unknown)}; known: {', '.join(FAMILIES)}")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    rows = []
    for name in given.families or FAMILIES:
        with console.status(f"capturing and optimizing {name}"):
            found = measured(FAMILIES[name], symbolic=not given.static)
        console.print(f"{name}: {found.report.verdict}, {found.captured.seconds:.0f} s of capture")
        rows.append(row(name, found))
    print(
        f"{PREFILL[1]} tokens, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print()
    for line in (COLUMNS, ("---",) * len(COLUMNS), *rows):
        print(f"| {' | '.join(line)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
