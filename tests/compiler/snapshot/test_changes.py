"""Changes of lists of collectives, in words."""

from dataclasses import replace

from compiler.snapshot import Change, Entry, Row, Snapshot, changes, rows

LAYERS = [
    Entry(f"layers.{i}.moe", "all_reduce", "sum", "tp", "f32[s0, 8]", "m.py:3") for i in range(4)
]
HEAD = Entry("", "all_gather", "", "tp", "f32[s0, 8]")


def of(*entries, tp=2):
    return Snapshot({"tp": tp}, entries)


def test_alike_layers_are_one_row():
    assert rows(of(*LAYERS, LAYERS[3], HEAD)) == (
        Row("layers.{0-2}.moe", 1, "all_reduce f32[s0, 8] over tp", "m.py:3"),
        Row("layers.3.moe", 2, "all_reduce f32[s0, 8] over tp", "m.py:3"),
        Row("outside modules", 1, "all_gather f32[s0, 8] over tp", ""),
    )


def test_nothing_changed_where_lines_or_the_order_did():
    assert changes(of(*LAYERS), of(*(replace(e, line="m.py:9") for e in reversed(LAYERS)))) == ()


def test_more_and_less_by_layer():
    fewer = [replace(e, operand="bf16[s0, 8]", line="m.py:9") for e in LAYERS[:2]]
    differences = changes(of(*LAYERS, HEAD), of(*LAYERS[2:], *LAYERS[2:], *fewer))
    assert [change.line for change in differences] == ["m.py:3", "m.py:9", "m.py:3", ""]
    assert tuple(change.text for change in differences) == (
        "layers.{2-3}.moe: +1 all_reduce f32[s0, 8] over tp, m.py:3",
        "layers.{0-1}.moe: +1 all_reduce bf16[s0, 8] over tp, m.py:9",
        "layers.{0-1}.moe: -1 all_reduce f32[s0, 8] over tp, m.py:3",
        "outside modules: -1 all_gather f32[s0, 8] over tp",
    )


def test_another_mesh():
    assert changes(of(HEAD), of(HEAD, tp=4)) == (Change("mesh: tp 2 became tp 4"),)
