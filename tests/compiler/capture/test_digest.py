import pytest
import torch
from torch._subclasses import FakeTensorMode

from compiler.capture.digest import _device_sums, digests


def on_device(tensor):
    """The digest as computed on an accelerator, computed here."""
    return _device_sums(tensor.contiguous().reshape(-1)).tolist()


def on_host(tensor):
    return digests({"x": tensor})["x"]


@pytest.mark.parametrize("digest", [on_device, on_host])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_a_digest_depends_on_every_element_and_its_place(digest, dtype):
    x = torch.arange(101).to(dtype)
    assert digest(x) == digest(x.clone())
    for place in range(0, 101, 7):
        changed = x.clone()
        changed[place] += 1
        assert digest(changed) != digest(x)
    assert digest(x.flip(0)) != digest(x)
    assert digest(x.roll(1)) != digest(x)


def test_signs_count_even_where_values_compare_equal():
    zeros = torch.zeros(16)
    assert on_device(zeros) != on_device(-zeros)
    assert on_host(zeros) != on_host(-zeros)


def test_slices_that_start_inside_a_word_have_the_digest_of_their_copy():
    whole = torch.arange(67, dtype=torch.int16)
    for start in range(1, 5):
        part = whole[start : start + 60]
        assert on_device(part) == on_device(part.clone())
        assert on_host(part) == on_host(part.clone())


def test_type_and_shape_are_part_of_it():
    assert on_host(torch.zeros(4)) != on_host(torch.zeros(2, 2))
    assert on_host(torch.zeros(4)) != on_host(torch.zeros(4, dtype=torch.int32))
    assert on_host(torch.zeros(0)) != on_host(torch.zeros(0, 2))


def test_tensors_without_values_have_none():
    with FakeTensorMode():
        fake = torch.zeros(3)
    assert digests({"fake": fake, "meta": torch.zeros(3, device="meta")}) == {}
