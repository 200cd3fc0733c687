"""Parse what precedes the function: mesh, replica groups, and symbols with their ranges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from compiler.errors import MeshError
from compiler.ir import access
from compiler.ir.mesh import Mesh
from compiler.ir.text.declarations import Declarations
from compiler.ir.text.graph_builder import Range


class Header(Declarations):
    """Reads the header; ``mesh`` is set as soon as its axes are known."""

    def parsed_mesh(self) -> Mesh:
        """``mesh <axis = size, …>`` and the groups after it."""
        scanner = self.scanner
        start = scanner.at
        scanner.expect("mesh")
        axes: dict[str, int] = {}

        def axis() -> None:
            name = scanner.name("the name of an axis")
            if name in axes:
                scanner.fail(f"axis {name!r} appears twice", at=scanner.at - 1)
            scanner.expect("=")
            axes[name] = scanner.integer("the size of the axis")

        scanner.expect("<")
        self.separated(">", axis)
        groups: dict[str, Iterable[Sequence[int]]] = {}
        try:
            self.mesh = Mesh(axes)
            while scanner.is_next("group"):
                start = scanner.at
                scanner.at += 1
                name = scanner.string("the name of the group in quotes")
                scanner.expect("=")
                groups[name] = self.group()
                self.mesh = Mesh(axes, groups)
        except MeshError as error:
            scanner.fail(error.what, at=start, found=error.found, remedy=error.remedy)
        return self.mesh

    def group(self) -> Iterable[Sequence[int]]:
        """``<axis, …>`` or ``[[rank, …], …]``."""
        scanner, axes = self.scanner, list[str]()
        if scanner.accept("<"):
            self.separated(">", lambda: axes.append(self.axis()))
            return self.mesh.along(*axes).ranks
        at = scanner.at
        ranks: Any = self.literal() if scanner.is_next("[") else None
        listed = isinstance(ranks, list) and all(isinstance(group, list) for group in ranks)
        if not listed or any(type(rank) is not int for group in ranks for rank in group):
            scanner.fail("not replica groups", at=at, remedy="write <axis, …> or [[rank, …], …]")
        return ranks  # type: ignore[no-any-return]

    def ranges(self) -> dict[str, Range]:
        """``sym s0 in [least, greatest]`` lines."""
        scanner = self.scanner
        found: dict[str, Range] = {}
        while scanner.accept("sym"):
            start = scanner.at
            name = scanner.take("name", "the name of a symbol")
            if name in found or "." in name:
                what = "cannot be a symbol" if "." in name else "is declared twice"
                scanner.fail(f"{name!r} {what}", at=start)
            scanner.expect("in")
            scanner.expect("[")
            low = self.bound()
            scanner.expect(",")
            high = self.bound()
            scanner.expect("]")
            least = -math.inf if access.is_unbacked(name) else 0
            if not least <= low <= high or low == math.inf:
                scanner.fail(
                    f"the range of {name!r} holds no size",
                    at=start,
                    remedy="write least and greatest value, [2, inf] for any size",
                )
            found[name] = (low, high)
        return found

    def bound(self) -> float:
        """An integer or an infinity."""
        sign = -1 if self.scanner.accept("-") else 1
        if self.scanner.accept("inf"):
            return sign * math.inf
        return sign * self.scanner.integer("an integer or inf")
