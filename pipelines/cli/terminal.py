"""Text from the champion, printed token by token: `enigma generate` and `enigma chat`."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from enigma.generation import MAX_PROMPT_CHARACTERS, Sampling, check_prompt, continue_text
from enigma.language_model.word_pieces import join_word_pieces
from pipelines.base.errors import UserError
from pipelines.registry.versions import load_champion


def generate(prompt: str, settings: Mapping[str, Any]) -> None:
    """Print a prompt and what the champion adds to it, as it comes.

    Args:
        prompt: The text to continue.
        settings: The fields of `Sampling`.

    Raises:
        UserError: If there is no champion, or the prompt or a setting is out of bounds.
    """
    sampling = _checked(prompt, settings)
    champion = load_champion()
    sys.stdout.write(prompt)
    stream = Stream(champion.tokenizer, sys.stdout)
    continue_text(champion.model, champion.tokenizer, prompt, sampling, streamer=stream)


def chat(settings: Mapping[str, Any], lines: TextIO, output: TextIO) -> None:
    """Write one text in turns with the champion, until a blank line or the end of the input.

    It is no assistant: it continues all that was written so far, as far back as it can read.

    Args:
        settings: The fields of `Sampling`; every turn has a seed of its own.
        lines: What the person writes.
        output: What both see.

    Raises:
        UserError: If there is no champion, a setting is out of bounds, or a line is not UTF-8.
    """
    sampling = _checked("", settings)
    champion = load_champion()
    text = ""
    turn = 0
    while line := _ask(lines, output):
        _checked(line, settings)
        # The champion reads far less than this of what was written so far.
        text = (text + line)[-MAX_PROMPT_CHARACTERS:]
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
    try:
        return lines.readline().strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected lines in {error.encoding}, got bytes in another encoding ({error.reason})",
            "set the terminal to UTF-8, or convert the file: iconv -f GBK -t UTF-8",
        ) from None


def _checked(prompt: str, settings: Mapping[str, Any]) -> Sampling:
    """Return how tokens are drawn, if prompt and settings are within their bounds."""
    try:
        check_prompt(prompt)
        return Sampling(**settings)
    except ValueError as error:
        raise UserError(str(error), "`enigma generate --help` describes every setting") from None


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
