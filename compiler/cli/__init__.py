"""The command line: ``commplan plan``, ``dump``, ``check``, ``optimize`` and ``machine``."""

from compiler.cli.app import app, main

__all__ = ["app", "main"]
