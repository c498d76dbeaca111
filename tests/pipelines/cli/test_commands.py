"""The command `enigma` as a user runs it.

Two tests start a process, one that succeeds and one that fails: only a process shows what
libraries write to stdout and stderr. The others call the same `main` with the same arguments,
which saves seconds of imports.
"""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.base.errors import UserError
from pipelines.cli.commands import main
from pipelines.cli.terminal import chat

pytestmark = pytest.mark.slow

GBK = os.fsdecode("曹操".encode("gbk"))


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Enigma:
    """The command, called in this process or started as one of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, stdin: str = "") -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["enigma", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(end.value.code or 0, *self._capsys.readouterr())

    def process(self, *arguments: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def enigma(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Enigma:
    return Enigma(monkeypatch, capsys)


def test_generate_says_nothing_but_the_text_and_the_seed_decides(store: Path, enigma: Any) -> None:
    options = ("generate", "却说曹操", "--max-new-tokens", "8", "--seed", "5")
    alone = enigma.process(*options)
    assert alone.returncode == 0, alone.stderr
    assert alone.stderr == ""
    assert alone.stdout.startswith("却说曹操")
    assert len(alone.stdout.strip()) > len("却说曹操")
    assert enigma(*options).stdout == alone.stdout
    assert enigma(*options[:-1], "6").stdout != alone.stdout


def test_generate_takes_the_usual_options(store: Path, enigma: Any) -> None:
    usual = ("--top-k", "5", "--top-p", "0.9", "--repetition-penalty", "1.2", "--temperature", "0")
    texts = {
        enigma("generate", "玄德曰", "--max-new-tokens", "4", *usual, "--seed", seed).stdout
        for seed in ("0", "1")
    }
    assert len(texts) == 1, "a temperature of 0 leaves nothing to the seed"


def test_score_takes_the_champion_and_a_blank_document_is_a_mistake(
    store: Path, enigma: Any, tmp_path: Path
) -> None:
    crawl = tmp_path / "crawl.jsonl"
    crawl.write_text('{"id": "one", "text": "却说曹操"}\n', encoding="utf-8")
    run = enigma("score", str(crawl))
    assert run.returncode == 0, run.stderr
    header, row = run.stdout.splitlines()
    assert header.split("\t")[:2] == ["id", "atypicality"]
    assert row.startswith("one\t")
    crawl.write_text('{"id": "one", "text": " "}\n', encoding="utf-8")
    run = enigma("score", str(crawl))
    assert run.returncode == 1
    assert "expected text in 1 documents, got none in 'one'" in run.stderr


def test_chat_takes_turns_until_a_blank_line(store: Path, enigma: Any) -> None:
    run = enigma("chat", "--max-new-tokens", "3", stdin="却说曹操\n玄德曰\n\n不会读到\n")
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 2


def test_a_chat_in_another_encoding_is_converted_as_the_message_says(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "却说曹操\n".encode("gbk")
    with pytest.raises(UserError, match="got bytes in another encoding") as refusal:
        chat({}, io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"), io.StringIO())
    command = refusal.value.fix.partition("the file: ")[2].split()
    converted = subprocess.run(command, input=lines, capture_output=True, check=True).stdout
    output = io.StringIO()
    chat({"max_new_tokens": 1}, io.TextIOWrapper(io.BytesIO(converted), encoding="utf-8"), output)
    assert output.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["generate", GBK], "", "argument 2: expected text in UTF-8"),
        (["rollback", "--model", "enigma-lm", "--reason", GBK], "", "argument 5: expected text"),
        (["chat"], f"{GBK}\n", "prompt: expected text in UTF-8"),
        (["generate", "曹", "--seed", f"{10**20}"], "", "seed: expected 0 to 4294967295"),
        (["chat", "--temperature", "1e-300"], "", "temperature: expected 0, which always"),
        (["generate", "曹", "--temperature", "nan"], "", "temperature: expected 0.0 to 10.0"),
        (["generate", "曹", "--top-p", "0"], "", "top_p: expected 0.01 to 1.0"),
        (["generate", "曹" * 5000], "", "prompt: expected at most 4096 characters"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_its_bounds(
    store: Path, enigma: Any, arguments: list[str], stdin: str, expected: str
) -> None:
    run = enigma(*arguments, stdin=stdin)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {expected}")
    assert "to fix this:" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["monitor", "params.yaml"], "expected the directory of a training run, got params.yaml"),
        (["resend", "elsewhere"], "expected the directory of a training run, got elsewhere"),
        (["join", "."], "expected the directory of a training run, got ."),
        (["score", "crawl.jsonl", "--models", "params.yaml"], "--models: expected a directory"),
        (["score", "crawl.jsonl", "--output", "x.txt"], "--output: expected a name that ends in"),
        (["score", "crawl.jsonl", "--output", "crawl.jsonl/x.jsonl"], "--output: expected a file"),
        (["score", "crawl.jsonl", "--output", "/proc/x.jsonl"], "--output: expected to keep"),
        (["export", ""], "expected a file that can be written, got ."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_path_is_named(
    store: Path, enigma: Any, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    crawl = tmp_path / "crawl.jsonl"
    crawl.write_text('{"id": "one", "text": "却说曹操"}\n', encoding="utf-8")
    run = enigma(*(word.replace(crawl.name, str(crawl)) for word in arguments))
    assert run.returncode == 1
    assert f"error: {expected}" in run.stderr
    assert "to fix this: name" in run.stderr
    assert not run.stdout, "nothing is scored for nothing"


def test_where_lists_versions_and_aliases(store: Path, enigma: Any) -> None:
    run = enigma("where")
    assert run.returncode == 0, run.stderr
    assert f"mlflow ui --backend-store-uri sqlite:///{store}/mlflow.db" in run.stdout
    for word in ("enigma-lm", "enigma-flow", "candidate", "champion", "data_docs"):
        assert word in run.stdout


def test_history_and_dry_run(store: Path, enigma: Any) -> None:
    run = enigma("promote", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("the champion stays") == 2
    run = enigma("history")
    assert run.returncode == 0, run.stderr
    assert "promote (none) -> 1" in run.stdout
    assert "champion of enigma-lm: 1, as the ledger says" in run.stdout
    assert "bits per character" in run.stdout


def test_json_is_all_that_register_and_promote_print(store: Path, enigma: Any) -> None:
    run = enigma("register", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [
        {"model": "enigma-lm", "version": "2"},
        {"model": "enigma-flow", "version": "2"},
    ]
    run = enigma("promote", "--dry-run", "--json")
    assert run.returncode == 0, run.stderr
    decisions = json.loads(run.stdout)
    assert [(d["model"], d["version"], d["outcome"]) for d in decisions] == [
        ("enigma-lm", "2", "dry run"),
        ("enigma-flow", "2", "dry run"),
    ]
    for decision in decisions:
        assert {"content", "recorded", "successor"} < {gate["gate"] for gate in decision["gates"]}
        assert all(gate["passed"] and gate["figures"] for gate in decision["gates"])


def test_a_refusal_prints_its_gates_as_json_and_its_reason_on_stderr(
    store: Path, enigma: Any
) -> None:
    assert enigma("promote", "--model", "enigma-lm").returncode == 0
    run = enigma("promote", "--model", "enigma-lm", "--version", "1", "--json")
    assert enigma("rollback", "--model", "enigma-lm").returncode == 0
    assert run.returncode == 1
    [decision] = json.loads(run.stdout)
    assert decision["outcome"] == "refused"
    refusing = decision["gates"][-1]
    assert (refusing["gate"], refusing["passed"]) == ("successor", False)
    assert "train on more text or longer" in refusing["fix"]
    assert "error: gate `successor` refused" in run.stderr
    assert refusing["figures"] in run.stderr


def test_rollback_goes_back_and_history_says_so(store: Path, enigma: Any) -> None:
    assert enigma("promote", "--model", "enigma-lm", "--version", "2").returncode == 0
    run = enigma("rollback", "--model", "enigma-lm", "--reason", "it speaks in riddles")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "enigma-lm: version 1 is the champion again\n"
    run = enigma("history", "--model", "enigma-lm")
    assert run.returncode == 0, run.stderr
    assert "rollback 2 -> 1" in run.stdout
    assert "it speaks in riddles" in run.stdout


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    "arguments",
    [
        ["register"],
        ["promote"],
        ["rollback", "--model", "enigma-lm"],
        ["lineage", "enigma-lm@champion"],
        ["generate", "曹操"],
        ["chat"],
        ["serve"],
    ],
    ids=" ".join,
)
def test_a_mistake_says_what_was_expected(enigma: Any, arguments: list[str]) -> None:
    run = enigma(*arguments)
    assert run.returncode == 1
    assert "error: expected" in run.stderr
    assert "to fix this:" in run.stderr


def test_a_mistake_has_no_traceback(workspace: Path, enigma: Any) -> None:
    run = enigma.process("monitor", "--once")
    assert run.returncode == 1, run.stdout
    assert "error: expected a training run" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_version_without_a_model_is_a_mistake_of_usage(workspace: Path, enigma: Any) -> None:
    run = enigma("promote", "--version", "1")
    assert run.returncode == 2
    assert "--version needs --model" in run.stderr


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom pipelines.cli.commands import app\n"
        "heavy = {'mlflow', 'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
