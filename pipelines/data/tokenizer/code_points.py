"""Find out what a BERT tokenizer does with each code point, by asking the tokenizer.

In Chinese nearly every character is a word of its own. A code point is `SPACE`, or it
stands alone and has one id whatever its neighbours are, or it belongs to a `CHUNK`
(letters, digits, kana, marks, what the tokenizer deletes). Runs of the last kind are left
to the tokenizer, see `pipelines/data/tokenizer/fast.py`.
"""

import hashlib
import json
import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Table = npt.NDArray[np.uint16]
Forms = npt.NDArray[np.uint32]

# No vocabulary has these ids (`is_provable` makes sure).
SPACE = 0xFFFF
CHUNK = 0xFFFE
CODE_POINTS = 0x110000
# No code points.
SPACE_FORM = CODE_POINTS
CHUNK_FORM = CODE_POINTS + 1
SURROGATES = range(0xD800, 0xE000)
# Part of the cache's key: increase it when the rules below change.
RULES = 2
DIGEST_BYTES = 32


def is_provable(tokenizer: "Tokenizer") -> bool:
    """Whether the argument of `derive` holds for this kind of tokenizer.

    It needs BERT's normaliser and pre-tokenizer (every step works on single code points,
    but for the reordering of marks) and WordPiece (which sees one word at a time).
    """
    parts = json.loads(tokenizer.to_str())
    kinds = [(parts[name] or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
    return (
        kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
        and parts["truncation"] is None
        and parts["padding"] is None
        and tokenizer.get_vocab_size() < CHUNK
        and all(_is_plain(token) for token in parts["added_tokens"])
    )


def _is_plain(token: dict[str, Any]) -> bool:
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return not any(token[flag] for flag in flags)


def code_point_table(tokenizer: "Tokenizer") -> Table:
    """Say which id each code point has.

    Args:
        tokenizer: One that `is_provable`.

    Returns:
        (0x110000,) uint16: `SPACE`, `CHUNK`, or the id.
    """
    forms = standing_forms(tokenizer)
    unknown = tokenizer.token_to_id(json.loads(tokenizer.to_str())["model"]["unk_token"])
    ids = np.full(CODE_POINTS, unknown, np.uint16)
    for token, index in tokenizer.get_vocab().items():
        if len(token) == 1:
            ids[ord(token)] = index
    table = np.full(CODE_POINTS, CHUNK, np.uint16)
    table[forms == SPACE_FORM] = SPACE
    alone = forms < CODE_POINTS
    table[alone] = ids[forms[alone]]
    return table


def cache_path(tokenizer: "Tokenizer") -> Path:
    """The file of the forms, named by all that decides them: no vocabulary does."""
    import tokenizers

    parts = json.loads(tokenizer.to_str())
    steps = json.dumps([parts["normalizer"], parts["pre_tokenizer"]], sort_keys=True)
    key = f"{RULES} {tokenizers.__version__} {unicodedata.unidata_version} {steps}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "enigma" / f"code-points-{hashlib.sha256(key.encode()).hexdigest()}.bin"


def standing_forms(tokenizer: "Tokenizer") -> Forms:
    """Load what `derive` finds for a tokenizer, or derive it (three seconds) and store it.

    A damaged file is replaced.

    Args:
        tokenizer: One that `is_provable`.

    Returns:
        (0x110000,) uint32, see `derive`.
    """
    path = cache_path(tokenizer)
    if path.is_file():
        content = path.read_bytes()
        digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(body).digest() == digest:
            return np.frombuffer(body, dtype="<u4")
    body = derive(tokenizer).astype("<u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(hashlib.sha256(body).digest() + body)
    temporary.replace(path)
    return np.frombuffer(body, dtype="<u4")


def derive(tokenizer: "Tokenizer") -> Forms:
    """Ask the tokenizer's normaliser and pre-tokenizer about every code point.

    A code point stands alone if, between two letters, it becomes one starter that is split
    off on both sides: then no neighbour can change it or join across it, and the vocabulary only
    decides which id it has. A code point that is neither shown to stand alone nor to be space is
    `CHUNK_FORM`.

    Args:
        tokenizer: One that `is_provable`.

    Returns:
        (0x110000,) uint32: `SPACE_FORM`, `CHUNK_FORM`, or the code point that it becomes.
    """
    forms = np.full(CODE_POINTS, CHUNK_FORM, np.uint32)
    for point in range(CODE_POINTS):
        if point in SURROGATES:
            continue
        character = chr(point)
        normalised = tokenizer.normalizer.normalize_str(character)
        core = normalised.strip()
        if not normalised or len(core) > 1 or not _is_starter(character + core):
            continue
        pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(f"a{normalised}a")]
        if pieces == ["a", "a"]:
            forms[point] = SPACE_FORM
        elif pieces == ["a", core, "a"]:
            forms[point] = ord(core)
    return forms


def _is_starter(characters: str) -> bool:
    """Whether none of them can be reordered; unassigned code points count as reorderable."""
    return all(
        unicodedata.combining(character) == 0 and unicodedata.category(character) != "Cn"
        for character in characters
    )
