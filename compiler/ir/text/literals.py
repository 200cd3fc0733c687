"""Parse arguments: values, constants, and structures of those."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.mesh import Mesh
from compiler.ir.text import spelling
from compiler.ir.text.scan import Scanner


class Literals:
    """Reads arguments.

    Args:
        scanner: what to read.
        rank: whose entry a rank constant takes.
    """

    mesh: Mesh

    def __init__(self, scanner: Scanner, rank: int) -> None:
        self.scanner, self.rank = scanner, rank
        self.values: dict[str, fx.Node] = {}

    def separated(self, close: str, item: Callable[[], None]) -> None:
        """Items between commas up to ``close``; a comma may follow the last one."""
        while not self.scanner.accept(close):
            item()
            if not self.scanner.accept(","):
                self.scanner.expect(close)
                return

    def distinct(self, what: str, name: str, known: Collection[str]) -> str:
        """Step over the next token, which reads ``name`` and must not be in ``known``."""
        if name in known:
            self.scanner.fail(f"{what} {name!r} appears twice")
        self.scanner.at += 1
        return name

    def value(self) -> fx.Node:
        """``%5``, a value defined above."""
        name = self.scanner.take("value", "a value")
        if name not in self.values:
            self.scanner.fail(f"unknown value {name}", at=self.scanner.at - 1)
        return self.values[name]

    def parsed_device(self, token: str) -> torch.device:
        """The device that the token just read names, as in ``@cuda:0``."""
        try:
            return torch.device(token[1:])
        except RuntimeError:
            self.scanner.fail(f"unknown device {token[1:]!r}", at=self.scanner.at - 1)

    def literal(self) -> Any:
        """A value, a constant, or a structure of those."""
        scanner = self.scanner
        match scanner.kind:
            case "value":
                return self.value()
            case "string":
                return scanner.string("a string")
            case "place":
                return self.parsed_device(scanner.take("place", "a device"))
            case "number":
                return _number(scanner.take("number", "a number"))
        if scanner.accept("-"):
            return -self.number()
        if scanner.text in ("[", "(", "{"):
            return self.structure()
        return self.word()

    def number(self) -> int | float:
        """A number without sign."""
        if self.scanner.accept("inf"):
            return math.inf
        return _number(self.scanner.take("number", "a number"))

    def structure(self) -> Any:
        """``[x, …]``, ``(x, …)``, or ``{"key": x, …}``."""
        scanner, items = self.scanner, []
        if scanner.accept("["):
            self.separated("]", lambda: items.append(self.literal()))
            return items
        if scanner.accept("{"):

            def entry() -> None:
                key = scanner.string("a key in quotes")
                scanner.expect(":")
                items.append((key, self.literal()))

            self.separated("}", entry)
            return dict(items)
        scanner.expect("(")
        self.separated(")", lambda: items.append(self.literal()))
        if len(items) == 1 and scanner.texts[scanner.at - 2] != ",":
            scanner.fail(
                "parentheses around one item", at=scanner.at - 1, remedy="write a tuple as (x,)"
            )
        return tuple(items)

    def word(self) -> Any:
        """A constant with a name, ``slice(…)``, or ``rank(…)``."""
        scanner, at = self.scanner, self.scanner.at
        if scanner.kind != "name" or scanner.text not in (*spelling.WORDS, "slice", "rank"):
            scanner.expected("a value or a constant")
        name = scanner.take("name", "a constant")
        if name in spelling.WORDS:
            return spelling.WORDS[name]
        items: list[Any] = []
        scanner.expect("(")
        self.separated(")", lambda: items.append(self.literal()))
        if name == "slice":
            if len(items) != 3:
                scanner.fail("a slice has start, stop and step", at=at)
            return slice(*items)
        return self.rank_constant(items, at)

    def rank_constant(self, items: list[Any], at: int) -> access.RankInt | access.RankFloat:
        """``items``, one number per rank, as this rank's number."""
        ranks = self.mesh.size
        if len(items) != ranks or any(type(x) not in (int, float) for x in items):
            self.scanner.fail(
                "a rank constant has one number per rank",
                at=at,
                found=f"{len(items)} items for {ranks} ranks",
            )
        if all(type(x) is int for x in items):
            return access.RankInt(items[self.rank], tuple(items))
        return access.RankFloat(items[self.rank], tuple(map(float, items)))


def _number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)
