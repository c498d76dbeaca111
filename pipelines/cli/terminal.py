"""Text from the champion, shown token by token: `enigma generate` and `enigma chat`."""

import sys
from typing import Any, TextIO

from pipelines.language_model.generation import Sampling, readable
from pipelines.language_model.generation import generate as generate_ids
from pipelines.registry.champion import load_champion


def generate(prompt: str, sampling: Sampling) -> str:
    """Let the champion go on with a prompt, and print it as it comes.

    Args:
        prompt: The text to go on with.
        sampling: How.

    Returns:
        What was printed, without the last line end.

    Raises:
        UserError: If there is no champion.
    """
    champion = load_champion()
    stream = Stream(champion.tokenizer, prompt, sys.stdout)
    generate_ids(champion.model, champion.tokenizer, prompt, sampling, streamer=stream)
    return stream.text


def chat(sampling: Sampling, lines: TextIO, output: TextIO) -> None:
    """Take turns with the champion on one text, until a blank line or the end of the input.

    It is no assistant: it goes on with all that was written so far, as far as it
    can look back.

    Args:
        sampling: How; every turn draws anew.
        lines: Where a person writes.
        output: Where both are shown.

    Raises:
        UserError: If there is no champion.
    """
    champion = load_champion()
    text = ""
    turn = 0
    while line := _ask(lines, output):
        text += line
        stream = Stream(champion.tokenizer, "", output)
        generate_ids(
            champion.model,
            champion.tokenizer,
            text,
            sampling.for_turn(turn),
            streamer=stream,
        )
        text += stream.text
        turn += 1


def _ask(lines: TextIO, output: TextIO) -> str:
    if lines.isatty():
        output.write("> ")
        output.flush()
    return lines.readline().strip()


class Stream:
    """A streamer for transformers that writes Chinese without spaces.

    Args:
        tokenizer: Of the tokens.
        shown: Written as it is, for the prompt's tokens.
        output: Where to write.
    """

    def __init__(self, tokenizer: Any, shown: str, output: TextIO) -> None:
        self._tokenizer = tokenizer
        self._output = output
        self._ids: list[int] = []
        self._shown = 0
        self._seen_prompt = False
        self.text = ""
        self._write(shown)

    def put(self, value: Any) -> None:
        """Take tokens; the first call brings the prompt's."""
        self._ids += value.flatten().tolist()
        text = readable(self._tokenizer, self._ids)
        if self._seen_prompt:
            self._write(text[self._shown :])
        self._seen_prompt = True
        self._shown = len(text)

    def end(self) -> None:
        """End the line."""
        self._output.write("\n")
        self._output.flush()

    def _write(self, text: str) -> None:
        self.text += text
        self._output.write(text)
        self._output.flush()
