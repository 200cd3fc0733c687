import math

import pytest
import torch

from models.step3p5 import Step3p5Config
from models.step3p5.attention import band, frequencies, rotate, rotation, visible
from models.step3p5.layer_config import Rope


@pytest.mark.parametrize("config", [Step3p5Config.real(), Step3p5Config.small()])
def test_llama3_scaling_keeps_interpolates_and_divides(config):
    rope = config.layers[0].rope
    scaling = rope.scaling
    longest = scaling.original_max_position_embeddings / scaling.low_freq_factor
    shortest = scaling.original_max_position_embeddings / scaling.high_freq_factor
    branches = []
    for j, found in enumerate(frequencies(rope, torch.float64, torch.device("cpu")).tolist()):
        base = rope.theta ** (-2 * j / rope.rotary_dims)
        wavelength = 2 * math.pi / base
        if wavelength < shortest:
            branches.append("kept")
            expected = base
        elif wavelength > longest:
            branches.append("divided")
            expected = base / scaling.factor
        else:
            branches.append("interpolated")
            kept = (longest / wavelength - 1) * scaling.low_freq_factor
            kept /= scaling.high_freq_factor - scaling.low_freq_factor
            expected = (1 - kept) * base / scaling.factor + kept * base
        assert found == pytest.approx(expected, rel=1e-12)
    assert set(branches) == {"kept", "interpolated", "divided"}
    if config.num_hidden_layers == 45:
        assert (branches.count("kept"), branches.count("interpolated")) == (14, 7)


def test_rotation_is_a_rotation_by_position_of_the_first_dims():
    rope = Rope(theta=100.0, rotary_dims=4, scaling=None)
    x = torch.randn(1, 3, 2, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    positions = torch.tensor([[0, 1, 7]])
    y = rotate(x, *rotation(rope, positions, torch.float64))
    assert torch.equal(y[:, 0], x[:, 0])
    assert torch.equal(y[..., 4:], x[..., 4:])
    for token, position in enumerate([0, 1, 7]):
        for j in range(2):
            pair = torch.complex(x[0, token, :, j], x[0, token, :, j + 2])
            turned = pair * torch.exp(torch.tensor(1j * position * 100.0 ** (-j / 2)))
            found = torch.complex(y[0, token, :, j], y[0, token, :, j + 2])
            torch.testing.assert_close(found, turned)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_window_counts_the_query_itself(window):
    positions = torch.arange(6)[None]
    seen = visible(positions, positions, window)
    assert seen.shape == (1, 6, 6)
    for i in range(6):
        expected = [j <= i and (window is None or i - window < j) for j in range(6)]
        assert seen[0, i].tolist() == expected
        assert sum(expected) == (i + 1 if window is None else min(window, i + 1))


@pytest.mark.parametrize("max_tokens", [None, 40])
@pytest.mark.parametrize("window", [1, 4, 12])
@pytest.mark.parametrize("length", [1, 2, 8, 13, 16])
def test_blocks_of_a_band_see_every_key_of_every_window_once(length, window, max_tokens):
    starts = torch.tensor([[0], [3]])
    positions = starts + torch.arange(length)
    if max_tokens is None:
        positions = positions * 2  # tokens need not be neighbours
    held = positions if max_tokens is None else torch.arange(max_tokens).expand(2, -1)
    found = band(positions, window, max_tokens, torch.float32)
    count, _, rows, columns = found.bias.shape
    assert set(found.bias.unique().tolist()) <= {0, -math.inf}
    queries = torch.arange(length) if found.queries is None else found.queries
    sequences, keys = torch.broadcast_tensors(*found.keys)
    assert keys.numel() == count * columns
    seen = torch.zeros(2, length, held.shape[1], dtype=torch.int64)
    for block in range(count):
        sequence, first = divmod(block * rows, len(queries))
        for row in range(min(rows, length - first)):
            assert queries[first + row] == first + row
            reached = keys.reshape(count, columns)[block][found.bias[block, 0, row] == 0]
            assert (sequences.reshape(count, columns)[block] == sequence).all()
            seen[sequence, first + row].index_add_(0, reached, torch.ones_like(reached))
    assert torch.equal(seen, visible(positions, held, window).long())
