"""Notifications reach a real server; one that is away, or answers badly, stops nothing."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.running.notify import WEBHOOK, notify
from flows.serve import HOST

LOGGER = logging.getLogger(__name__)


class Webhook(HTTPServer):
    def __init__(self) -> None:
        super().__init__((HOST, 0), Answer)
        self.bodies: list[dict[str, str]] = []
        self.status = 200


class Answer(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    server = Webhook()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(WEBHOOK, f"http://{HOST}:{server.server_port}/token-which-is-secret")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_notification_reaches_log_and_webhook(webhook: Webhook, caplog) -> None:
    notify("enigma-lm 3 是新的冠军", LOGGER)
    assert webhook.bodies == [{"text": "enigma-lm 3 是新的冠军"}]
    assert "是新的冠军" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("away", [True, False])
def test_a_webhook_that_fails_stops_nothing_and_its_address_stays_secret(
    webhook: Webhook, monkeypatch, caplog, away: bool
) -> None:
    webhook.status = 500
    if away:
        monkeypatch.setenv(WEBHOOK, f"http://{HOST}:1/token-which-is-secret")
    notify("text", LOGGER)
    assert "nothing else is wrong" in caplog.text
    assert "secret" not in caplog.text


def test_other_schemes_are_refused(monkeypatch, caplog, tmp_path) -> None:
    monkeypatch.setenv(WEBHOOK, (tmp_path / "secret").as_uri())
    notify("text", LOGGER)
    assert "expected an address of http or https" in caplog.text
    assert "secret" not in caplog.text
