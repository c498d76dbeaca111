"""Parts of a stage: resumed after a kill, the same for any number of workers."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import pipelines.ingest as ingest_module
from pipelines.base import resumable_parts
from pipelines.base.errors import UserError
from pipelines.base.part_workers import map_parts
from pipelines.base.resumable_parts import resumable
from pipelines.clean import clean
from pipelines.ingest import ingest
from pipelines.params import load_params
from pipelines.tokenize import tokenize
from tests.support import REPOSITORY, change_params, wait_for

PARTS = 12


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def kill_at_first_part(script: str, work: Path) -> list[Path]:
    """Run a stage until its first part is there, and kill it."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path\n{script}"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(work.glob("[a-z]*-00000")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return sorted(work.glob("[a-z]*-[0-9]*"))


@pytest.mark.slow
def test_a_killed_ingest_resumes_after_its_last_file(
    write_corpus, prose, profile, tmp_path: Path
) -> None:
    source = write_corpus([prose(seed, 200) for seed in range(2000)])
    params = profile.ingest.model_copy(update={"source": str(source), "documents_per_file": 20})
    ingest(params, tmp_path / "whole")
    output, work = tmp_path / "killed", tmp_path / "work"
    finished = kill_at_first_part(
        "from pipelines.ingest import ingest; from pipelines.params import IngestParams\n"
        f"ingest(IngestParams.model_validate({params.model_dump()!r}),"
        f" Path({str(output)!r}), work=Path({str(work)!r}))\n",
        work,
    )
    assert not output.exists()
    assert 0 < len(finished) < 100
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        real = ingest_module._write_part
        patch.setattr(ingest_module, "_write_part", lambda *a: seen.append(a[3]) or real(*a))
        ingest(params, output, work=work)
    assert seen == list(range(len(finished), 100))
    assert content(output) == content(tmp_path / "whole")
    assert not work.exists()


def test_a_source_that_changed_meanwhile_is_read_again(
    write_corpus, profile, tmp_path: Path
) -> None:
    write_corpus(["一", "二"], name="a.parquet")
    write_corpus(["三"], name="b.parquet")
    params = profile.ingest.model_copy(
        update={"source": str(tmp_path / "*.parquet"), "documents_per_file": 1}
    )
    work = tmp_path / "work"
    with pytest.raises(UserError, match="'d0000' 2 times"):
        ingest(params, tmp_path / "raw", work=work)
    assert len(list(work.glob("part-*"))) == 3
    write_corpus(["四", "五"], name="a.parquet")
    (tmp_path / "b.parquet").unlink()
    ingest(params, tmp_path / "raw", work=work)
    texts = [pq.read_table(path)["text"].to_pylist() for path in (tmp_path / "raw").glob("part-*")]
    assert sorted(texts) == [["五"], ["四"]]


@pytest.mark.slow
def test_two_workers_write_the_bytes_of_one(raw_parts: Path, profile, tmp_path: Path) -> None:
    for workers in (1, 2):
        clean(profile.clean, raw_parts, tmp_path / f"by-{workers}", workers=workers)
    assert content(tmp_path / "by-1") == content(tmp_path / "by-2")
    assert not list(tmp_path.glob(".by-*"))


@pytest.mark.slow
def test_a_killed_stage_resumes_and_writes_the_same(
    raw_parts: Path, profile, tmp_path: Path
) -> None:
    clean(profile.clean, raw_parts, tmp_path / "whole")
    output, work = tmp_path / "killed", tmp_path / "work"
    kill_at_first_part(
        "from pipelines.clean import clean; from pipelines.params import load_params\n"
        f"clean(load_params(Path({str(REPOSITORY / 'params.yaml')!r})).profile.clean,"
        f" Path({str(raw_parts)!r}), Path({str(output)!r}), work=Path({str(work)!r}))\n",
        work,
    )
    assert not output.exists()
    finished = sorted(work.glob("clean-*"))
    seen = []
    import pipelines.clean as module

    real = module.clean_part

    def watched(part, directory: Path) -> None:
        seen.append(part.path.name)
        real(part, directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "clean_part", watched)
        clean(profile.clean, raw_parts, output, work=work)
    assert len(seen) == PARTS - len(finished)
    assert content(output) == content(tmp_path / "whole")
    assert not work.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "decontaminate"])
