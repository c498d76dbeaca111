"""Sources: what they yield, and what they refuse."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.errors import UserError
from pipelines.data.sources.files import find_source
from pipelines.data.text.documents import RAW_SCHEMA
from tests.support import REPOSITORY

COMMIT = "a" * 40


def read(source: str) -> pa.Table:
    return pa.concat_tables([table for file in find_source(source) for table in file.read()])


def test_the_packaged_novel_is_whole() -> None:
    table = read("packaged:sanguo")
    assert table.schema.equals(RAW_SCHEMA)
    assert table.num_rows == 120
    assert sum(len(text) for text in table["text"].to_pylist()) == 599_828
    assert table["title"][0].as_py() == "第一回 宴桃园豪杰三结义\u3000斩黄巾英雄首立功"
    assert table["id"][119].as_py() == "sanguo-120"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing/*.parquet", "found none for 'nothing"),
        ("packaged:shuihu", "expected packaged:sanguo"),
        ("hf:wikipedia", "expected hf:<owner>/<dataset>/<config>"),
    ],
)
def test_unknown_sources_are_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(source)


class Hub(http.server.ThreadingHTTPServer):
    """As much of a hub as a download needs; it breaks off the first transfer."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.content = content
        self.ranges: list[str | None] = []


class HubHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, *, send_body: bool) -> None:
        if self.path.startswith("/api/datasets/owner/data"):
            names = ["zh/a.parquet", "zh/card.md", "en/a.parquet", "README.md"]
            siblings = [{"rfilename": name} for name in names]
            body = json.dumps({"id": "owner/data", "sha": COMMIT, "siblings": siblings}).encode()
            self.reply(200, body, {}, send_body=send_body)
        elif f"/resolve/{COMMIT}/zh/a.parquet" in self.path:
            self.file(send_body=send_body)
        else:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, send_body=send_body)

    def file(self, *, send_body: bool) -> None:
        content, asked = self.server.content, self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        first = send_body and not self.server.ranges
        if send_body:
            self.server.ranges.append(asked)
        self.reply(206 if asked else 200, content[start:], headers, send_body=send_body, cut=first)

    def reply(
        self, status: int, body: bytes, headers: dict, *, send_body: bool, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body[: len(body) * 3 // 4] if cut else body)
        self.close_connection = cut


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    # Larger than the 10 MB that the client writes at once, or nothing could be resumed.
    texts = [np.random.default_rng(i).bytes(5000).hex() for i in range(3000)]
    names = [str(index) for index in range(3000)]
    table = pa.table({"id": names, "url": names, "title": names, "text": texts})
    pq.write_table(table, tmp_path / "hub.parquet", compression="none", use_dictionary=False)
    server = Hub((tmp_path / "hub.parquet").read_bytes())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def run_ingest(cwd: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """The stage as a user runs it: the hub's address is fixed when its library is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cwd / "hub-cache"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.run(
        [sys.executable, "-m", "pipelines.ingest"],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_broken_download_from_the_hub_is_resumed(workspace: Path, set_params, hub: Hub) -> None:
    set_params({"ingest.source": "hf:owner/data/zh"})
    run = run_ingest(workspace, f"http://127.0.0.1:{hub.server_port}")
    assert run.returncode == 0, run.stderr
    manifest = json.loads((workspace / "data/sanguo/raw/manifest.json").read_text())
    assert manifest["rows"] == 3000
    assert manifest["sources"] == [
        {
            "name": f"owner/data@{COMMIT}/zh/a.parquet",
            "sha256": hashlib.sha256(hub.content).hexdigest(),
            "rows": 3000,
        }
    ]
    assert manifest["ignored"] == ["zh/card.md"]
    assert hub.ranges[0] is None
    assert int(hub.ranges[1].removeprefix("bytes=").split("-")[0]) >= 10_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:owner/data/fr", "expected parquet files of config 'fr', found none; configs: en, zh"),
        (
            "hf:owner/nothing/zh",
            "expected dataset owner/nothing on the Hugging Face Hub",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    workspace: Path, set_params, hub: Hub, source: str, message: str
) -> None:
    set_params({"ingest.source": source})
    run = run_ingest(workspace, f"http://127.0.0.1:{hub.server_port}")
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_without_the_network_the_message_says_how_to_continue(workspace: Path, set_params) -> None:
    set_params({"ingest.source": "hf:wikimedia/wikipedia/20231101.zh"})
    # Port 9 (discard) of this machine: nobody listens.
    run = run_ingest(workspace, "http://127.0.0.1:9")
    assert run.returncode == 1
    assert "could not download dataset wikimedia/wikipedia from the Hugging Face Hub" in run.stderr
    assert "name their path or glob" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (workspace / "data" / "sanguo").exists()
