"""Text from the champion, shown token by token."""

import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from pipelines.errors import UserError
from pipelines.generation import generate as generate_ids
from pipelines.generation import readable
from pipelines.language_model import load_language_model
from pipelines.registered_models import CHAMPION, LM
from pipelines.tracking import connect, tracking_uri


def generate(
    prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> str:
    """Let the champion go on with a prompt, and print it as it comes.

    Args:
        prompt: The text to go on with.
        max_new_tokens: Tokens to add at most.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Smallest set of tokens with this probability is sampled from.
        seed: Of the sampling.

    Returns:
        What was printed, without the last line end.

    Raises:
        UserError: If there is no champion.
    """
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        directory = _download(Path(temporary))
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = load_language_model(directory)
        stream = Stream(tokenizer, prompt, sys.stdout)
        generate_ids(
            model,
            tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            streamer=stream,
        )
    return stream.text


class Stream:
    """A streamer for transformers that writes Chinese without spaces.

    Args:
        tokenizer: Of the tokens.
        prompt: Written as it is, for the tokens that spell it.
        output: Where to write.
    """

    def __init__(self, tokenizer: Any, prompt: str, output: TextIO) -> None:
        self._tokenizer = tokenizer
        self._output = output
        self._ids: list[int] = []
        self._shown = 0
        self._seen_prompt = False
        self.text = ""
        self._write(prompt)

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


def _download(destination: Path) -> Path:
    import mlflow
    from mlflow.exceptions import MlflowException

    connect()
    try:
        downloaded = mlflow.artifacts.download_artifacts(
            f"models:/{LM}@{CHAMPION}", dst_path=str(destination)
        )
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise UserError(
            f"expected a champion of {LM} in {tracking_uri()}, found none",
            "run `enigma register` and `enigma promote`",
        ) from None
    return Path(downloaded) / "artifacts" / "model"
