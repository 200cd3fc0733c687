"""Observers of passes: print, write or verify the graph after each."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from compiler.cli.inputs.files import write_text
from compiler.errors import CommPlanError, VerificationError
from compiler.ir.remark import RemarkKind
from compiler.ir.text import print_graph
from compiler.pipeline import Observer, PassRecord
from passes import LOWERING, PLANNING

ALL, CHANGED = "all", "changed"


@dataclass(frozen=True)
class Debugging:
    """What to do after passes.

    Attributes:
        print_after: ``all``, ``changed``, the name of a pass, or empty.
        dump_dir: folder for the graph after every pass.
        verify_each: hold passes that report no change to it.
    """

    print_after: str = ""
    dump_dir: Path | None = None
    verify_each: bool = False

    @property
    def any(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.print_after or self.dump_dir or self.verify_each)


def observers(wanted: Debugging) -> tuple[Observer, ...]:
    """Observers for a pipeline, in the order of ``Debugging``.

    Raises:
        CommPlanError: no such pass, or a folder that cannot be made.
    """
    found: list[Observer] = []
    if wanted.print_after:
        found.append(_printing(wanted.print_after))
    if wanted.dump_dir is not None:
        found.append(_writing(wanted.dump_dir))
    if wanted.verify_each:
        found.append(_verifying())
    return tuple(found)


def header(record: PassRecord) -> str:
    """``// ----- IR after place-reductions (3): 84 rewrites, 50 refused -----``."""
    kinds = [remark.kind for remark in record.remarks]
    done, missed = kinds.count(RemarkKind.PASSED), kinds.count(RemarkKind.MISSED)
    change = "" if record.changed else ", unchanged"
    return (
        f"// ----- IR after {record.name} ({record.index + 1}): "
        f"{done} rewrites, {missed} refused{change} -----"
    )


def _printing(which: str) -> Observer:
    names = dict.fromkeys(each.name for each in (*PLANNING, *LOWERING))
    if which not in (ALL, CHANGED, *names):
        raise CommPlanError(
            "--print-after names no pass",
            found=repr(which),
            remedy=f"one of {', '.join((ALL, CHANGED, *names))}",
        )

    def observe(record: PassRecord) -> None:
        if which in (ALL, record.name) or (which == CHANGED and record.changed):
            print(f"{header(record)}\n{print_graph(record.graph)}", file=sys.stderr)

    return observe


def _writing(folder: Path) -> Observer:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommPlanError(
            "cannot make the folder", where=str(folder), found=error.strerror or str(error)
        ) from None

    def observe(record: PassRecord) -> None:
        text = f"{header(record)}\n{print_graph(record.graph)}"
        write_text(folder / f"{record.index + 1:02}-{record.name}.spmd", text)

    return observe


def _verifying() -> Observer:
    texts: list[str] = []

    def observe(record: PassRecord) -> None:
        texts.append(print_graph(record.graph))
        if len(texts) > 1 and not record.changed and texts[-1] != texts[-2]:
            raise VerificationError(
                f"pass {record.name} reports no change and returned another graph",
                where=f"pass {record.index + 1} of the pipeline",
                remedy="report this",
            )

    return observe
