"""Promote models with PostgreSQL behind MLflow and Prefect, and look for its password."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest

from flows.serve import HOST
from tests.flows.conftest import Server, set_graph
from tests.support import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
USER = "enigma"
# The stages that a version must name; the last one logs a run to MLflow and writes what the whole
# graph would.
FINISHED = {
    "train": {
        "cmd": "cp params.yaml trained",
        "params": ["profiles.${profile}.train"],
        "outs": ["trained"],
    },
    "evaluate": {
        "cmd": "cp params.yaml judged",
        "deps": ["trained"],
        "params": ["profiles.${profile}.evaluate"],
        "outs": ["judged"],
    },
    "train_flow": {
        "cmd": "cp params.yaml fitted",
        "deps": ["judged"],
        "params": ["profiles.${profile}.train_flow"],
        "outs": ["fitted"],
    },
    "sample_flow": {
        "cmd": "python -m tests.finished",
        "deps": ["fitted"],
        "params": ["profiles.${profile}.sample_flow"],
        "outs": [
            "models/${profile}",
            *(f"reports/${{profile}}/{stage}" for stage in ("validate", "train", "evaluate")),
            "reports/${profile}/sample_flow/figures",
            "reports/${profile}/sample_flow/losses.parquet",
        ],
        "metrics": ["reports/${profile}/sample_flow/metrics.json"],
    },
}


@dataclass(frozen=True)
class Database:
    """A PostgreSQL server of the test's own."""

    port: int
    password: str

    def uri(self, name: str, scheme: str = "postgresql") -> str:
        return f"{scheme}://{USER}:{self.password}@{HOST}:{self.port}/{name}"

    def query(self, name: str, sql: str) -> list[tuple]:
        with (
            psycopg.connect(self.uri(name), autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []


def as_server(*command: str | Path) -> None:
    """PostgreSQL does not run as root: its own user does then."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, *map(str, command)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    programs = BINARIES[-1].parent
    # Not below pytest's directory, which only its owner may enter.
    home = Path(tempfile.mkdtemp(prefix="enigma-postgres-"))
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(home, owner.pw_uid, owner.pw_gid)
    found = Database(free_port(), secrets.token_hex(12))
    password = home / "password"
    password.write_text(found.password)
    password.chmod(0o644)
    as_server(
        programs / "initdb", "-D", home / "data", "-U", USER, "--no-sync",
        "--auth=scram-sha-256", f"--pwfile={password}",
    )  # fmt: skip
    options = f"-p {found.port} -h {HOST} -k {home}"
    log = home / "log"
    as_server(programs / "pg_ctl", "-D", home / "data", "-o", options, "-l", log, "-w", "start")
    for name in ("mlflow", "prefect"):
        found.query("postgres", f"CREATE DATABASE {name}")
    yield found
    as_server(programs / "pg_ctl", "-D", home / "data", "-m", "immediate", "-w", "stop")
    shutil.rmtree(home)


@pytest.fixture
def services(database: Database, clone: Path) -> Iterator[Server]:
    environment = {
        "MLFLOW_TRACKING_URI": database.uri("mlflow", "postgresql+psycopg"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.uri("prefect", "postgresql+asyncpg"),
        "ENIGMA_TRAINING_SLOT": str(clone.with_name("slot")),
    }
    found = Server(clone, environment)
    found.start()
    yield found
    if found.process.poll() is None:
        found.stop()


def test_models_are_promoted_and_the_password_stays_secret(
    services: Server, database: Database
) -> None:
    clone = services.clone
    set_graph(clone, [], FINISHED)
    run = services.run("pipeline/sanguo")
    commands: set[str] = set()
    while run.poll() is None:
        commands |= set(command_lines(services.process))
        try:
            run.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
    output = run.stdout.read()
    run.stdout.close()
    assert run.returncode == 0, output[-4000:] + services.log.read_text()[-4000:]
    names = database.query("mlflow", "SELECT name, alias FROM registered_model_aliases")
    assert sorted(names) == [
        (model, alias)
        for model in ("enigma-flow", "enigma-lm")
        for alias in ("candidate", "champion")
    ]
    states = database.query("prefect", "SELECT state_type::text FROM flow_run")
    assert states == [("COMPLETED",)]
    artifacts = {key for (key,) in database.query("prefect", "SELECT key FROM artifact")}
    assert artifacts >= {
        *("sample-flow-sanguo", "metrics-sample-flow-sanguo", "progress-sample-flow-sanguo"),
        *("data-docs-sample-flow-sanguo", "mlflow-run-sample-flow-sanguo"),
        *("gates-enigma-lm", "gates-enigma-flow"),
    }
    log = services.log.read_text(encoding="utf-8")
    for model in ("enigma-lm", "enigma-flow"):
        assert f"notification: {model} version 1 of profile sanguo is the new champion" in log
    ledger = (clone / ".enigma" / "promotions.jsonl").read_text(encoding="utf-8")
    assert len(ledger.splitlines()) == 2
    assert not (clone / "mlflow.db").exists()
    assert not (clone / ".prefect" / "prefect.db").exists()
    # Where a password might turn up: logs, command lines, parameters, tags, artifacts.
    shown = {
        "the terminal": output + log,
        "a command line": "\n".join(commands),
        "the ledger": ledger,
        **{
            f"{base}.{table}": str(database.query(base, f"SELECT * FROM {table}"))
            for base, tables in {
                "mlflow": ("params", "tags", "model_version_tags", "model_versions", "runs"),
                "prefect": ("log", "artifact", "flow_run", "task_run"),
            }.items()
            for table in tables
        },
    }
    assert [place for place, text in shown.items() if database.password in text] == []
    for files in (clone.glob("mlartifacts/**/*"), clone.glob(".enigma/**/*")):
        for path in files:
            secret = path.is_file() and database.password.encode() in path.read_bytes()
            assert not secret, path


def command_lines(process: psutil.Process) -> Iterator[str]:
    for one in process.children(recursive=True):
        try:
            yield " ".join(one.cmdline())
        except psutil.NoSuchProcess:
            continue
