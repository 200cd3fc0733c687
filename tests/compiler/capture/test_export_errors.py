import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import typing_extensions
from torch import nn

from compiler.capture import capture
from compiler.capture.export_errors import model_line
from compiler.capture.fake_ranks import fake_process_group
from compiler.errors import CaptureError


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x


class BranchInside(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y * 2, (x,))


class Leaves(nn.Module):
    def forward(self, x):
        return torch.tensor(x.numpy())


class Unsupported(nn.Module):
    def forward(self, x):
        return torch.ops.aten._nested_tensor_from_tensor_list([x])


class WrongSizes(nn.Module):
    def forward(self, x):
        return x @ torch.ones(4)


class Asynchronous(nn.Module):
    def forward(self, x):
        dist.all_reduce(x, async_op=True).wait()
        return x


class Unmapped(nn.Module):
    def forward(self, x):
        dist.broadcast(x, 0)
        return x


class Sends(nn.Module):
    def forward(self, x):
        if dist.get_rank() == 0:
            dist.send(x, 1)
        else:
            dist.recv(x, 0)
        return x


class Reduces(nn.Module):
    def forward(self, x):
        dist.reduce(x, 0)
        return x


class Exchanges(nn.Module):
    def forward(self, x):
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, 1)]):
            work.wait()
        return x


class Objects(nn.Module):
    def forward(self, x):
        dist.all_gather_object([None, None], 3)
        return x


class ReadsItem(nn.Module):
    def forward(self, x):
        print("of the model", file=sys.stderr)
        return x + 1 if x.sum().item() > 0 else x


class Assigns(nn.Module):
    def forward(self, x):
        self.last = x + 1
        return x


class Raises(nn.Module):
    def forward(self, x):
        raise ValueError("as planned")


class Opaque:
    pass


class ReturnsOpaque(nn.Module):
    def forward(self, x):
        return Opaque()


class TakesOpaque(nn.Module):
    def forward(self, x, config):
        return x


LINE = r"test_export_errors\.py:\d+ in forward: "
SITE = r"test_export_errors\.py:\d+\n  found: "
CASES = [
    (Branch, "Python decision on the values", LINE + r"if x\.sum\(\) > 0", "torch.where"),
    (Leaves, "leaves PyTorch", LINE + r"return torch\.tensor\(x\.numpy", "custom_op"),
    (Unsupported, "cannot be traced", LINE + "return torch.ops.aten._nested", "register_fake"),
    (Asynchronous, "async_op=True", LINE + "dist.all_reduce", "without async_op"),
    (
        Unmapped,
        "is not functional",
        SITE + "broadcast$",
        "use broadcast of torch.distributed._func",
    ),
    (Sends, "no functional form", SITE + "send$", "use all_reduce, "),
    (Reduces, "no functional form", SITE + "reduce$", "keep it outside the model"),
    (
        Exchanges,
        "no functional form",
        r"test_export_errors\.py:\d+(.|\n)*found: (batch_isend_irecv|send)$",  # torch 2.13, 2.11
        "use all_reduce, ",
    ),
    (Objects, "no functional form", LINE + "(.|\n)*found: all_gather_object$", "use all_reduce, "),
    (Assigns, "assigns to an attribute", "last", "register it as a buffer"),
    (Raises, "cannot be exported", LINE + "raise ValueError", "torch.export.export"),
    (WrongSizes, "cannot be exported", LINE + "return x @", "divide by the number of ranks"),
    (ReturnsOpaque, "a result of the model must be a tensor", "Opaque", "register_pytree_node"),
]


@pytest.mark.parametrize(("model", "what", "where", "remedy"), CASES)
def test_a_failure_names_its_cause_its_line_and_a_remedy(model, what, where, remedy):
    with fake_process_group(0, 2), pytest.raises(CaptureError) as caught:
        capture(model(), (torch.ones(3),))
    text = str(caught.value)
    assert what in text
    assert remedy in caught.value.remedy
    assert re.search(where, text, re.MULTILINE), text


def test_the_graph_of_a_failed_export_is_not_printed(capsys):
    with pytest.raises(CaptureError):
        capture(ReadsItem(), (torch.ones(3),))
    assert set(capsys.readouterr().err.splitlines()) == {"of the model"}
    assert "print" not in vars(torch.export._trace)


@pytest.mark.parametrize("library", [torch.__file__, capture.__code__.co_filename])
def test_a_folder_whose_name_begins_like_that_of_a_library_is_the_models(library, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("1 / 0", f"{Path(library).parent}titan/layer.py", "exec"))
    assert model_line(caught.value) == "layer.py:1 in <module>"


def test_what_wraps_deprecated_functions_is_not_the_models(monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    inner = compile("1 / 0", typing_extensions.__file__, "exec")
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("exec(inner)", "/models/layer.py", "exec"), {"inner": inner})
    assert model_line(caught.value) == "layer.py:1 in <module>"


def test_an_argument_of_an_unknown_class_is_named():
    with pytest.raises(CaptureError, match=r"argument 'config' must be a tensor or"):
        capture(TakesOpaque(), (torch.ones(3), Opaque()))


def test_a_branch_inside_the_graph_is_refused():
    with pytest.raises(CaptureError) as raised:
        capture(BranchInside(), (torch.ones(4),))
    text = str(raised.value)
    assert text.startswith("the model takes a branch or runs a loop inside the graph\n  where: ")
    assert "test_export_errors.py:" in text
    assert "found: cond of true_graph_0" in text
