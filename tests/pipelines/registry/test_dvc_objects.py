"""Every kind of damage to DVC's objects is found and named."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.base.artifacts import sha256_file, write_manifest
from pipelines.base.errors import GateError, UserError
from pipelines.registry.dvc_objects import (
    Output,
    check_working_copy,
    hash_made,
    hash_output,
    md5_file,
    read_lock,
)


def put(cache: Path, content: bytes, suffix: str = "") -> str:
    md5 = hashlib.md5(content).hexdigest()
    path = cache / "files" / "md5" / md5[:2] / f"{md5[2:]}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5 + suffix


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An output with a manifest."""
    made = tmp_path / "out"
    made.mkdir()
    (made / "part.bin").write_bytes(b"part")
    write_manifest(made, stage="ingest", facts={})
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Call it with a graph: the empty working directory becomes that of DVC, and stages run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def repro(stages: dict[str, Any]) -> None:
        Path("dvc.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
        subprocess.run(["dvc", "init", "--quiet", "--no-scm"], check=True)
        subprocess.run(["dvc", "repro", "--quiet"], check=True)

    return repro


def cached(directory: Path, cache: Path) -> Output:
    listing = [
        {"relpath": path.name, "md5": put(cache, path.read_bytes())}
        for path in sorted(directory.iterdir())
    ]
    return Output(str(directory), put(cache, json.dumps(listing).encode(), ".dir"))


def test_a_whole_output_is_listed_file_by_file(directory: Path, cache: Path) -> None:
    output = cached(directory, cache)
    files = hash_output(output, cache)
    assert sorted(files) == ["manifest.json", "part.bin"]
    assert files["part.bin"].read_bytes() == b"part"
    check_working_copy(output, files)
    single = Output("one", put(cache, b"one"))
    assert list(hash_output(single, cache)) == [""]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(b"other", "expected md5"), (None, "in DVC's cache, found no such file")],
)
def test_a_changed_or_missing_object_is_refused(
    directory: Path, cache: Path, damage: bytes | None, reason: str
) -> None:
    output = cached(directory, cache)
    path = hash_output(output, cache)["part.bin"]
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(GateError, match=reason):
        hash_output(output, cache)


def test_a_file_that_the_manifest_does_not_know_so_is_refused(directory: Path, cache: Path) -> None:
    (directory / "part.bin").write_bytes(b"replaced, and DVC was told so")
    with pytest.raises(GateError, match=r"out/part\.bin: expected sha256"):
        hash_output(cached(directory, cache), cache)


def test_a_changed_working_copy_is_refused(directory: Path, cache: Path) -> None:
    output = cached(directory, cache)
    files = hash_output(output, cache)
    (directory / "part.bin").write_bytes(b"edited")
    with pytest.raises(GateError, match=r"part\.bin: expected sha256"):
        check_working_copy(output, files)


# The first time it writes a manifest of other bytes than those that are there in the end.
STAGE = """
import sys
from pathlib import Path
from pipelines.base.artifacts import write_manifest

out, again = Path("out"), Path("again")
out.mkdir()
(out / "part.bin").write_bytes(b"part")
write_manifest(out, stage="ingest", facts={})
if not again.exists():
    (out / "part.bin").write_bytes(b"other")
    again.touch()
"""


@pytest.mark.slow
def test_what_dvc_believes_is_made_again_as_the_messages_say(dvc) -> None:
    """A read-only object counts as whole for DVC: `dvc repro` and `dvc pull` alone do nothing."""
    Path("stage.py").write_text(STAGE, encoding="utf-8")
    dvc({"ingest": {"cmd": "python stage.py", "outs": ["out"]}})

    def hashed() -> dict[str, Path]:
        return hash_output(read_lock(Path("dvc.lock"))["ingest"].outs[0], Path(".dvc/cache"))

    with pytest.raises(GateError, match=r"out/part\.bin: expected sha256") as refusal:
        hashed()
    force = refusal.value.fix.split("`")[1]
    assert force == "dvc repro --force --single-item ingest"
    subprocess.run([*force.split(), "--quiet"], check=True)
    damaged = hashed()["part.bin"]
    subprocess.run(["dvc", "remote", "add", "--quiet", "--default", "kept", "kept"], check=True)
    subprocess.run(["dvc", "push", "--quiet"], check=True)
    for again in ("dvc repro", "dvc pull"):
        damaged.unlink()
        damaged.write_bytes(b"rotten")
        damaged.chmod(0o444)
        with pytest.raises(GateError, match=r"out/part\.bin: expected md5") as refusal:
            hashed()
        delete = re.search(r"\((rm -f [^)]+)\)", refusal.value.fix)[1]
        subprocess.run(["bash", "-c", delete], check=True)
        with pytest.raises(GateError, match="in DVC's cache, found no such file") as refusal:
            hashed()
        assert f"`{again}`" in refusal.value.fix
        subprocess.run([*again.split(), "--quiet"], check=True)
        assert hashed()["part.bin"].read_bytes() == b"part"


MAKE = """
from pathlib import Path

made = Path("made", "b")
made.mkdir(parents=True)
for name in ("x", "../b.x", "../\u5b57.json", "../B"):
    (made / name).write_text(name, encoding="utf-8")
Path("report.json").write_text("{}", encoding="utf-8")
"""


@pytest.mark.slow
def test_what_dvc_would_call_modified_is_refused_until_the_remedy_is_run(dvc) -> None:
    Path("make.py").write_text(MAKE, encoding="utf-8")
    dvc({"make": {"cmd": "python make.py", "outs": ["made"], "metrics": ["report.json"]}})
    files = ("made/b/x", "made/b.x", "made/\u5b57.json", "made/B", "report.json")
    hashes = {file: sha256_file(Path(file)) for file in files}

    def hashed() -> dict[str, str]:
        return hash_made(read_lock(Path("dvc.lock"))["make"].outs)

    assert hashed() == hashes
    lock = Path("dvc.lock").read_text(encoding="utf-8")
    a_hash = md5_file(Path("report.json"))
    for number, (name, got) in enumerate(
        {"made/B": r"got \w+\.dir", "report.json": r"got \w+", "made": "got no such file"}.items()
    ):
        for way in (0, 1):
            path = Path(name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                # Another file: the old one may be a link into the cache.
                path.unlink()
                path.write_text(f"edited {number} {way}", encoding="utf-8")
            with pytest.raises(UserError, match=rf", as dvc\.lock has it, {got}") as refusal:
                hashed()
            remedy = refusal.value.fix.split("`")[1::2][way]
            assert remedy == (f"dvc checkout --force {path.parts[0]}", "dvc repro")[way]
            subprocess.run([*remedy.split(), "--quiet"], check=True)
            assert hashed() == hashes
    for broken in (lock.replace(a_hash, "f" * 32), lock.replace(f"md5: {a_hash}", "")):
        Path("dvc.lock").write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match=r"dvc\.lock") as refusal:
            hashed()
        assert "run `dvc repro`" in refusal.value.fix
        subprocess.run(["dvc", "repro", "--quiet"], check=True)
        assert hashed() == hashes


@pytest.mark.parametrize("text", [None, "schema: '2.0'\n", "[", "stages: {a: {outs: [{}]}}"])
def test_what_is_no_lock_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "dvc.lock"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(GateError, match=r"dvc\.lock: expected the lock of a finished"):
        read_lock(path)
