"""Standard output and error that cannot be written: the end of the program, told in one way.

A reader that has gone, as in ``commplan … | head``, is no mistake: silence, and the exit code of
any program that SIGPIPE ends. The signal itself stays ignored: sockets to other ranks raise it too.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO, cast

CLOSED_PIPE = 141  # 128 + SIGPIPE, as shells tell it


class CannotWrite(BaseException):
    """Like KeyboardInterrupt: nothing in between may take it for a failure of its own."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"cannot write standard {name}: {error.strerror}")
        self.is_closed_pipe = error.errno == errno.EPIPE


@dataclass(eq=False)
class Stream:
    """A standard stream whose failures are ``CannotWrite``; the rest is the stream's own."""

    name: str
    stream: TextIO

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stream, attribute)

    def write(self, text: str) -> int:
        """Writes, or raises CannotWrite."""
        with self._failures():
            return self.stream.write(text)

    def flush(self) -> None:
        """Writes what is held back, or raises CannotWrite."""
        with self._failures():
            self.stream.flush()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._give_up()
            raise CannotWrite(self.name, error) from None

    def _give_up(self) -> None:
        """What the stream still holds goes nowhere; Python would try again when it exits."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


@contextmanager
def told_failures() -> Iterator[None]:
    """Within it, and when it ends, standard streams that cannot be written raise CannotWrite."""
    held = sys.stdout, sys.stderr
    streams = [Stream(name, s) for name, s in zip(("output", "error"), held, strict=True) if s]
    for stream in streams:
        setattr(sys, "stdout" if stream.name == "output" else "stderr", cast(TextIO, stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = held
        for stream in streams:
            stream.flush()