def test_later_stages_resume_after_a_kill_with_two_workers(
    stage: str, sanguo: Path, profile, tmp_path: Path
) -> None:
    """The killed run had one worker; what it finished is not made again."""
    module = importlib.import_module(f"pipelines.{stage}")
    params = getattr(profile, stage)
    source = sanguo / "documents"
    if stage == "decontaminate":
        # Small token shards give two workers something to do.
        small = profile.tokenize.model_copy(update={"sequences_per_shard": 300})
        tokenize(small, source, tmp_path / "tokens")
        source = tmp_path / "tokens"

    def arguments(name: str) -> list[Path]:
        report = [tmp_path / f"{name}.json"] if stage == "decontaminate" else []
        return [source, tmp_path / name, *report]

    getattr(module, stage)(params, *arguments("whole"))
    work = tmp_path / "work"
    paths = ", ".join(f"Path({str(path)!r})" for path in arguments("killed"))
    finished = kill_at_first_part(
        f"from pipelines.{stage} import {stage}\n"
        f"from pipelines.params import {type(params).__name__} as P\n"
        f"{stage}(P.model_validate({params.model_dump()!r}), {paths}, work=Path({str(work)!r}))\n",
        work,
    )
    assert not (tmp_path / "killed").exists()
    made = {path: path.stat().st_ino for path in finished}
    kept = {}
    real = resumable_parts.remove_directory

    def watched(path: Path) -> None:
        kept.update({part: part.stat().st_ino for part in made})
        real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumable_parts, "remove_directory", watched)
        getattr(module, stage)(params, *arguments("killed"), work=work, workers=2)
    assert made
    assert kept == made
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not work.exists()


def test_parts_that_are_cut_otherwise_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "out put"

    def fail() -> None:
        with resumable(output, None, stage="clean", fingerprint={"a": 1}, cut={"rows": 3}) as work:
            (work / "x-00000").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    four = {"rows": 4}
    with (
        pytest.raises(UserError, match=r"expected \{'rows': 3\}, got \{'rows': 4\}") as caught,
        resumable(output, None, stage="clean", fingerprint={"a": 1}, cut=four),
    ):
        pass
    subprocess.run(["bash", "-c", caught.value.fix.partition("discard it: ")[2]], check=True)
    with resumable(output, None, stage="clean", fingerprint={"a": 1}, cut=four) as work:
        assert list(work.iterdir()) == [work / "plan.json"]


def test_other_settings_start_over(tmp_path: Path) -> None:
    def write(item: int, directory: Path) -> None:
        (directory / "value").write_text(str(item))

    def begin() -> None:
        with resumable(output, work, stage="clean", fingerprint={"a": 1}, cut={"rows": 3}):
            map_parts(write, [1, 2], work, label="x", workers=1)
            raise KeyboardInterrupt

    output, work = tmp_path / "output", tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        begin()
    assert len(list(work.glob("x-*"))) == 2
    # Other data may be cut otherwise too: nobody could finish the run with what it started with.
    with resumable(output, work, stage="clean", fingerprint={"a": 2}, cut={"rows": 4}):
        made = map_parts(write, [3, 4], work, label="x", workers=1)
        assert [(path / "value").read_text() for path in made] == ["3", "4"]
    assert not work.exists()


# A run with two parts that is killed when it has deleted some of its files.
KILLED_WHILE_IT_DELETES = """
import os, signal, sys
from pathlib import Path
from pipelines.base.part_workers import map_parts
from pipelines.base.resumable_parts import resumable

deletions = int(sys.argv[2])
unlink = os.unlink

def write(item, directory):
    for name in ("value", "facts"):
        (directory / name).write_text(str(item))

def killing(*args, **names):
    global deletions
    if deletions == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    deletions -= 1
    unlink(*args, **names)

with resumable(Path(sys.argv[1]), None, stage="clean", fingerprint={"a": 1}) as work:
    map_parts(write, [1, 2], work, label="x", workers=1)
    os.unlink = killing
"""


