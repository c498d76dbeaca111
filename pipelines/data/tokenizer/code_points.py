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

# No vocabulary has these ids (`is_provable` makes sure).
SPACE = 0xFFFF
CHUNK = 0xFFFE
CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)
# Part of the cache's key: increase it when the rules below change.
RULES = 1
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


def cache_path(tokenizer: "Tokenizer") -> Path:
    """The file of the table, named by the tokenizer, its library's version and the rules."""
    import tokenizers

    key = f"{RULES} {tokenizers.__version__} {unicodedata.unidata_version} {tokenizer.to_str()}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "enigma" / f"code-points-{hashlib.sha256(key.encode()).hexdigest()}.bin"


def code_point_table(tokenizer: "Tokenizer") -> Table:
    """Load the table of a tokenizer, or derive it (three seconds) and store it.

    A damaged file is replaced.

    Args:
        tokenizer: One that `is_provable`.

    Returns:
        (0x110000,) uint16: `SPACE`, `CHUNK`, or the id.
    """
    path = cache_path(tokenizer)
    if path.is_file():
        content = path.read_bytes()
        digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(body).digest() == digest:
            return np.frombuffer(body, dtype="<u2")
    body = derive(tokenizer).astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(hashlib.sha256(body).digest() + body)
    temporary.replace(path)
    return np.frombuffer(body, dtype="<u2")


def derive(tokenizer: "Tokenizer") -> Table:
    """Ask the tokenizer about every code point.

    A code point stands alone if, between two letters, it becomes one starter that is split
    off on both sides: then no neighbour can change it or join across it. A code point that
    is neither shown to stand alone nor to be space is `CHUNK`.

    Args:
        tokenizer: One that `is_provable`.

    Returns:
        (0x110000,) uint16.
    """
    table = np.full(CODE_POINTS, CHUNK, dtype=np.uint16)
    vocabulary = tokenizer.get_vocab()
    unknown = vocabulary[json.loads(tokenizer.to_str())["model"]["unk_token"]]
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
            table[point] = SPACE
        elif pieces == ["a", core, "a"]:
            table[point] = vocabulary.get(core, unknown)
    return table


def _is_starter(characters: str) -> bool:
    """Whether none of them can be reordered; unassigned code points count as reorderable."""
    return all(
        unicodedata.combining(character) == 0 and unicodedata.category(character) != "Cn"
        for character in characters
    )
