"""Decode WordPiece ids into Chinese text.

The module stands alone, without torch, because the data path decodes with it too: a change
to sampling must not re-run a stage that only writes text.
"""

from collections.abc import Iterable
from typing import Any


def join_word_pieces(
    tokenizer: Any, ids: Iterable[int], *, skip_special_tokens: bool = False
) -> str:
    """Join word pieces as Chinese is written: a space only between two Latin words or numbers.

    A tokenizer's own `decode` puts a space between any two tokens.

    Args:
        tokenizer: A WordPiece tokenizer of transformers.
        ids: Token ids.
        skip_special_tokens: Leave special tokens out instead of spelling them ("[UNK]").

    Returns:
        The text. The text of the first n ids is a prefix of the text of more.
    """
    tokens = tokenizer.convert_ids_to_tokens(
        [int(index) for index in ids], skip_special_tokens=skip_special_tokens
    )
    text = ""
    for token in tokens:
        if token.startswith("##") and len(token) > 2:
            text += token[2:]
        elif _is_latin(text[-1:]) and _is_latin(token[:1]):
            text += f" {token}"
        else:
            text += token
    return text


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
