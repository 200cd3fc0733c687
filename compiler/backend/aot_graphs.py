"""The graph behind AOTAutograd as a functional one, and back.

AOTAutograd ends an inference graph with a ``copy_`` for every input that the program writes to. A
functional graph has the new values as outputs instead, behind the program's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from compiler.backend.aten_rows import shared_rows
from compiler.capture import Capture
from compiler.capture.export import is_spmd
from compiler.errors import CaptureError
from compiler.ir import access
from compiler.ir.access import RankFloat, RankInt
from compiler.ir.graph_copy import GraphCopy
from compiler.runtime.lowering import Lowered

COPY = torch.ops.aten.copy_.default


def functional(gm: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The graph without its writes, and the inputs that they are to.

    Returns:
        The graph: its outputs are the program's, then the new values. And the placeholders.

    Raises:
        CaptureError: an op that is neither functional nor a write at the end.
    """
    copy = GraphCopy()
    graph, copies = copy.target, copy.values
    written: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        if node.target is COPY:
            into, value = node.args[:2]
            _check(into.op == "placeholder" and into not in written, node, "writes to a value")
            written[into] = copies[node] = copies[value]
            continue
        late = [x for x in node.all_input_nodes if x in written]
        _check(not late, node, "reads an input after a write to it")
        copy.add(node)
    results = [copies[x] for x in access.returned(gm.graph) if isinstance(x, fx.Node)]
    graph.output((*results, *written.values()))
    functional_module = fx.GraphModule(gm, graph)
    if not is_spmd(functional_module):
        ops = (n for n in graph.nodes if n.op == "call_function")
        others = {str(n.target) for n in ops if getattr(n.target, "_schema", None) is None}
        raise CaptureError(
            "the graph has ops that are not functional ATen ops or collectives",
            found=", ".join(sorted(others)) or "an op that writes to its operand",
            remedy="keep branches, loops and kernels of your own out of the compiled region",
        )
    return functional_module, tuple(str(node.target) for node in written)


def _check(holds: bool, node: fx.Node, what: str) -> None:
    if not holds:
        raise CaptureError(
            f"op {node.target} {what}",
            where=access.source_line(node),
            remedy="write to inputs as a whole, after the last time they are read",
        )


def restored(
    gm: fx.GraphModule,
    captured: Capture,
    lowered: Lowered,
    written: Sequence[str],
    *,
    eager: bool,
) -> fx.GraphModule:
    """A lowered graph with the inputs, outputs and writes of ``gm``.

    Args:
        gm: the graph behind AOTAutograd.
        captured: of its functional form.
        lowered: the rewritten graph, as this process runs it.
        written: placeholders that new values, behind the results, are written to.
        eager: it runs op by op.
    """
    module = shared_rows(lowered.module) if not eager else lowered.eager
    graph = module.graph
    own = {str(n.target): n for n in access.node_of(gm.graph, "placeholder")}
    _put_back_attributes(module, captured, own)
    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, _plain)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _plain)
        if node.op == "placeholder":
            node.meta = dict(own[str(node.target)].meta)
    values = list(access.returned(graph))
    results, new = values[: len(values) - len(written)], values[len(values) - len(written) :]
    inputs = {str(n.target): n for n in access.node_of(graph, "placeholder")}
    output, source = graph.output_node(), gm.graph.output_node()
    for at, (name, value) in enumerate(zip(written, new, strict=True), len(results)):
        if not eager or at not in lowered.in_place:
            with graph.inserting_before(output):
                graph.call_function(COPY, (inputs[name], value)).meta = dict(inputs[name].meta)
    following = iter(_apart(graph, results, access.returned(gm.graph)))
    output.args = (
        fx.node.map_aggregate(
            source.args[0], lambda x: next(following) if isinstance(x, fx.Node) else x
        ),
    )
    output.meta = dict(source.meta)
    module.recompile()
    return module


def _apart(graph: fx.Graph, results: Sequence[fx.Node], source: Any) -> Iterator[fx.Node]:
    """``results``, copied where they would share memory that those of the source do not share."""
    own = [_owner(x) for x in source if isinstance(x, fx.Node)]
    copies: dict[fx.Node, fx.Node] = {}
    for result, before in zip(results, own, strict=True):
        owner = _owner(result)
        expected = copies.setdefault(owner, before)
        is_input = owner.op == "placeholder" and before.op != "placeholder"
        if access.is_tensor(result) and (is_input or expected is not before):
            with graph.inserting_before(graph.output_node()):
                copy = graph.call_function(torch.ops.aten.clone.default, (result,))
            copy.meta = dict(result.meta)
            yield copy
        else:
            yield result


def _owner(node: fx.Node) -> fx.Node:
    """The value whose memory ``node`` is in: views are in that of their operand."""
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    if any(r.alias_info is not None for r in returns) and node.all_input_nodes:
        return _owner(node.all_input_nodes[0])
    return node


def _plain(item: Any) -> Any:
    """A rank constant as this rank's number."""
    if isinstance(item, RankInt):
        return int(item)
    return float(item) if isinstance(item, RankFloat) else item


def _put_back_attributes(
    module: fx.GraphModule, captured: Capture, own: Mapping[str, fx.Node]
) -> None:
    """Let attributes that became inputs of the functional graph be attributes again."""
    lifted = [n for n in access.node_of(module.graph, "placeholder") if str(n.target) not in own]
    for node in lifted:
        name = f"_commplan_{node.target}"
        module.register_buffer(name, captured.constants[str(node.target)], persistent=False)
        first = next(n for n in module.graph.nodes if n.op != "placeholder")
        with module.graph.inserting_before(first):
            attribute = module.graph.get_attr(name)
        attribute.meta = dict(node.meta)
        node.replace_all_uses_with(attribute)
        module.graph.erase_node(node)
