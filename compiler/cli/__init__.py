"""The command line: ``commplan plan``, ``dump``, ``optimize``, ``check``, ``lint``, and others."""

from compiler.cli.entry import main

__all__ = ["main"]
