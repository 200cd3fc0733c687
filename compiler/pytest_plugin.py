"""The pytest plug-in: ``collectives_snapshot``, and ``--commplan-update`` to accept changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # PyTorch is imported by the tests that need it
    from compiler.ir.graph import SpmdGraph

FOLDER = "__collectives__"
"""Beside a test file: the lists its tests have accepted."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--commplan-update``."""
    parser.getgroup("commplan").addoption(
        "--commplan-update",
        action="store_true",
        help="write the lists of collectives that collectives_snapshot compares with",
    )


@dataclass(frozen=True)
class CollectivesSnapshot:
    """Compares the collectives of a graph with the list in the repository.

    Attributes:
        file: the list of the test; several graphs of a test have names.
        update: write it instead of comparing.
    """

    file: Path
    update: bool

    def __call__(
        self,
        subject: Any,
        name: str = "",
        *,
        tp: int | None = None,
        budget: Mapping[str, int] | None = None,
    ) -> None:
        """Fail if the collectives of ``subject`` are not those of the list.

        Args:
            subject: ``module:factory``, as for ``commplan plan``; or a graph: an
                ``OptimizationResult``, or the ``SpmdGraph`` of one.
            name: tells several graphs of one test apart.
            tp: world size under which a factory is called; 8 if None.
            budget: kind -> number of collectives that there may be, as ``{"all_reduce": 90}``.

        Raises:
            CommPlanError: ``subject`` is neither, or cannot be captured.
        """
        from compiler.snapshot import Snapshot, changes, exceeded

        snapshot = Snapshot.of(_graph(subject, tp))
        if over := exceeded(snapshot, budget or {}):
            pytest.fail("\n".join(over), pytrace=False)
        file = self.file.with_stem(f"{self.file.stem}.{name}") if name else self.file
        if self.update:
            file.parent.mkdir(exist_ok=True)
            file.write_text(snapshot.to_json(), encoding="utf-8")
            return
        remedy = "accept with pytest --commplan-update"
        if not file.exists():
            pytest.fail(f"no list of collectives in {file}; {remedy}", pytrace=False)
        accepted = Snapshot.from_json(file.read_text(encoding="utf-8"), str(file))
        if differences := changes(accepted, snapshot):
            lines = ("collectives changed:", *(change.text for change in differences), remedy)
            pytest.fail("\n".join(lines), pytrace=False)


@pytest.fixture
def collectives_snapshot(request: pytest.FixtureRequest) -> CollectivesSnapshot:
    """Compares the collectives of a graph with the list accepted before."""
    test = re.sub(r"[^\w.-]+", "-", request.node.name).strip("-")
    file = request.path.parent / FOLDER / f"{request.path.stem}.{test}.json"
    return CollectivesSnapshot(file, request.config.getoption("--commplan-update"))


def _graph(subject: Any, tp: int | None) -> SpmdGraph:
    from compiler.cli.inputs.load_model import load
    from compiler.cli.inputs.options import InputOptions
    from compiler.cli.render.progress import Stages
    from compiler.errors import CommPlanError
    from compiler.ir.graph import SpmdGraph

    if isinstance(subject, str):
        return load(subject, InputOptions(tp=tp), Stages()).graph
    graph = getattr(subject, "spmd", subject)
    if not isinstance(graph, SpmdGraph):
        raise CommPlanError(
            "collectives_snapshot() must be given a model's name or a graph",
            found=type(subject).__name__,
            remedy="pass 'module:factory', or the result of optimize_graph",
        )
    return graph