@pytest.mark.parametrize("deletions", [1, 2, 3, 4])
def test_a_run_killed_while_it_deletes_its_parts_leaves_none_of_them(
    tmp_path: Path, deletions: int
) -> None:
    def write(item: int, directory: Path) -> None:
        (directory / "value").write_text(str(item))

    output = tmp_path / "output"
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_IT_DELETES, output, str(deletions)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    # Half deleted, under a name that no run looks for.
    [left] = [path for path in tmp_path.iterdir() if path.is_dir()]
    with resumable(output, None, stage="clean", fingerprint={"a": 2}) as work:
        assert not left.exists()
        made = map_parts(write, [3, 4], work, label="x", workers=1)
        assert [(path / "value").read_text() for path in made] == ["3", "4"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("plan", ["half deleted", "damaged"])
def test_parts_without_a_plan_are_made_again(tmp_path: Path, plan: str) -> None:
    work = tmp_path / "work"
    (work / "x-00000").mkdir(parents=True)
    if plan == "damaged":
        (work / "plan.json").write_text("{")

    def begin() -> list[str]:
        with resumable(tmp_path / "output", work, stage="clean", fingerprint={"a": 1}):
            return [path.name for path in work.iterdir()]

    if plan == "damaged":
        with pytest.raises(UserError, match="delete it and run") as caught:
            begin()
        # As the message says.
        Path(caught.value.problem.split(" is not JSON")[0]).unlink()
    assert begin() == ["plan.json"]


# A stage that makes three parts, each when there is a file with its number.
SLOW = """
import sys, time
from pathlib import Path
from pipelines.base.artifacts import publish_directory
from pipelines.base.part_workers import map_parts
from pipelines.base.resumable_parts import resumable
from pipelines.base.run_stage import run_stage

top = Path(sys.argv[1])

def write(item, directory):
    while not (top / f"go-{item}").exists():
        time.sleep(0.01)
    (directory / "value").write_text(sys.argv[2])

def main():
    fingerprint = {"a": sys.argv[2]}
    with (
        resumable(top / "output", top / "work", stage="clean", fingerprint=fingerprint) as work,
        publish_directory(top / "output") as building,
    ):
        parts = map_parts(write, [0, 1, 2], work, label="x", workers=1)
        (building / "values").write_text("".join((p / "value").read_text() for p in parts))

run_stage(main)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Call it as `start("A")`: run `SLOW` with these parameters."""
    with ExitStack() as running:

        def begin(parameters: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", SLOW, tmp_path, parameters],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stderr=subprocess.PIPE,
                text=True,
            )
            running.enter_context(process)
            running.callback(process.kill)
            return process

        yield begin


@pytest.mark.parametrize(
    ("remedy", "parameters"), [("wait", "A"), ("wait", "B"), ("terminate", "B"), ("kill", "A")]
)
def test_a_second_run_is_refused_and_the_first_one_finishes(
    start, tmp_path: Path, remedy: str, parameters: str
) -> None:
    (tmp_path / "go-0").touch()
    first = start("A")
    wait_for((tmp_path / "work" / "x-00000").exists, first)
    second = start(parameters)
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 1
    assert f"but process {first.pid} " in said
    assert "is running clean\n  to fix this: wait until it has ended, or end" in said
    assert "Traceback" not in said
    if remedy != "wait":
        getattr(first, remedy)()
        first.wait()
    for number in (1, 2):
        (tmp_path / f"go-{number}").touch()
    assert (first.wait(timeout=60) == 0) is (remedy == "wait")
    if remedy == "wait":
        assert (tmp_path / "output" / "values").read_text() == "AAA"
    assert start(parameters).wait(timeout=60) == 0
    assert (tmp_path / "output" / "values").read_text() == 3 * parameters
    assert {path.name for path in tmp_path.iterdir()} == {"output", "go-0", "go-1", "go-2"}


def test_the_stage_takes_workers_and_work_from_its_settings(
    workspace: Path, raw_parts: Path
) -> None:
    import pipelines.clean as module

    target = workspace / "data" / "sanguo" / "raw"
    target.parent.mkdir(parents=True)
    target.symlink_to(raw_parts)
    change_params(workspace / "params.yaml", {"workers": 2})
    assert load_params().profile.workers == 2
    module.main()
    assert (workspace / "data" / "sanguo" / "documents" / "manifest.json").is_file()
    assert list((workspace / "runs").iterdir()) == []
