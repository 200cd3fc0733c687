r"""The text form of SPMD graphs: ``parse_graph`` reads what ``print_graph`` writes.

Example::

    mesh <tp = 8>
    sym s0 in [2, 8192]
    func @main(%0 "x": bf16[s0, 512] {tp: S(1)}) {
      %1: bf16[512, 4096] {tp: S(0)} = attr "layers.0.weight"
      %2: bf16[s0, 4096] {tp: P} = aten.mm(%0, %1)
      %3: bf16[s0, 4096] {tp: R} = comm.all_reduce(%2) {axis = tp, op = sum}    // 128.0 KiB
      return %3
    }

The grammar stands in ``grammar.lark``. What its forms mean:

- ``%n`` numbers the printed values in order. A collective whose only use is the wait directly
  after it is one line, which stands for both; one that is used or waited for elsewhere prints as
  ``comm.KIND_start`` and its wait as ``comm.wait``.
- ``OP`` is ``namespace.op`` with ``.overload`` unless that is ``default``; Python functions on
  numbers are ``py.add``, ``py.sym_max``, … The op of a line runs on fake tensors while parsing,
  and what it gives must be the printed type.
- Shapes are per rank. ``size`` is an integer or an expression over symbols; PyTorch's FloorDiv is
  ``floordiv``, because ``//`` starts a comment. A tensor is on ``cpu`` unless its type says
  ``@cuda:0``, and inputs and attributes are contiguous unless it gives ``strides``.
- ``sym(s0 + 1)`` is a SymInt; ``sym`` alone is read as whatever the op gives. ``int(4)`` is a
  number that was constant when the graph was captured.
- Placements of inputs and attributes are part of the graph: placeholders without braces are
  Replicate, attributes Varying, axes left out Replicate. Those of other values are facts that an
  analysis found; they print where ``print_graph`` gets them, and ``parse`` returns them.
- ``axis = tp`` names an axis of the mesh, ``group = "0"`` any other group of its header.
  ``group_size`` is an attribute only where it is not that of the group.
- ``rank(0, 16112)`` is a number that differs between ranks; each rank reads its own.
- ``return x`` returns x itself, ``return x, y`` a tuple; ``return (x,)`` a tuple of one.
- A comment ``// loc(model.py:26)  layers.0.attn  %add_197`` behind a value is its source line, its
  layer and the name of its node, as far as they are known.

Not in the text: values of parameters, defaults of inputs and the tree structure of the signature; a
parsed graph takes and returns flat values. Equal calls of a parsed graph may share one fake tensor.
"""

from compiler.ir.text.json_and_dot import to_dot, to_json
from compiler.ir.text.parse import parse, parse_graph
from compiler.ir.text.print import describe, numbers, print_graph, value_count
from compiler.ir.text.reader import Parsed

__all__ = [
    "Parsed",
    "describe",
    "numbers",
    "parse",
    "parse_graph",
    "print_graph",
    "to_dot",
    "to_json",
    "value_count",
]
