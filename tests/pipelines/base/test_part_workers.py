"""Parts on a Dask cluster of two workers, as docs/operations.md starts one."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client

import pipelines.clean as clean_module
from pipelines.base import part_workers
from pipelines.base.errors import UserError
from pipelines.base.part_workers import CLUSTER, map_parts
from pipelines.clean import clean
from pipelines.decontaminate import decontaminate
from pipelines.tokenize import tokenize
from tests.pipelines.base.cluster_parts import clean_or_die, die_once, refuse, write_worker
from tests.support import REPOSITORY, free_port, wait_for

pytestmark = pytest.mark.slow
ONE_THREAD = ("--nthreads", "1", "--no-nanny")


class Cluster:
    """A scheduler and its workers, each a process."""

    def __init__(self, directory: Path) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.workers: list[subprocess.Popen[bytes]] = []
        self._directory = directory
        self._scheduler = self._start("scheduler", "--host", self.address, "--no-dashboard")

    def have_workers(self, count: int, *, options: Sequence[str] = ONE_THREAD) -> None:
        """Start workers until there are `count`."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < count:
            self.workers.append(self._start("worker", self.address, *options, "--no-dashboard"))
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=120)

    def kill_workers(self) -> None:
        for worker in self.workers:
            family = [*psutil.Process(worker.pid).children(recursive=True), worker]
            for one in family:
                one.kill()
            worker.wait()

    def stop(self) -> None:
        self.kill_workers()
        self._scheduler.kill()
        self._scheduler.wait()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster that the stages of the test use."""
    monkeypatch.setenv(CLUSTER, running.address)
    return running


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def run_stages(profile, raw: Path, output: Path) -> None:
    small = profile.tokenize.model_copy(update={"sequences_per_shard": 100})
    clean(profile.clean, raw, output / "documents")
    tokenize(small, output / "documents", output / "tokens")
    decontaminate(
        profile.decontaminate, output / "tokens", output / "shards", output / "overlap.json"
    )


def test_a_cluster_writes_the_bytes_of_one_process(
    raw_parts: Path, profile, cluster: Cluster, tmp_path: Path, monkeypatch
) -> None:
    cluster.have_workers(2)
    here, there = tmp_path / "here", tmp_path / "there"
    # Relative paths, as a stage has them: a worker resolves them in the stage's directory.
    monkeypatch.chdir(tmp_path)
    run_stages(profile, raw_parts.relative_to(tmp_path), Path("there"))
    monkeypatch.delenv(CLUSTER)
    run_stages(profile, raw_parts, here)
    for stage in ("documents", "tokens", "shards"):
        assert content(there / stage) == content(here / stage)
    assert not list(there.glob(".*"))


def test_both_workers_make_parts(cluster: Cluster, tmp_path: Path) -> None:
    cluster.have_workers(2)
    parts = map_parts(write_worker, [0.2] * 6, tmp_path, label="part", workers=1)
    assert {int((part / "process").read_text()) for part in parts} == {
        worker.pid for worker in cluster.workers
    }


def test_a_worker_killed_halfway_changes_nothing(
    raw_parts: Path, profile, cluster: Cluster, tmp_path: Path, monkeypatch
) -> None:
    cluster.have_workers(2)
    monkeypatch.setattr(clean_module, "clean_part", clean_or_die)
    clean(profile.clean, raw_parts, tmp_path / "there")
    dead = int((tmp_path / "died").read_text())
    assert [worker.pid for worker in cluster.workers if worker.poll() == -signal.SIGKILL] == [dead]
    monkeypatch.undo()
    clean(profile.clean, raw_parts, tmp_path / "here")
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert not list(tmp_path.glob(".*"))


def test_a_process_of_this_machine_that_is_killed_is_named(tmp_path: Path, monkeypatch) -> None:
    """The remedy: the same command resumes, with fewer processes."""
    monkeypatch.delenv(CLUSTER, raising=False)
    work = tmp_path / "work"
    with pytest.raises(UserError, match=r"expected 2 processes .* one that was killed") as caught:
        map_parts(die_once, [tmp_path / "died"] * 2, work, label="part", workers=2)
    assert "lower `workers`" in caught.value.fix
    assert len(map_parts(die_once, [tmp_path / "died"] * 2, work, label="part", workers=1)) == 2


KILLED = """
import sys
from pathlib import Path
from pipelines.base.part_workers import map_parts
from tests.pipelines.base.cluster_parts import write_worker
if __name__ == "__main__":
    map_parts(write_worker, [0.2] * 300, Path(sys.argv[1]), label="part", workers=2)
"""


def test_the_workers_of_a_killed_stage_make_nothing_more(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(CLUSTER, raising=False)
    work = tmp_path / "work"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, work],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
        text=True,
    ) as stage:
        wait_for((work / "part-00001").exists, stage)
        workers = psutil.Process(stage.pid).children()
        stage.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for worker in alive:
        worker.kill()
    assert not alive


def test_the_error_of_a_worker_arrives_unchanged(cluster: Cluster, tmp_path: Path) -> None:
    cluster.have_workers(1)
    with pytest.raises(UserError, match="expected text, got none") as caught:
        map_parts(refuse, [1], tmp_path, label="part", workers=1)
    assert caught.value.fix == "add some"


def test_what_would_change_the_bytes_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch
) -> None:
    cluster.have_workers(1)
    with pytest.raises(UserError, match=r"expected the directory .*elsewhere, found none"):
        map_parts(write_worker, [0.0], tmp_path / "elsewhere", label="part", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(part_workers, "installed_code", lambda: "of another commit")
        with pytest.raises(UserError, match="expected the stage's code") as caught:
            map_parts(write_worker, [0.0], tmp_path, label="part", workers=1)
    assert "install the same commit there" in caught.value.fix
    assert "restart the worker" in caught.value.fix
    cluster.kill_workers()
    cluster.have_workers(1)
    (tmp_path / "again").mkdir()
    map_parts(write_worker, [0.0], tmp_path / "again", label="part", workers=1)
    shutil.rmtree(tmp_path / "again")
    cluster.kill_workers()
    cluster.have_workers(1, options=("--nthreads", "2", "--no-nanny"))
    with pytest.raises(
        UserError, match=r"expected workers with one thread each, got \[.*2\]"
    ) as no:
        map_parts(write_worker, [0.0], tmp_path, label="part", workers=1)
    # What the message says to do, and the page. `--nworkers auto` sets the threads as well.
    [options] = re.findall(r"`dask worker \S+ ([^`]+)`", no.value.fix)
    assert options in (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    cluster.kill_workers()
    cluster.have_workers(1, options=options.split())
    (tmp_path / "mended").mkdir()
    map_parts(write_worker, [0.0], tmp_path / "mended", label="part", workers=1)
    shutil.rmtree(tmp_path / "mended")
    assert not list(tmp_path.iterdir())


def test_a_missing_cluster_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(CLUSTER, f"tcp://127.0.0.1:{free_port()}")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UserError, match="expected a Dask scheduler at") as caught,
    ):
        map_parts(write_worker, [0.0], tmp_path, label="part", workers=1)
    assert caught.value.fix.endswith("correct the address, or unset the variable")
    with monkeypatch.context() as patch:
        patch.delenv(CLUSTER)
        [part] = map_parts(write_worker, [0.0], tmp_path / "here", label="part", workers=1)
        assert (part / "process").is_file()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match="expected the package distributed") as caught:
        map_parts(write_worker, [0.0], tmp_path, label="part", workers=1)
    assert "--group dask" in caught.value.fix
