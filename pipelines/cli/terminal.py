"""Text from the champion, printed token by token: `enigma generate` and `enigma chat`."""

import sys
from typing import Any, TextIO

from enigma.generation import Sampling, continue_text
from enigma.language_model.word_pieces import join_word_pieces
from pipelines.registry.versions import load_champion


def generate(prompt: str, sampling: Sampling) -> None:
    """Print a prompt and what the champion adds to it, as it comes.

    Raises:
        UserError: If there is no champion.
    """
    champion = load_champion()
    sys.stdout.write(prompt)
    stream = Stream(champion.tokenizer, sys.stdout)
    continue_text(champion.model, champion.tokenizer, prompt, sampling, streamer=stream)


def chat(sampling: Sampling, lines: TextIO, output: TextIO) -> None:
    """Write one text in turns with the champion, until a blank line or the end of the input.

    It is no assistant: it continues all that was written so far, as far back as it can read.

    Args:
        sampling: How tokens are drawn; every turn has a seed of its own.
        lines: What the person writes.
        output: What both see.

    Raises:
        UserError: If there is no champion.
    """
    champion = load_champion()
    text = ""
    turn = 0
    while line := _ask(lines, output):
        text += line
        text += continue_text(
            champion.model,
            champion.tokenizer,
            text,
            sampling.for_turn(turn),
            streamer=Stream(champion.tokenizer, output),
        )
        turn += 1


def _ask(lines: TextIO, output: TextIO) -> str:
    if lines.isatty():
        output.write("> ")
        output.flush()
    return lines.readline().strip()


class Stream:
    """A streamer for transformers that prints what is added to a prompt.

    Args:
        tokenizer: The tokenizer of the model.
        output: Where to write.
    """

    def __init__(self, tokenizer: Any, output: TextIO) -> None:
        self._tokenizer = tokenizer
        self._output = output
        self._ids: list[int] = []
        self._shown: int | None = None

    def put(self, value: Any) -> None:
        """Take tokens; the first call brings those of the prompt."""
        self._ids += value.flatten().tolist()
        text = join_word_pieces(self._tokenizer, self._ids, skip_special_tokens=True)
        if self._shown is not None:
            self._output.write(text[self._shown :])
        self._output.flush()
        self._shown = len(text)

    def end(self) -> None:
        """End the line."""
        self._output.write("\n")
        self._output.flush()
