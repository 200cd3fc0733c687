"""Switches of a process that serves, from its environment: docs/debugging.md lists them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from compiler.errors import CommPlanError

LOGS, DUMP, CHECK_CALLS = "COMMPLAN_LOGS", "COMMPLAN_DUMP", "COMMPLAN_CHECK_CALLS"
LEVELS = ("debug", "info", "warning", "error")


def log_level(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return from which level on commplan logs to standard error; None as Python decides.

    Raises:
        CommPlanError: there is no such level.
    """
    if not (text := environment.get(LOGS, "")):
        return None
    if text.lower() not in LEVELS:
        raise _refused(LOGS, text, f"one of {', '.join(LEVELS)}")
    return logging.getLevelNamesMapping()[text.upper()]


def dump_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return where graphs are written; None for nowhere."""
    return Path(text) if (text := environment.get(DUMP, "")) else None


def checks_calls(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether ranks compare every call.

    Raises:
        CommPlanError: neither yes nor no.
    """
    text = environment.get(CHECK_CALLS, "")
    if text not in ("", "0", "1"):
        raise _refused(CHECK_CALLS, text, "1, or 0")
    return text == "1"


def _refused(name: str, text: str, remedy: str) -> CommPlanError:
    return CommPlanError(
        "an environment variable does not take this", where=name, found=repr(text), remedy=remedy
    )


def switch_logs_on() -> None:
    """Let what commplan logs go to standard error, once, if the environment says so."""
    log = logging.getLogger("compiler")
    if (level := log_level()) is not None:
        log.setLevel(level)
        if not log.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            log.addHandler(handler)
