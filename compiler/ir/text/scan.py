"""Tokens of the text form, read one after the other, and errors that point at them."""

from __future__ import annotations

import bisect
import json
import re
from typing import NoReturn

from compiler.errors import GraphError

TOKEN = re.compile(
    r"""(?P<space>(?:\s|//[^\n]*)+)
      | (?P<value>%\d+)
      | (?P<place>@\w+(?::\d+)?)
      | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z_]\w*(?:\.\w+)*)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<mark>\*\*|[-+*/()\[\]{}<>=:,])""",
    re.VERBOSE | re.ASCII,
)
"""``place`` is a function's name or a device."""

END = "end"


class Scanner:
    """A position in the tokens of a text.

    Args:
        text: what to read.
        file: named in errors.

    Raises:
        GraphError: a character that starts no token.
    """

    def __init__(self, text: str, file: str = "") -> None:
        self.source, self.file = text, file
        self.kinds: list[str] = []
        self.texts: list[str] = []
        self.offsets: list[int] = []
        self.at = 0
        offset = 0
        while offset < len(text):
            match = TOKEN.match(text, offset)
            if match is None:
                self._unreadable(offset)
            if match.lastgroup != "space":
                self._append(str(match.lastgroup), match.group(), offset)
            offset = match.end()
        self._append(END, "", len(text.rstrip()))

    def _append(self, kind: str, text: str, offset: int) -> None:
        self.kinds.append(kind)
        self.texts.append(text)
        self.offsets.append(offset)

    def _unreadable(self, offset: int) -> NoReturn:
        self.offsets.append(offset)
        if self.source[offset] == '"':
            self.fail("the string is not closed", at=-1, remedy="end it on its line")
        self.fail(f"unexpected character {self.source[offset]!r}", at=-1)

    def fail(
        self, what: str, *, at: int | None = None, found: str = "", remedy: str = ""
    ) -> NoReturn:
        """Raise GraphError about token ``at``, by default the next one."""
        offset = self.offsets[self.at if at is None else at]
        starts = [0, *(m.end() for m in re.finditer("\n", self.source))]
        line = bisect.bisect_right(starts, offset) - 1
        text = self.source[starts[line] :].split("\n", 1)[0]
        column = offset - starts[line]
        lead = re.sub(r"[^\t]", " ", text[:column])
        place = f"{self.file}:{line + 1}" if self.file else f"{line + 1}"
        raise GraphError(
            what,
            where=f"{place}:{column + 1}\n    {text}\n    {lead}^",
            found=found,
            remedy=remedy,
        )

    def expected(self, what: str) -> NoReturn:
        """Raise GraphError: the next token is not ``what``."""
        text = self.texts[self.at]
        self.fail(f"expected {what}", found=f"'{text}'" if text else "the end of the text")

    @property
    def kind(self) -> str:
        """Kind of the next token."""
        return self.kinds[self.at]

    @property
    def text(self) -> str:
        """Text of the next token."""
        return self.texts[self.at]

    def is_next(self, text: str, ahead: int = 0) -> bool:
        """Whether the next token, or the one ``ahead`` of it, reads ``text`` (no string does)."""
        return self.texts[min(self.at + ahead, len(self.texts) - 1)] == text

    def accept(self, text: str) -> bool:
        """Step over ``text`` if it is next."""
        found = self.texts[self.at] == text
        self.at += found
        return found

    def expect(self, text: str) -> None:
        """Step over ``text``, which must be next."""
        if not self.accept(text):
            self.expected(f"'{text}'")

    def take(self, kind: str, what: str) -> str:
        """The next token, which must be of ``kind``; ``what`` says so in the error."""
        if self.kinds[self.at] != kind:
            self.expected(what)
        self.at += 1
        return self.texts[self.at - 1]

    def integer(self, what: str) -> int:
        """The next token as an integer >= 0."""
        if not self.text.isdecimal():
            self.expected(what)
        return int(self.take("number", what))

    def string(self, what: str) -> str:
        """The next token as the text between quotes."""
        token = self.take("string", what)
        try:
            return str(json.loads(token))
        except json.JSONDecodeError as error:
            self.fail(f"not a string: {error.msg}", at=self.at - 1)

    def name(self, what: str) -> str:
        """The next token, an identifier without dots or a string."""
        if self.kind == "string":
            return self.string(what)
        if "." in self.text:
            self.expected(what)
        return self.take("name", what)
