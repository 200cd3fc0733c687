"""The collectives of a graph as a list that a repository keeps, and changes of it in words."""

from compiler.snapshot.changes import Change, Row, changes, rows
from compiler.snapshot.snapshot import SCHEMA, Entry, Snapshot, exceeded

__all__ = ["SCHEMA", "Change", "Entry", "Row", "Snapshot", "changes", "exceeded", "rows"]
