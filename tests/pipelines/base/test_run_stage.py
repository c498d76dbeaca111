"""What every stage begins with: a quiet environment, patient threads, errors in two lines."""

import errno
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.base.artifacts import read_manifest
from pipelines.base.errors import UserError
from pipelines.base.run_stage import QUIET_ENVIRONMENT, run_stage
from tests.support import REPOSITORY

Ingesting = Callable[[], subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _warnings_go_where_they_went() -> Iterator[None]:
    yield
    logging.captureWarnings(capture=False)


def test_openmp_is_told_how_long_to_spin() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    environment["OMP_DISPLAY_ENV"] = "verbose"
    # The flow's stages import torch before `run_stage` is called.
    command = [sys.executable, "-c", "import pipelines.base.errors, torch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr


def test_a_user_error_ends_in_two_lines_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("expected bread, got stone", "bake")

    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: expected bread, got stone\n  to fix this: bake\n"


def test_ctrl_c_says_that_the_work_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    assert ended.value.code == 130
    assert "to resume" in capsys.readouterr().err


def test_analytics_are_off_unless_the_user_turned_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    run_stage(lambda: None)
    assert os.environ["DO_NOT_TRACK"] == "false"
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_progress_is_one_line_per_record_where_there_is_no_terminal() -> None:
    script = (
        "from pipelines.base.run_stage import progress, run_stage\n"
        "def main():\n"
        "    shown = progress(iter('abcd'), total=4, unit='letter', label='test', interval_s=0)\n"
        "    assert list(shown) == ['a', 'b', 'c', 'd']\n"
        "    list(progress('ab', total=None, unit='letter', label='open'))\n"
        "run_stage(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert b"\r" not in done.stderr
    lines = [line.partition(": ")[2] for line in done.stderr.decode().splitlines()]
    assert lines[0] == "test: 25% (1/4 letters) in 0 s"
    assert lines[-1] == "open: 2 letters in 0 s"


# What a command does with streams that are closed, and in a locale without the characters.
STREAMS = """
import os, sys
from pipelines.base.run_stage import run_stage
def main():
    with open(sys.argv[1], "w") as stream:
        assert stream.fileno() > 2, "a file took the number of a stream"
        stream.write(sys.stdin.read())
    print("曹操")
    sys.stderr.write("玄德")
run_stage(main)
"""


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_an_empty_one(tmp_path: Path, redirection: str) -> None:
    command = f'"$0" -c "$1" "$2" {redirection}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, STREAMS, tmp_path / "file"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == ""
    if ">&-" not in redirection.split():
        assert done.stdout == b"\\u66f9\\u64cd\n"


FULL = """
import sys
from pathlib import Path

from pipelines.base.run_stage import run_stage


def main():
    print("曹操")
    Path(sys.argv[1]).write_text("玄德")


run_stage(main)
"""


@pytest.mark.parametrize(("file", "output"), [("/dev/null", "/dev/full"), ("/dev/full", None)])
def test_a_full_disk_is_named_and_room_helps(file: str, output: str | None) -> None:
    command = [sys.executable, "-c", FULL]
    with Path(output or os.devnull).open("w", encoding="utf-8") as stdout:
        done = subprocess.run(
            [*command, file], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == (
        "error: expected room to write the output, got: No space left on device\n"
        "  to fix this: free disk space, then run the same command again; "
        "finished work is kept\n"
    )
    subprocess.run([*command, "/dev/null"], stdout=subprocess.DEVNULL, check=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("only root can mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "full"),
    [("tokenize", "800k"), ("decontaminate", "400k"), ("decontaminate", "1m")],
)
def test_a_stage_says_that_the_disk_is_full_and_room_helps(
    sanguo: Path, workspace: Path, mounted: Path, stage: str, full: str
) -> None:
    source = {"tokenize": "documents", "decontaminate": "tokens"}[stage]
    (workspace / "data").mkdir()
    (workspace / "data" / "sanguo").symlink_to(mounted, target_is_directory=True)
    (mounted / source).symlink_to(sanguo / source, target_is_directory=True)
    subprocess.run(["mount", "-o", f"remount,size={full}", str(mounted)], check=True)
    command = [sys.executable, "-m", f"pipelines.{stage}"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "ENIGMA_RUNS_DIR": str(mounted / "runs"),
        "TMPDIR": str(mounted),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: expected room to write the output, got: " in done.stderr
    assert "No space left on device\n  to fix this: free disk space" in done.stderr
    assert "Traceback" not in done.stderr
    subprocess.run(["mount", "-o", "remount,size=64m", str(mounted)], check=True)
    subprocess.run(command, env=environment, check=True)
    output = {"tokenize": "tokens", "decontaminate": "shards"}[stage]
    roots = {read_manifest(directory / output)["root"] for directory in (mounted, sanguo)}
    assert len(roots) == 1


@pytest.fixture
def ingesting(workspace: Path, set_params, monkeypatch: pytest.MonkeyPatch) -> Ingesting:
    """Call it as `ingesting()`: run the stage `ingest` on one document."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (workspace / "a.jsonl").write_text('{"id": "1", "text": "曹操"}\n', encoding="utf-8")
    set_params({"ingest.source": "a.jsonl"})

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.ingest"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("runs", "File exists"),
        ("runs/sanguo-ingest", "File exists"),
        ("data", "Not a directory"),
        ("data/sanguo/raw", "Is a directory"),
    ],
)
def test_a_file_in_place_of_a_directory_is_named_and_can_be_moved_away(
    workspace: Path, ingesting: Ingesting, path: str, reason: str
) -> None:
    (workspace / path).parent.mkdir(parents=True, exist_ok=True)
    (workspace / path).write_text("precious")
    done = ingesting()
    assert done.returncode == 1
    assert re.search(rf"expected a place to read and write .*{path}.*: {reason}", done.stderr)
    assert "to fix this: move away the file in place of a directory" in done.stderr
    assert "Traceback" not in done.stderr
    (workspace / path).rename(workspace / "moved")
    assert ingesting().returncode == 0
    assert (workspace / "moved").read_text() == "precious"


def test_a_read_only_disk_is_named_and_can_be_made_writable(
    mounted: Path, ingesting: Ingesting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENIGMA_RUNS_DIR", str(mounted / "runs"))
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    done = ingesting()
    assert done.returncode == 1
    assert f"write {mounted / 'runs'}, got: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(mounted)], check=True)
    assert ingesting().returncode == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_directory_of_another_user_is_named(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "runs")

    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"expected a place to read and write runs, got: {os.strerror(number)}" in said
    assert "let this user read and write there" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_the_right_to_write_can_be_given_it(
    workspace: Path, ingesting: Ingesting
) -> None:
    (workspace / "runs").mkdir(mode=0o500)
    done = ingesting()
    assert done.returncode == 1
    assert "let this user read and write there" in done.stderr
    (workspace / "runs").chmod(0o700)
    assert ingesting().returncode == 0


def test_an_error_that_is_not_of_a_disk_keeps_its_traceback() -> None:
    def main() -> None:
        raise OSError(errno.EACCES, "of a socket")

    with pytest.raises(PermissionError, match="of a socket"):
        run_stage(main)


def test_bytes_of_another_encoding_are_no_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["enigma", "曹操", os.fsdecode(b"\xb2\xdc")])
    with pytest.raises(SystemExit) as ended:
        run_stage(lambda: None)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "argument 2: expected text in UTF-8" in said
    command = re.search("iconv .*", said)[0].split()
    done = subprocess.run(command, input=b"\xb2\xdc", capture_output=True, check=True)
    monkeypatch.setattr(sys, "argv", ["enigma", "曹操", os.fsdecode(done.stdout)])
    run_stage(lambda: None)
    assert sys.argv[2] == "曹"
