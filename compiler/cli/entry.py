"""The console script: exit codes, and standard streams that fail.

A reader that has gone, as in ``commplan … | head``, is not a mistake: the program ends silently,
with the exit code of any program that SIGPIPE ends. The signal itself stays ignored: sockets to
other ranks raise it too.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from importlib import import_module
from typing import Any, TextIO, cast

from compiler.cli.inputs.own_packages import import_own
from compiler.errors import CommPlanError, VerificationError
from compiler.garbage import collection_paused


class ExitCode(IntEnum):
    """How the program ends; verdicts by their names."""

    OK = IDENTICAL = EQUIVALENT = 0
    NOT_EQUIVALENT = FINDINGS = 1
    UNPROVED = 2
    BAD_INPUT = INVALID = 3
    INTERNAL_ERROR = 70  # as in sysexits.h; 1, Python's own, would read as a verdict
    INTERRUPTED = 130  # 128 + SIGINT
    CLOSED_PIPE = 141  # 128 + SIGPIPE


def main() -> None:
    """Run the console script ``commplan``."""
    try:
        with guarded_streams():
            sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except CannotWrite as error:
        if error.is_closed_pipe:
            sys.exit(ExitCode.CLOSED_PIPE)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)
    finally:
        gc.freeze()  # the process ends, and would look through all of it for garbage


@collection_paused()
def run(arguments: Sequence[str]) -> int:
    """Run one command, and return its exit code.

    Arguments are read first: help, and what is wrong with them, needs no PyTorch.
    """
    from compiler.cli.arguments import parse

    try:
        name, keywords = parse(arguments)
        module, _, function = name.partition(":")
        with interrupts_end_the_process():
            import_own("bench")
            import_own("passes")
            command = getattr(import_module(f"compiler.cli.commands.{module}"), function)
        return command(**keywords) or ExitCode.OK
    except CommPlanError as error:
        lines = printable(f"error: {error}").split("\n")
        print("\n".join(x if len(x) < 2000 else f"{x[:2000]} …" for x in lines), file=sys.stderr)
        failed = isinstance(error, VerificationError)
        return ExitCode.NOT_EQUIVALENT if failed else ExitCode.BAD_INPUT
    except Exception:
        traceback.print_exc()
        print("commplan: internal error, please report it with the lines above", file=sys.stderr)
        return ExitCode.INTERNAL_ERROR


def printable(text: str) -> str:
    """Return ``text`` with control characters, and bytes that are not UTF-8, as escapes."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


@contextmanager
def interrupts_end_the_process() -> Iterator[None]:
    """Let an interrupt end the process at once: imports may take it for a failure of their own."""
    handler = signal.getsignal(signal.SIGINT)
    raises = handler is signal.default_int_handler  # else ignored, as in the background
    if raises:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if raises:
            signal.signal(signal.SIGINT, handler)


class CannotWrite(BaseException):
    """A standard stream failed. As with KeyboardInterrupt, ``except Exception`` lets it pass."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"cannot write standard {name}: {error.strerror}")
        self.is_closed_pipe = error.errno == errno.EPIPE


@dataclass(eq=False)
class Stream:
    """A standard stream that raises CannotWrite where writing fails."""

    name: str
    stream: TextIO

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stream, attribute)

    def write(self, text: str) -> int:
        """Write text, or raise CannotWrite."""
        return cast(int, self._call(self.stream.write, text))

    def flush(self) -> None:
        """Write what is buffered, or raise CannotWrite."""
        self._call(self.stream.flush)

    def _call(self, method: Callable[..., Any], *arguments: str) -> Any:
        try:
            return method(*arguments)
        except OSError as error:
            # What is still buffered goes nowhere: Python would try to write it when it exits.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            raise CannotWrite(self.name, error) from None


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Make standard streams raise CannotWrite, at the latest when the body ends.

    What their encoding lacks they write as escapes.
    """
    names = {"stdout": "output", "stderr": "error"}
    streams = {name: Stream(names[name], s) for name in names if (s := getattr(sys, name))}
    for name, guarded in streams.items():
        if hasattr(guarded.stream, "reconfigure"):
            guarded.stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, guarded)
    try:
        yield
    finally:
        for name, guarded in streams.items():
            setattr(sys, name, guarded.stream)
        for guarded in streams.values():
            guarded.flush()
