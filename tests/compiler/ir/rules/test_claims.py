"""The harness itself: a rule that is wrong, in any of these ways, fails on some claim."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from compiler.ir.rules import BROADCAST, RESHAPE, RULES, Dims, Meaning, Term
from compiler.ir.rules.meaning import Labels
from tests.compiler.ir.rules import claims, laws
from tests.compiler.ir.rules.samples import SAMPLES

Wrong = Iterator[tuple[str, Meaning]]


def with_term(found: Meaning, n: int, *terms: Term) -> Meaning:
    assert found.terms is not None
    return replace(found, terms=(*found.terms[:n], *terms, *found.terms[n + 1 :]))


def wrong_terms(found: Meaning) -> Wrong:
    """Another dependence on data."""
    if found.terms is None:
        yield "linear", replace(found, terms=(Term((0,), map=("claimed",)),))
        return
    if any(term.operands for term in found.terms):
        yield "not linear", replace(found, terms=None)
    for n, term in enumerate(found.terms):
        if term.operands:
            yield f"term {n} lost", with_term(found, n)
        if term.map in (BROADCAST, RESHAPE):
            twice = replace(term, coefficient=2 * term.coefficient)
            yield f"term {n} twice", with_term(found, n, twice)
        if len(term.operands) > 1:
            for i in term.operands:
                fewer = replace(term, operands=tuple(x for x in term.operands if x != i))
                yield f"term {n} without operand {i}", with_term(found, n, fewer)
            split = [replace(term, operands=(i,), map=("claimed", i)) for i in term.operands]
            yield f"term {n} a sum", with_term(found, n, *split)
    for i in {i for term in found.terms for i in term.fixed}:
        free = [replace(t, fixed=tuple(x for x in t.fixed if x != i)) for t in found.terms]
        yield f"whatever operand {i}", replace(found, terms=tuple(free))


def with_dims(found: Meaning, operands: Sequence[Labels], results: Sequence[Labels]) -> Meaning:
    return replace(found, dims=Dims(tuple(operands), tuple(results)))


def wrong_labels(found: Meaning, dims: Dims) -> Wrong:
    """A factor of fewer operands, or of other dimensions."""
    operands, results = dims.operands, dims.results
    for label in laws.labels(found):
        if any(label in held for held in results):
            without = [relabelled(held, {label: None}) for held in results]
            yield f"{label!r} contracted", with_dims(found, operands, without)
        else:
            kept = [(label, *held[1:]) for held in results]
            yield f"{label!r} kept", with_dims(found, operands, kept)
        for i, held in enumerate(operands):
            if label in held:
                fewer = [*operands[:i], relabelled(held, {label: None}), *operands[i + 1 :]]
                yield f"{label!r} not in operand {i}", with_dims(found, fewer, results)
    for x, y in itertools.pairwise(x for x in results[0] if x is not None):
        swapped = [relabelled(held, {x: y, y: x}) for held in results]
        yield f"{x!r} and {y!r} swapped", with_dims(found, operands, swapped)


def relabelled(held: Labels, names: dict[int | str, int | str | None]) -> Labels:
    return tuple(None if x is None else names.get(x, x) for x in held)


def claimed_factors(call: laws.Sample, found: Meaning, dims: Dims) -> Wrong:
    """A dimension that is needed whole as a factor, where its size can be cut."""
    for d, x in enumerate(dims.operands[0]):
        for e, y in enumerate(dims.results[0]):
            if x is None and y is None:
                first, result = list(dims.operands[0]), list(dims.results[0])
                first[d] = result[e] = "claimed"
                wrong = with_dims(
                    found, [tuple(first), *dims.operands[1:]], [tuple(result), *dims.results[1:]]
                )
                if laws.counts_of(call, wrong, "claimed"):
                    yield f"dimension {d} as dimension {e} of the result", wrong


def caught(call: laws.Sample, found: Meaning) -> bool:
    """Whether the harness objects."""
    laws.GENERATOR.manual_seed(0)
    try:
        return bool(claims.accepted(call, found) or claims.refused(call, found))
    except (RuntimeError, IndexError, ValueError, AssertionError):
        return True


def one_per_rule() -> dict[str, laws.Sample]:
    """The first call of every rule that has no excuse and an operand."""
    found: dict[object, laws.Sample] = {}
    for call in SAMPLES:
        if laws.operands(call) and not call.refuses and not call.holds:
            found.setdefault(RULES[call.target], call)
    return {str(call): call for call in found.values()}


CALLS = one_per_rule()


@pytest.mark.parametrize("name", CALLS)
def test_wrong_meanings_are_caught(name: str) -> None:
    call = CALLS[name]
    found = laws.meaning_of(call)
    assert not caught(call, found)
    wrong = list(wrong_terms(found))
    if found.dims is not None:
        wrong += [*wrong_labels(found, found.dims), *claimed_factors(call, found, found.dims)]
    assert wrong
    for what, meaning in wrong:
        assert caught(call, meaning), what


def test_most_rules_have_such_a_call() -> None:
    assert len(CALLS) > 40
