"""Graphs written to a folder as they are captured and planned: a failure leaves what it needs."""

from __future__ import annotations

from pathlib import Path

from compiler.errors import CommPlanError, GraphError
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import print_graph
from compiler.optimize.result import ModelReport


class GraphDump:
    """The files of one captured graph, of one process.

    ``rank0-4711/01-captured.spmd``, then ``01-planned-1.spmd``, … one for each graph that runs, and
    ``01-report.txt``. Every command reads the graphs in the place of a model.
    """

    def __init__(self, folder: Path, process: str) -> None:
        """Take the next number of this process.

        Raises:
            CommPlanError: the folder cannot be written to.
        """
        self._folder = folder / process
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            number = 1 + sum(1 for _ in self._folder.glob("*-captured.spmd"))
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self._number = f"{number:02}"

    def captured(self, graph: SpmdGraph) -> None:
        """Write the graph as its author wrote it."""
        self._write("captured.spmd", _text(graph))

    def planned(self, report: ModelReport) -> None:
        """Write the graphs that run, and what was done."""
        graphs = dict.fromkeys(each.spmd for each in report.ranges)
        for number, graph in enumerate(graphs, 1):
            self._write(f"planned-{number}.spmd", _text(graph))
        self._write("report.txt", f"{report}\n")

    def _write(self, name: str, text: str) -> None:
        path = self._folder / f"{self._number}-{name}"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from error


def _text(graph: SpmdGraph) -> str:
    try:
        return print_graph(graph, source=True, names=True)
    except GraphError as error:
        return f"// this graph has no text: {error.what}\n"


def _unwritable(path: Path, error: OSError) -> CommPlanError:
    return CommPlanError(
        "the folder of COMMPLAN_DUMP cannot be written to",
        where=str(path),
        found=str(error.strerror),
        remedy="name another folder, or none",
    )
