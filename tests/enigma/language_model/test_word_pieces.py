"""The one decoder of ids."""

import subprocess
import sys

import pytest

from enigma.language_model.word_pieces import join_word_pieces
from pipelines.data.text.vocabulary import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("bert-base-chinese")


@pytest.mark.parametrize(
    ("text", "shown", "without_special"),
    [
        ("却说曹操，字孟德。", "却说曹操，字孟德。", "却说曹操，字孟德。"),
        ("却说 hello world 12月", "却说hello world 12月", "却说hello world 12月"),
        ("“吾”", "[UNK]吾[UNK]", "吾"),
        ("a“b", "a[UNK]b", "a b"),
        ("unbelievable!", "unbelievable!", "unbelievable!"),
    ],
)
def test_only_latin_words_are_separated(tokenizer, text, shown, without_special) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert join_word_pieces(tokenizer, ids) == shown
    assert join_word_pieces(tokenizer, ids, skip_special_tokens=True) == without_special
    for length in range(len(ids)):
        assert shown.startswith(join_word_pieces(tokenizer, ids[:length]))


def test_decoding_and_sampling_import_no_torch() -> None:
    script = (
        "import sys, enigma.language_model.word_pieces, enigma.generation\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
