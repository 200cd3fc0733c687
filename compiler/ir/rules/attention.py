"""Norms over trailing dimensions and scaled dot product attention."""

from __future__ import annotations

from compiler.ir.rules.build import Rule, table
from compiler.ir.rules.meaning import Call, Dims, Labels, Meaning, Term


def normalized(call: Call) -> Meaning:
    """rms_norm, layer_norm: every row by itself; the normalized dimensions are needed whole."""
    rank = len(call.shapes[0])
    over = call.arguments.get("normalized_shape", (None,))
    rows = rank - len(over)
    labels: Labels = tuple(d if d < rows else None for d in range(rank))
    others = tuple((None,) * len(s) for s in call.shapes[1:])
    results = tuple(labels[: len(s)] for s in call.result_shapes)
    return Meaning(dims=Dims((labels, *others), results))


def attention(call: Call) -> Meaning:
    """softmax(q k^T + mask) v: linear in v; batch, heads and (without causality) queries are rows.

    A mask or q and k that differ in batch or heads (grouped heads) leave those without factors.
    """
    q, k, v = (call.operand(n) for n in ("query", "key", "value"))
    rank = len(call.shapes[q])
    batch = tuple(
        f"b{d}" if call.shapes[q][d] == call.shapes[k][d] == call.shapes[v][d] else None
        for d in range(rank - 2)
    )
    causal = bool(call.arguments.get("is_causal"))
    rows = None if causal else "q"
    labels: list[Labels] = [(None,) * len(s) for s in call.shapes]
    labels[q] = (*batch, rows, None)
    labels[k] = (*batch, None, None)
    labels[v] = (*batch, None, "e")
    mask = call.index("attn_mask")
    if mask is not None:
        shape = call.shapes[mask]
        offset = rank - len(shape)
        full = (*call.shapes[q][: rank - 1], None)
        labels[mask] = tuple(
            (*batch, rows, None)[d + offset] if size == full[d + offset] else None
            for d, size in enumerate(shape)
        )
    fixed = tuple(i for i in range(len(call.shapes)) if i != v)
    random = bool(call.arguments.get("dropout_p"))
    term = Term((v,), map=(call.key,), fixed=fixed)
    return Meaning(
        terms=None if random else (term,),
        dims=Dims(tuple(labels), ((*batch, rows, "e"),)),
        random=random,
    )


TABLE: dict[Rule, tuple[str, ...]] = {
    normalized: ("rms_norm", "layer_norm", "native_layer_norm", "_fused_rms_norm"),
    attention: ("scaled_dot_product_attention",),
}
RULES = table(TABLE)
