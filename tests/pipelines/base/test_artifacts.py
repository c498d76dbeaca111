"""Outputs appear whole or not at all, and one changed byte is found."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    remove_directory,
    temporary_directory,
    verify_manifest,
    write_array,
    write_json,
    write_manifest,
)
from pipelines.base.errors import UserError


def test_a_failure_leaves_the_old_directory(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with publish_directory(final) as building:
        (building / "a").write_text("old")

    def fail_half_way() -> None:
        with publish_directory(final) as building:
            (building / "a").write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert (final / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


KILLED = """
import os, pathlib, signal, sys
from pipelines.base import artifacts
with getattr(artifacts, sys.argv[2])(pathlib.Path(sys.argv[1])) as building:
    (building / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("make", ["publish_directory", "temporary_directory"])
def test_what_a_killed_process_left_is_swept_and_what_a_live_one_builds_is_not(
    tmp_path: Path, make: str
) -> None:
    final = tmp_path / "out"
    (tmp_path / ".out.1234").mkdir()  # not ours
    with publish_directory(final) as mine:
        (mine / "a").write_text("live")
        subprocess.run([sys.executable, "-c", KILLED, str(final), make], check=False)
        left = {path.name for path in tmp_path.iterdir()} - {".out.1234", mine.name}
        assert len(left) == 1
        with temporary_directory(final) as building:
            (building / "a").write_text("other")
            assert {path.name for path in tmp_path.iterdir()} == {
                ".out.1234",
                mine.name,
                building.name,
            }
        assert (mine / "a").read_text() == "live"
    assert (final / "a").read_text() == "live"
    assert {path.name for path in tmp_path.iterdir()} == {".out.1234", "out"}
    with publish_directory(final) as building:
        (building / "b").write_text("newer")
    assert [path.name for path in final.iterdir()] == ["b"]
    assert {path.name for path in tmp_path.iterdir()} == {".out.1234", "out"}


def test_a_directory_is_removed_with_what_a_killed_removal_left(tmp_path: Path) -> None:
    final = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILLED, str(final), "temporary_directory"], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    (final / "sub").mkdir(parents=True)
    remove_directory(final)
    assert list(tmp_path.iterdir()) == []
    remove_directory(final)
    assert list(tmp_path.iterdir()) == []


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "shard.bin").write_bytes(b"\x00\x01\x02")
    root = write_manifest(tmp_path, stage="test", facts={"rows": 1})
    assert verify_manifest(tmp_path)["root"] == root
    (tmp_path / "sub" / "shard.bin").write_bytes(b"\x00\x01\x03")
    with pytest.raises(UserError, match=r"shard\.bin: expected sha256"):
        verify_manifest(tmp_path)


def test_a_forged_manifest_is_found(tmp_path: Path) -> None:
    (tmp_path / "shard.bin").write_bytes(b"\x00")
    write_manifest(tmp_path, stage="test", facts={})
    manifest = read_json(tmp_path / "manifest.json")
    manifest["root"] = "0" * 64
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(UserError, match="root does not match"):
        verify_manifest(tmp_path)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "shard.bin").write_bytes(b"\x00")
    write_manifest(tmp_path, stage="test", facts={})
    (tmp_path / "shard.bin").unlink()
    with pytest.raises(UserError, match="no such file"):
        verify_manifest(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype="<u2").reshape(2, 3, 4),
        np.arange(24, dtype="<u4").reshape(4, 6)[::2, ::-3],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros(5, np.dtype([("hash", "<u8"), ("place", "<u4", 3)]))["place"],
        np.zeros(7, np.dtype([("hash", "<u8"), ("id", "<u4")])),
        np.empty((0, 3), np.uint16),
        np.array([True, False]),
    ],
    ids=["whole", "strided", "by columns", "field", "records", "empty", "flags"],
)
def test_arrays_are_written_as_numpy_does(tmp_path: Path, array: np.ndarray) -> None:
    array.tofile(tmp_path / "expected")
    with (tmp_path / "got").open("wb") as stream:
        write_array(stream, array)
    assert (tmp_path / "got").read_bytes() == (tmp_path / "expected").read_bytes()


def test_an_array_on_a_full_disk_says_that_it_is_full() -> None:
    with Path("/dev/full").open("wb") as stream, pytest.raises(OSError, match="No space") as caught:
        write_array(stream, np.zeros(1 << 20))
    assert caught.value.errno == errno.ENOSPC


def test_json_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "m.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"{", "is not JSON"), (b"[1]", "is not a JSON object"), (b"\xff", "is not JSON")],
)
def test_unreadable_json_is_a_users_error(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=expected):
        read_json(path)
    with pytest.raises(UserError, match="found no such file"):
        read_json(path / "report.json")


def test_json_keeps_chinese_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"title": "三国"})
    assert "三国" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"title": "三国"}
