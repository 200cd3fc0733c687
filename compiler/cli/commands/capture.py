"""``commplan capture``: a model's graph, saved so that other commands need not capture it again."""

from __future__ import annotations

from pathlib import Path

from compiler.cli.inputs.files import write_text
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages
from compiler.cli.render.report import assumptions
from compiler.ir.text import print_graph


def capture(model: str, options: InputOptions, output: Path | None) -> None:
    """Write the graph as text, with source lines, layers and names, which reading it restores."""
    source = load(model, options, Stages())
    remarks = (f"// assumed: {text}\n" for text in assumptions(source.assumed))
    text = "".join((f"// {source.name}\n", *remarks)) + print_graph(
        source.graph, source=True, names=True
    )
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
