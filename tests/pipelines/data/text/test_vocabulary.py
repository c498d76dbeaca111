"""The tokenizer is the one it claims to be, and survives saving."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.base.errors import UserError
from pipelines.data.text.vocabulary import load_tokenizer, vocabulary_file
from tests.support import REPOSITORY


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("bert-base-chinese")


def test_special_tokens_are_where_bert_has_them(tokenizer) -> None:
    assert len(tokenizer) == 21128
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 100, 101, 102, 103]
    assert tokenizer.eos_token_id == 102
    assert tokenizer.pad_token_id == 0


def test_entries_that_look_like_line_ends_are_kept(tokenizer) -> None:
    content = vocabulary_file("bert-base-chinese").read_text(encoding="utf-8")
    assert content.count("\u2028") == 2
    assert tokenizer.convert_ids_to_tokens(21127) == "##😎"


def test_letters_are_lower_cased_and_known(tokenizer) -> None:
    assert tokenizer.tokenize("NASA与nasa") == ["nasa", "与", "nasa"]


def test_a_saved_tokenizer_loads_again_as_it_was(tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "却说曹操：“吾有NBA 2024之计”，玄德曰[SEP]"
    assert len(again) == 21128
    assert again.eos_token_id == 102
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_vocabulary_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[SEP]\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected 21128 entries, got 3"):
        load_tokenizer(str(path))


def test_a_vocabulary_in_another_order_is_refused(tmp_path: Path) -> None:
    content = vocabulary_file("bert-base-chinese").read_text(encoding="utf-8")
    tokens = content.removesuffix("\n").split("\n")
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(reversed(tokens)), encoding="utf-8")
    with pytest.raises(UserError, match=r"expected \[UNK\] at 100"):
        load_tokenizer(str(path))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="expected UTF-8"):
        load_tokenizer(str(path))


def test_a_copy_of_the_vocabulary_is_taken_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(vocabulary_file("bert-base-chinese").read_bytes())
    assert len(load_tokenizer(str(path))) == 21128


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"found no nowhere/vocab\.txt"):
        load_tokenizer("nowhere/vocab.txt")


@pytest.mark.slow
def test_without_the_hub_the_message_names_the_package(tmp_path: Path) -> None:
    script = (
        "from pipelines.base.run_stage import run_stage\n"
        "from pipelines.data.text.vocabulary import load_tokenizer\n"
        "run_stage(lambda: load_tokenizer('someone/else'))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            # An unreachable endpoint ends in the same message, after 25 s of the client's retries.
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "could not download vocabulary someone/else" in run.stderr
    assert "requirements-data.txt" in run.stderr
    assert "Traceback" not in run.stderr
