"""Bytes as text."""

import pytest

from compiler.cli.render.collectives import bytes_text


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
