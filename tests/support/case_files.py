"""Before/after cases of passes, kept as text in ``*.spmd`` files.

A file names its passes, then lists cases; what stands before the first case (mesh, symbols) is put
before every block that does not start with a mesh of its own::

    // PASS: merge-all-reduces
    mesh <tp = 8>
    // CASE: two row-parallel outputs meet in an add
    // BEFORE
    func @f(%0 "x": f32[4, 8] {tp: P}) { … }
    // AFTER
    func @f(%0 "x": f32[4, 8] {tp: P}) { … }

One of AFTER, UNCHANGED and ERROR says what the pass does. ``// MISSED: text`` is part of the reason
of one missed remark, in order, and all of them are listed; ``// ERROR: line`` is one line of the
full error. ``// WRONG`` is a bad AFTER, and ``// VERDICT: NOT_EQUIVALENT text`` what the checker
must say of it. A line that starts with ``//`` and is no directive is an error: notes are indented.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn


class CaseError(Exception):
    """A case file that is not well-formed; the message starts with file:line."""


class CaseFailedError(AssertionError):
    """A case that does not hold; the message starts with file:line."""


@dataclass(frozen=True)
class Block:
    """Lines of a graph in a file; ``line`` is the number of the directive before them."""

    line: int
    text: str = ""


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        line: number of its CASE directive; likewise for ``passes``, with ``name{option=text}``.
        prelude: what stands before the blocks that have no mesh of their own.
        wrong: bad results, with the verdict they must get.
    """

    file: Path
    line: int
    title: str
    passes: tuple[tuple[int, str], ...]
    prelude: str
    before: Block | None = None
    after: Block | None = None
    unchanged: bool = False
    missed: tuple[str, ...] = ()
    error: tuple[str, ...] = ()
    wrong: tuple[tuple[Block, str | None], ...] = ()

    def __str__(self) -> str:
        return f"{self.file.stem}: {self.title}"

    def fail(self, what: str, line: int | None = None) -> NoReturn:
        """Raise CaseFailedError about the case, or about a line of it."""
        raise CaseFailedError(f"{self.file}:{line or self.line}: {what}")


DIRECTIVE = re.compile(r"//\s*([A-Z]+)(?::\s*(.*))?$")
COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*")|[ \t]*//[^\n]*')


def read_cases(file: Path) -> list[Case]:
    """The cases of ``file``.

    Raises:
        CaseError: an unknown directive, or one where it means nothing.
    """
    reader = _Reader(file)
    for number, line in enumerate(file.read_text().splitlines(), 1):
        reader.read(number, line)
    return reader.finish()


