"""The text form of SPMD graphs."""

from compiler.ir.text.parse import Parsed, parse, parse_graph
from compiler.ir.text.print import describe, numbers, print_graph, window

__all__ = ["Parsed", "describe", "numbers", "parse", "parse_graph", "print_graph", "window"]
