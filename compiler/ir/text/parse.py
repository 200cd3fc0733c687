"""Parse the text form of SPMD graphs: lark reads grammar.lark, and reader.py builds the graph."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from compiler.errors import CommPlanError, GraphError
from compiler.ir.graph import SpmdGraph
from compiler.ir.text.origins import restore
from compiler.ir.text.print import lines
from compiler.ir.text.reader import Parsed, Reader

if TYPE_CHECKING:
    from lark import Lark, Token, UnexpectedInput

EXPECTED = {
    "value or constant": "VALUE NUMBER STRING DEVICE NAME LPAR LSQB LBRACE MINUS",
    "size": "INTEGER SYMBOL LPAR MINUS",
    "operator": "PLUS MINUS STAR SLASH FLOORDIV POWER",
    "type, as in f32[4, 8] or int(4)": "TYPE _SYM CONSTANT_TYPE LPAR",
    "replica groups, as in <axis, …> or [[rank, …], …]": "LESSTHAN LSQB",
    'input, as in %0 "x": f32[4]': "VALUE RPAR",
    "@ and the name of the function": "FUNCTION",
    "value or 'return'": "VALUE RETURN",
    "'sym'": "_SYM",
    "the end of the text": "$END",
}
"""What errors call these sets of terminals where all of a set may come next."""


def parse_graph(text: str, *, rank: int = 0, file: str = "") -> SpmdGraph:
    """Return the graph that ``text`` prints.

    Parameters are tensors on the meta device: load real ones with ``load_state_dict(...,
    assign=True)``. No memory is allocated.

    Args:
        text: as ``print_graph`` writes it.
        rank: whose entry a rank constant takes.
        file: named in errors.

    Raises:
        GraphError: a text that is not a graph, or a type that is not what the op gives.
        CommPlanError: a mesh, group or placement that is not well-formed.
    """
    return parse(text, rank=rank, file=file).graph


def parse(text: str, *, rank: int = 0, file: str = "") -> Parsed:
    """Parse like ``parse_graph``; return also the placements that the text states beside values."""
    from lark import UnexpectedInput  # Here, because the command line starts without it.

    grammar, rules = _grammar()
    reader = Reader(text, rank, file)
    if digits := re.search(r"\d{31}", text):
        raise GraphError("a number of more than 30 digits", where=reader.place(digits.start()))
    rules.reader = reader
    try:
        grammar.parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(error, grammar, reader) from None
    except RecursionError:
        raise GraphError("the text is nested too deeply", where=file) from None
    finally:
        del rules.reader
    graph = reader.parsed.graph.graph
    restore(text, {line.number: line.nodes for line in lines(graph)})
    return reader.parsed


@cache
def _grammar() -> tuple[Lark, _Rules]:
    from lark import Lark

    rules = _Rules()
    grammar = Lark.open(
        "grammar.lark",
        rel_to=__file__,
        parser="lalr",
        start="text",
        transformer=rules,
        g_regex_flags=re.ASCII,
    )
    return grammar, rules


def _syntax_error(error: UnexpectedInput, grammar: Lark, reader: Reader) -> GraphError:
    """Return the error about a text that the grammar does not derive."""
    text, offset = reader.source, error.pos_in_stream or 0
    token = getattr(error, "token", None)
    if token is None and text[offset] == '"':
        what, remedy = "the string is not closed", "end it on its line"
        return GraphError(what, where=reader.place(offset), remedy=remedy)
    if token is None:
        what = f"unexpected character {text[offset]!r}"
        remedy = "" if "\n" in text[offset:] else "the text ends in this line: is it whole?"
        return GraphError(what, where=reader.place(offset), remedy=remedy)
    at_end = token.type == "$END"
    return GraphError(
        f"expected {_alternatives(error, grammar)}",
        where=reader.place(len(text.rstrip()) if at_end else offset),
        found="the end of the text" if at_end else f"'{token}'",
    )


def _alternatives(error: UnexpectedInput, grammar: Lark) -> str:
    """Return what the grammar accepts where ``error`` is."""
    accepted = error.interactive_parser.accepts()  # type: ignore[no-untyped-call]
    phrases = []
    for phrase, terminals in EXPECTED.items():
        if accepted.issuperset(terminals.split()):
            accepted.difference_update(terminals.split())
            phrases.append(phrase)
    for name in sorted(accepted):
        pattern = grammar.get_terminal(name).pattern
        literal = f"'{pattern.value}'" if pattern.type == "str" else None
        phrases.append(literal or name.lower().replace("_", " "))
    *most, last = dict.fromkeys(phrases)
    return f"{', '.join(most)} or {last}" if most else last


class _Rules(threading.local):
    """What lark calls for the rules of the grammar: methods of the reader of this thread."""

    reader: Reader

    def __getattr__(self, rule: str) -> Callable[[list[Any]], Any]:
        method = getattr(Reader, rule)

        def read(children: list[Any]) -> Any:
            try:
                return method(self.reader, *children)
            except CommPlanError as error:
                token = _first_token(children)
                if error.where or token is None:
                    raise
                texts = {"found": error.found, "remedy": error.remedy}
                raise GraphError(error.what, where=self.reader.place(token), **texts) from error

        return read


def _first_token(children: Iterable[Any]) -> Token | None:
    """Return the first token among ``children``, or at the head of a tuple."""
    heads = (child[0] if isinstance(child, tuple) and child else child for child in children)
    return next((head for head in heads if hasattr(head, "start_pos")), None)
