"""The server of the champion, as a process: load, malformed requests, a promotion meanwhile."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.registry.names import LM
from pipelines.registry.promote import promote
from tests.finished import copy_project

pytestmark = pytest.mark.slow

HOST = "127.0.0.1"
CLIENTS = 8
REQUESTS = 200


@pytest.fixture(scope="module")
def project(registered_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the registered project: its champion may change."""
    return copy_project(registered_project, tmp_path_factory.mktemp("served") / "project")


@pytest.fixture(scope="module")
def port(project: Path) -> Iterator[int]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db"}
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0"],
        cwd=Path(__file__).parents[3],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if match := re.search(r"http://127\.0\.0\.1:(\d+)/generate", line):
                break
        else:
            pytest.fail("".join(said))
        yield int(match[1])
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(30) in {0, -signal.SIGTERM}


def post(port: int, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request(
            "POST", "/generate", content, {"Content-Type": "application/json"} | headers
        )
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if text.startswith("{") else {"error": text}
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "JSON decode error"),
        (b"", "Field required"),
        ([], "valid dictionary"),
        ({}, "prompt: Field required"),
        ({"prompt": 7}, "prompt: Input should be a valid string"),
        ({"prompt": "x", "temperature": -1}, "temperature: Input should be greater"),
        ({"prompt": "x", "top_p": 0}, "top_p: Input should be greater"),
        ({"prompt": "x", "max_new_tokens": 10**6}, "max_new_tokens: Input should be less"),
        ({"prompt": "x", "temprature": 1}, "temprature: Extra inputs are not permitted"),
        ({"prompt": "x" * 5000}, "prompt: String should have at most 4096"),
    ],
)
def test_a_malformed_request_gets_a_reason(port: int, body: Any, reason: str) -> None:
    status, answer = post(port, body)
    assert status == 422
    assert reason in answer["error"]


def test_a_foreign_host_is_refused(port: int) -> None:
    status, answer = post(port, {"prompt": "x"}, Host="evil.example")
    assert status == 400
    assert "Invalid host" in answer["error"]


def test_the_seed_decides(port: int) -> None:
    ask = {"prompt": "却说曹操", "max_new_tokens": 8, "seed": 3}
    (_, once), (_, again) = post(port, ask), post(port, ask)
    assert once == again
    assert once["text"].startswith("却说曹操")
    assert len(once["text"]) > len("却说曹操")
    assert once["model"] == LM


def test_a_promotion_during_the_load_loses_no_request(
    port: int, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    found: list[tuple[int, str]] = []

    def client(number: int) -> None:
        for turn in range(REQUESTS // CLIENTS):
            body = {"prompt": "玄德曰", "max_new_tokens": 2, "seed": number * 1000 + turn}
            status, answer = post(port, body)
            found.append((status, answer.get("version", str(answer))))
            # The load must outlast the promotion.
            time.sleep(0.15)

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        assert promote(LM).outcome == "promoted"
        for one in running:
            one.result()
    assert {status for status, _ in found} == {200}
    assert len(found) == REQUESTS
    versions = Counter(version for _, version in found)
    assert set(versions) <= {"1", "2"}
    deadline = time.monotonic() + 60
    while post(port, {"prompt": "", "max_new_tokens": 1})[1]["version"] != "2":
        assert time.monotonic() < deadline, "the new champion never answered"
        time.sleep(0.2)