@dataclass
class _Reader:
    file: Path
    passes: list[tuple[int, str]] = field(default_factory=list)
    prelude: str = ""
    cases: list[Case] = field(default_factory=list)
    block: str = "prelude"
    line: int = 0

    def fail(self, what: str) -> NoReturn:
        raise CaseError(f"{self.file}:{self.line}: {what}")

    def read(self, number: int, line: str) -> None:
        self.line = number
        if not line.startswith("//"):
            self.append(line)
            return
        match = DIRECTIVE.match(line)
        if match is None or (read := getattr(self, f"read_{match[1].lower()}", None)) is None:
            known = [n[5:].upper() for n in vars(_Reader) if n.startswith("read_")]
            self.fail(f"unknown directive {line!r}; known are {', '.join(known)}")
        if match[1] not in ("PASS", "CASE") and not self.cases:
            self.fail(f"{match[1]} stands before the first CASE")
        read((match[2] or "").strip())

    def append(self, line: str) -> None:
        if self.block == "prelude":
            self.prelude += line + "\n"
        elif self.block == "wrong":
            *others, (block, verdict) = self.cases[-1].wrong
            grown = replace(block, text=block.text + line + "\n")
            self.set(wrong=(*others, (grown, verdict)))
        elif self.block:
            block = getattr(self.cases[-1], self.block)
            self.set(**{self.block: replace(block, text=block.text + line + "\n")})
        elif line.strip():
            self.fail("text outside a block")

    def set(self, **changes: Any) -> None:
        self.cases[-1] = replace(self.cases[-1], **changes)

    def read_pass(self, text: str) -> None:
        if self.cases:
            self.fail("PASS stands after the first CASE")
        self.passes.append((self.line, text))

    def read_case(self, text: str) -> None:
        if self.cases:
            self.complete()
        if not self.passes or not text:
            self.fail("a CASE needs a title, and a PASS before it")
        if any(case.title == text for case in self.cases):
            self.fail(f"a second case with the title {text!r}")
        made = Case(self.file, self.line, text, tuple(self.passes), self.prelude)
        self.cases.append(made)
        self.block = ""

    def once(self, name: str) -> None:
        if getattr(self.cases[-1], name) is not None:
            self.fail(f"a second {name.upper()} in one CASE")
        self.set(**{name: Block(self.line)})
        self.block = name

    def read_before(self, _: str) -> None:
        self.once("before")

    def read_after(self, _: str) -> None:
        self.once("after")

    def read_unchanged(self, _: str) -> None:
        self.set(unchanged=True)
        self.block = ""

    def read_missed(self, text: str) -> None:
        self.set(missed=(*self.cases[-1].missed, text))
        self.block = ""

    def read_error(self, text: str) -> None:
        self.set(error=(*self.cases[-1].error, text))
        self.block = ""

    def read_wrong(self, _: str) -> None:
        self.set(wrong=(*self.cases[-1].wrong, (Block(self.line), None)))
        self.block = "wrong"

    def read_verdict(self, text: str) -> None:
        if not self.cases[-1].wrong or self.cases[-1].wrong[-1][1] is not None:
            self.fail("VERDICT needs a WRONG before it")
        *others, (block, _) = self.cases[-1].wrong
        self.set(wrong=(*others, (block, text)))
        self.block = ""

    def complete(self) -> None:
        """Check that the last case says what it must."""
        case = self.cases[-1]
        ends = [case.after is not None, case.unchanged, bool(case.error)]
        if case.before is None or ends.count(True) != 1:
            self.line = case.line
            self.fail("a CASE needs BEFORE, and one of AFTER, UNCHANGED and ERROR")
        for block, verdict in case.wrong:
            if verdict is None:
                self.line = block.line
                self.fail("WRONG needs a VERDICT after it")

    def finish(self) -> list[Case]:
        if not self.cases:
            self.fail("no CASE")
        self.complete()
        return self.cases


def all_cases(root: Path) -> list[Case]:
    """The cases of all ``*.spmd`` files below ``root``, for ``pytest.mark.parametrize``."""
    return [case for file in sorted(root.rglob("*.spmd")) for case in read_cases(file)]


def full_text(case: Case, block: Block) -> str:
    """The text of a block with the file's prelude where it has no mesh of its own."""
    own = block.text.lstrip().startswith("mesh")
    return block.text if own else case.prelude + block.text


def plain(text: str) -> str:
    """``text`` without comments and blank lines."""
    lines = COMMENT.sub(lambda m: m[1] or "", text).splitlines()
    return "".join(line.rstrip() + "\n" for line in lines if line.strip())


def name_of(text: str) -> str:
    """The name of the function in ``text``."""
    match = re.search(r"func\s+@(\w+)", text)
    return match[1] if match else "main"


def rewrite(case: Case, found: str) -> None:
    """Replace the AFTER block of ``case`` in its file by ``found``."""
    # An earlier rewrite may have moved the lines: find the case anew.
    case = next(c for c in read_cases(case.file) if c.title == case.title)
    assert case.after is not None
    lines = case.file.read_text().splitlines(keepends=True)
    body = (
        found if case.after.text.lstrip().startswith("mesh") else found.removeprefix(case.prelude)
    )
    lines[case.after.line : case.after.line + case.after.text.count("\n")] = [body]
    case.file.write_text("".join(lines))
