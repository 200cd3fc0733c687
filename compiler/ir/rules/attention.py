"""Norms over trailing dimensions and scaled dot product attention."""

from __future__ import annotations

from compiler.ir.rules.builders import Rule, aligned, labelled, table, whole_but
from compiler.ir.rules.meaning import Call, Dims, Labels, Meaning, Term


def normalized(call: Call) -> Meaning:
    """rms_norm, layer_norm: every row by itself; the normalized dimensions are needed whole."""
    return Meaning(dims=whole_but(call, range(-len(call.arguments["normalized_shape"]), 0)))


def attention(call: Call) -> Meaning:
    """softmax(q k^T + mask) v: linear in v; batch, heads and (without causality) queries are rows.

    Operands that differ in batch or heads (grouped heads) leave those without factors. The
    backends that return more than the output are uninterpreted, since what else they return does
    not scale with v; only the output and, after it, the log-sum-exp have factors.
    """
    q, k, v = (call.operand(n) for n in ("query", "key", "value"))
    rank = len(call.shapes[q])
    batch = tuple(
        f"b{d}" if call.shapes[q][d] == call.shapes[k][d] == call.shapes[v][d] else None
        for d in range(rank - 2)
    )
    alone = len(call.result_shapes) == 1
    rows = "q" if alone and not call.arguments.get("is_causal") else None
    labels: dict[int, Labels] = {
        q: (*batch, rows, None),
        k: (*batch, None, None),
        v: (*batch, None, "e" if alone else None),
    }
    mask = next((i for n in ("attn_mask", "attn_bias") if (i := call.index(n)) is not None), None)
    if mask is not None:
        scores = (*call.shapes[q][:-1], call.shapes[k][-2])
        labels[mask] = aligned(call.shapes[mask], scores, (*batch, rows, None))
    dims = labelled(call, labels, (*batch, rows, "e" if alone else None))
    if not alone:
        rest = ((None,) * len(s) for s in call.result_shapes[2:])
        dims = Dims(dims.operands, (*dims.results, (*batch, None), *rest))
    random = bool(call.arguments.get("dropout_p"))
    fixed = tuple(i for i in range(len(call.shapes)) if i != v)
    terms = (Term((v,), map=(call.key,), fixed=fixed),) if alone and not random else None
    return Meaning(terms=terms, dims=dims, random=random)


TABLE: dict[Rule, tuple[str, ...]] = {
    normalized: ("rms_norm", "layer_norm", "native_layer_norm", "_fused_rms_norm"),
    attention: (
        "scaled_dot_product_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention.default",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    ),
}
RULES = table(TABLE)
