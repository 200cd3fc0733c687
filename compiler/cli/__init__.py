"""The command line: ``commplan plan``, ``dump``, ``optimize``, ``check``, ``lint``, and others."""

from compiler.cli.app import app, main

__all__ = ["app", "main"]
