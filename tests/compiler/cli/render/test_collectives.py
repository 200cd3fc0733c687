"""Layers and bytes as text."""

import pytest

from compiler.cli.render.collectives import bytes_text, layers_text, ranges_text


def test_numbers_as_ranges():
    assert ranges_text([5, 1, 0, 2, 7, 8]) == "0-2, 5, 7-8"


def test_paths_that_differ_in_the_layer_are_one():
    paths = ["m.layers.3.moe", "embed", "m.layers.4.moe", "", "m.layers.7"]
    assert layers_text(paths) == "m.layers.{3-4}.moe, embed, m.layers.7"


@pytest.mark.parametrize(
    ("payload_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1 << 40, "1.0 TiB"),
        (1 << 51, "2048.0 TiB"),
    ],
)
def test_bytes(payload_bytes, text):
    assert bytes_text(payload_bytes) == text
