"""Which ids a WordPiece tokenizer can produce, found by making it produce them.

WordPiece takes the longest entry that a word, or the rest of one, begins with. So an entry that
does not come out of its own text comes out of none; and a piece `##x` comes out at the end of a
word `px`, if a word may hold x at all and no entry takes the end of p with a part of x. Several
beginnings p are tried.

Shape legend: V ids.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.data.text.vocabulary import CONTINUES, EOS_TOKEN_ID, UNK_TOKEN_ID

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Letters with which few entries begin.
BEGINNINGS = ("", "q", "z", "x", "0", "ъ", "σ", "qz", "xj", "0q", "7z", "q9q")


def possible_ids(tokenizer: "Tokenizer") -> npt.NDArray[np.bool_]:
    """Find the ids that the tokenizer can produce.

    Args:
        tokenizer: As `tokenize` uses it: it finds no special tokens in a text.

    Returns:
        (V,) bool. [UNK] and [SEP], which ends a document, are possible.
    """
    possible_V = np.zeros(tokenizer.get_vocab_size(), np.bool_)
    possible_V[[UNK_TOKEN_ID, EOS_TOKEN_ID]] = True
    tokens = tokenizer.get_vocab()
    for beginning in BEGINNINGS:
        text = " ".join(
            beginning + token.removeprefix(CONTINUES)
            for token, index in tokens.items()
            if not possible_V[index]
        )
        possible_V[tokenizer.encode(text, add_special_tokens=False).ids] = True
    return possible_V
