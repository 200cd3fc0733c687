"""The console script. It imports the commands, and with them PyTorch, where it can be stopped."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from compiler.cli.inputs.own_packages import import_own
from compiler.cli.streams import CLOSED_PIPE, CannotWrite, told_failures
from compiler.garbage import collection_paused

INTERRUPTED = 130  # 128 + SIGINT


def main() -> None:
    """The console script ``commplan``."""
    try:
        with told_failures():
            run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except CannotWrite as error:
        if error.is_closed_pipe:
            sys.exit(CLOSED_PIPE)
        from compiler.cli.render.verdicts import ExitCode

        print(f"error: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)


@collection_paused()
def run() -> None:
    """The commands, and what is no user's error."""
    try:
        with ended_by_interrupts():
            import_own("bench")
            import_own("passes")
            from compiler.cli.app import app
        app(prog_name="commplan")
    except Exception:
        traceback.print_exc()
        print("commplan: internal error, please report it with the lines above", file=sys.stderr)
        sys.exit(os.EX_SOFTWARE)  # ExitCode.INTERNAL_ERROR, which may be what cannot be imported
    finally:
        gc.freeze()  # the process ends, and would look through all of it for garbage


@contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Within it, an interrupt ends the process at once: imports may take it for their failure."""
    held = signal.getsignal(signal.SIGINT)
    if held is not signal.default_int_handler:  # ignored, as in the background, or another's
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, held)
