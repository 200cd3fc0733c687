"""Write the table of vLLM's architectures under lint: ``python -m scripts.vllm_zoo OUT.md``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compiler.engines.vllm.zoo import Linted, architectures, linted


def row(one: Linted) -> str:
    """Return a line of the table."""
    said = one.refusal[:160] if one.refusal else f"{len(one.findings)}"
    cells = (
        ("", f"refused: {said}", "", "")
        if one.refusal
        else (str(one.ranks), said, str(one.reductions), f"{one.percent} %")
    )
    return f"| {one.architecture} | {' | '.join(cells)} | {one.seconds:.0f} |"


def main() -> int:
    """Lint every architecture, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--tp", type=int, default=8)
    arguments = parser.parse_args()
    head = [
        "| architecture | findings | all_reduces | coverage | seconds |",
        "|---|---|---|---|---|",
    ]
    lines, texts = [*head], list[str]()
    for one in linted(arguments.architectures or architectures(), arguments.tp):
        lines.append(row(one))
        texts += [f"{one.architecture}: {text}" for text in one.findings]
        print(lines[-1], *one.findings, sep="\n", flush=True)
        arguments.table.write_text("\n".join([*lines, "", *texts]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
