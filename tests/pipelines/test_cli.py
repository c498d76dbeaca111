"""The command `enigma` as a user runs it."""

import subprocess
import sys
from pathlib import Path

COMMAND = "from pipelines.cli import main; main()"


def enigma(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False
    )


def test_generate_streams_and_the_seed_decides(store: Path) -> None:
    options = ("却说曹操", "--max-new-tokens", "8", "--seed", "5")
    once, again = enigma("generate", *options), enigma("generate", *options)
    assert once.returncode == 0, once.stderr
    assert once.stdout == again.stdout
    assert once.stdout.startswith("却说曹操")
    assert len(once.stdout.strip()) > len("却说曹操")


def test_generate_says_nothing_but_the_text(store: Path) -> None:
    run = enigma(
        "generate", "玄德曰", "--max-new-tokens", "2", "--top-k", "5", "--temperature", "0"
    )
    assert run.returncode == 0
    assert run.stderr == ""


def test_chat_takes_turns_until_a_blank_line(store: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", COMMAND, "chat", "--max-new-tokens", "3"],
        input="却说曹操\n玄德曰\n\n不会读到\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 2


def test_where_lists_versions_and_aliases(store: Path) -> None:
    run = enigma("where")
    assert run.returncode == 0, run.stderr
    assert f"mlflow ui --backend-store-uri sqlite:///{store}/mlflow.db" in run.stdout
    for word in ("enigma-lm", "enigma-flow", "candidate", "champion", "data_docs"):
        assert word in run.stdout


def test_history_and_dry_run(store: Path) -> None:
    run = enigma("promote", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("the champion stays") == 2
    run = enigma("history")
    assert run.returncode == 0, run.stderr
    assert "promote (none) -> 1" in run.stdout
    assert "champion of enigma-lm: 1, as the ledger says" in run.stdout
    assert "bits a character" in run.stdout


def test_mistakes_have_no_traceback(workspace: Path) -> None:
    for arguments in (["register"], ["promote"], ["generate", "曹操"]):
        run = enigma(*arguments)
        assert run.returncode == 1, run.stdout
        assert "error: expected" in run.stderr
        assert "Traceback" not in run.stderr
    run = enigma("promote", "--version", "1")
    assert run.returncode == 2
    assert "--version needs --model" in run.stderr


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom pipelines.cli import app\n"
        "heavy = {'mlflow', 'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
