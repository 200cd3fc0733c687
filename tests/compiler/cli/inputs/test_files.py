"""Files are written whole or not at all; links are followed, and devices and pipes written to."""

import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from compiler.cli.inputs.files import write_text
from compiler.errors import CommPlanError


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_text(link, "one")  # to a file that is not there yet
    write_text(link, "two")
    assert link.is_symlink()
    assert target.read_text() == "two"
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link"}


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    path.chmod(0o640)
    write_text(path, "two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, texts = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: texts.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join(10)
    assert texts == ["text"]
    assert pipe.is_fifo()


def test_a_device_is_written_to(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_text("")
    except OSError:
        pytest.skip("cannot make a device")
    write_text(device, "text")
    assert device.is_char_device()


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(CommPlanError, match="found: File too large"):
            write_text(path, "longer than ten bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_must_not_be_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder would let it be replaced. The superuser may write everything."""
    path = tmp_path / "file"
    path.write_text("one")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(CommPlanError, match="found: Permission denied"):
        write_text(path, "two")
    assert path.read_text() == "one"


@pytest.mark.parametrize("name", ["", ".", "loop", "missing/file"])
def test_what_cannot_be_written_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(CommPlanError, match="cannot write the file"):
        write_text(Path(name), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
    assert Path("loop").is_symlink()
