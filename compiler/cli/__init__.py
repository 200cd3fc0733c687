"""The command line: ``commplan plan``, ``dump``, ``check`` and ``optimize``."""

from compiler.cli.app import app, main

__all__ = ["app", "main"]
