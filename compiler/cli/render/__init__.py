"""Outputs of commands: tables, HTML pages, plots, progress."""
