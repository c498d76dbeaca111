"""Continue a text with a causal language model: the one way to sample.

The command line, the server, the evaluation and the model as MLflow serves it all call
`continue_text` or `generate`, so the same seed and settings give the same text everywhere.

Shape legend: N texts, L tokens, T tokens that are added.
"""

import math
from copy import copy
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from enigma.language_model.word_pieces import join_word_pieces

# The one schema of what a caller may ask for, whether by command line, HTTP or MLflow: the
# smallest and the largest value of each setting.
LIMITS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 1024),
    "temperature": (0.0, 10.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.01, 1.0),
    "repetition_penalty": (1.0, 10.0),
    "seed": (0, 2**32 - 1),
}
# Logits divided by less than this are infinite or as good as the most likely token alone.
MIN_TEMPERATURE = 0.01
MAX_PROMPT_CHARACTERS = 4096


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the names are those of transformers, the bounds are `LIMITS`.

    Args:
        max_new_tokens: Upper limit of added tokens; the end of a document ends the text earlier.
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Sample from this many of the most likely tokens; 0 for all.
        top_p: Sample from the smallest set of tokens with this probability.
        repetition_penalty: Divides the logits of tokens that already occurred; 1 for none.
        seed: Seed of the random numbers.

    Raises:
        ValueError: If a value is not a number within its bounds; the message names it.
    """

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_setting(field.name, getattr(self, field.name))

    def for_turn(self, turn: int) -> "Sampling":
        """Return the same settings with a seed of its own for each turn."""
        return replace(self, seed=(self.seed + turn) % (int(LIMITS["seed"][1]) + 1))


def _check_setting(name: str, value: Any) -> None:
    low, high = LIMITS[name]
    number = float(value) if isinstance(value, Real) else math.nan
    if not low <= number <= high:  # a comparison with NaN is false, too
        raise ValueError(f"{name}: expected {low} to {high}, got {value!r}")
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if isinstance(low, int) and not is_whole:
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if name == "temperature" and 0 < number < MIN_TEMPERATURE:
        raise ValueError(
            f"temperature: expected 0, which always takes the most likely token, or "
            f"{MIN_TEMPERATURE} to {high:g}, got {value}"
        )


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that is not text or too long.

    Args:
        prompt: As it came from a terminal, a file or a request.

    Raises:
        ValueError: If it has more than `MAX_PROMPT_CHARACTERS` characters, or bytes that were
            not UTF-8 (Python keeps these as lone surrogates).
    """
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"prompt: expected at most {MAX_PROMPT_CHARACTERS} characters, got {len(prompt)}"
        )
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError("prompt: expected text in UTF-8, got bytes in another encoding")


def prompt_ids(model: Any, tokenizer: Any, prompt: str, sampling: Sampling) -> list[int]:
    """Tokenize a prompt and keep what the model can read of it.

    Args:
        model: Its `config.max_len` is the length it was trained on: the last tokens are kept.
            Learned positions end there, so then there is room for the new tokens, too.
        tokenizer: The tokenizer published with it.
        prompt: Empty starts a document.
        sampling: How many tokens are wanted.

    Returns:
        At least one id.
    """
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    most = model.config.max_len
    if not model.config.use_alibi:
        most = max(1, most - sampling.max_new_tokens)
    return [int(token) for token in ids[-most:]]


def generate(
    model: Any, tokenizer: Any, prompt: str, sampling: Sampling, *, streamer: Any = None
) -> list[int]:
    """Sample a continuation. Seeds torch's global generator.

    Args:
        model: An `EnigmaForCausalLM` in evaluation mode.
        tokenizer: The tokenizer published with it.
        prompt: The text to continue, as `prompt_ids` reads it.
        sampling: How tokens are drawn.
        streamer: A transformers streamer that receives the tokens as they are drawn.

    Returns:
        The ids of the prompt as it was read, and of what was added.

    Raises:
        ValueError: If `check_prompt` refuses the prompt.
    """
    import torch  # noqa: PLC0415 - the command line reads `Sampling` without it

    check_prompt(prompt)
    prompt_1L = torch.tensor([prompt_ids(model, tokenizer, prompt, sampling)])
    output_1L = sample_ids(model, prompt_1L, sampling, streamer=streamer)
    return [int(token) for token in output_1L[0]]


def sample_ids(
    model: Any,
    prompt_NL: Any,
    sampling: Sampling,
    *,
    past_the_end: bool = False,
    streamer: Any = None,
) -> Any:
    """Sample continuations of token ids. Seeds torch's global generator.

    Args:
        model: An `EnigmaForCausalLM` in evaluation mode.
        prompt_NL: int64 `(N, L)`, prompts of the same length.
        sampling: How tokens are drawn.
        past_the_end: Continue with the next document where one ends, as packed training texts do.
        streamer: See `generate`.

    Returns:
        int64 `(N, L + T)`, the prompts and what was added, which ends where learned positions do;
        on the model's device.

    Raises:
        ValueError: If the prompts leave no learned position for a new token.
    """
    import torch  # noqa: PLC0415 - see `generate`

    prompt_NL = prompt_NL.to(model.device)
    settings = copy(model.generation_config)
    settings.max_new_tokens = sampling.max_new_tokens
    if not model.config.use_alibi:
        room = model.config.max_len - prompt_NL.shape[1]
        if room < 1:
            raise ValueError(
                f"expected prompts of fewer than max_len={model.config.max_len} tokens with "
                f"learned positions, got {prompt_NL.shape[1]}; to fix this: shorten them"
            )
        settings.max_new_tokens = min(settings.max_new_tokens, room)
    settings.repetition_penalty = sampling.repetition_penalty
    settings.do_sample = sampling.temperature > 0
    if settings.do_sample:
        settings.temperature = sampling.temperature
        settings.top_k = sampling.top_k
        settings.top_p = sampling.top_p
    if past_the_end:
        settings.eos_token_id = None
    torch.manual_seed(sampling.seed)
    return model.generate(
        prompt_NL,
        generation_config=settings,
        attention_mask=torch.ones_like(prompt_NL),
        streamer=streamer,
    )


def continue_text(
    model: Any, tokenizer: Any, prompt: str, sampling: Sampling, *, streamer: Any = None
) -> str:
    """Return what a model adds to a prompt, without the prompt; see `generate`."""
    ids = generate(model, tokenizer, prompt, sampling, streamer=streamer)
    given = ids[: len(prompt_ids(model, tokenizer, prompt, sampling))]
    # Decoded together, as whether a space comes first depends on the token before it.
    before, after = (
        join_word_pieces(tokenizer, part, skip_special_tokens=True) for part in (given, ids)
    )
    return after[len(before) :]
