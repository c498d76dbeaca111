"""Every answer of `enigma serve` to a request for a text is counted, by its status."""

import logging
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from pipelines.cli.answering import BusyError, LeftError, Server
from pipelines.cli.serve import GENERATE, build_app
from pipelines.cli.service_metrics import ServiceMetrics

ERRORS = {"busy": BusyError(7), "left": LeftError(), "broken": RuntimeError("secret details")}
ASK = {"prompt": "却说"}


class Writer:
    """A server without a model; a prompt may name an error to raise."""

    def __init__(self) -> None:
        self.metrics = ServiceMetrics()

    def start(self) -> None:
        """Nothing to follow."""

    def stop(self) -> None:
        """Nothing to end."""

    async def answer(self, prompt: str, _sampling: Any, _has_left: Any) -> tuple[str, str]:
        if prompt in ERRORS:
            raise ERRORS[prompt]
        return f"{prompt}曹操", "1"


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def client(writer: Writer) -> Iterator[TestClient]:
    with TestClient(build_app(cast("Server", writer)), base_url="http://localhost") as client:
        yield client


def counted(writer: Writer) -> dict[str, int]:
    page = writer.metrics.page(queue_length=0, served="1", wanted="1", degraded=False).decode()
    found = re.findall(r'^enigma_requests_total\{status="(\d+)"\} (\d+)', page, re.MULTILINE)
    return {status: int(count) for status, count in found}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (ASK, {}, 200),
        ({}, {}, 422),
        ({"prompt": "busy"}, {}, 503),
        ({"prompt": "left"}, {}, 499),
        ({"prompt": "broken"}, {}, 500),
        (ASK, {"Host": "evil.example"}, 400),
    ],
)
def test_an_answer_is_counted_once(
    client: TestClient, writer: Writer, body: Any, headers: dict[str, str], status: int
) -> None:
    assert client.post(GENERATE, json=body, headers=headers).status_code == status
    assert counted(writer) == {str(status): 1}


def test_what_else_is_asked_is_not_counted(client: TestClient, writer: Writer) -> None:
    assert client.get("/nothing").status_code == 404
    assert counted(writer) == {}


def test_an_unexpected_error_is_logged_once_and_not_told(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = client.post(GENERATE, json={"prompt": "broken"})
    assert answer.json() == {"error": "the text could not be generated"}
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "secret details" in str(record.exc_info[1])
