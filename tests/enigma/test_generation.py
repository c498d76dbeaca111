"""Sampling on a tiny model: what is read of a prompt, and what decides the text."""

import pytest
import torch

from enigma.configuration_enigma import EnigmaConfig
from enigma.generation import (
    LIMITS,
    MAX_PROMPT_CHARACTERS,
    Sampling,
    continue_text,
    generate,
    prompt_ids,
    sample_ids,
)
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.data.text.vocabulary import load_tokenizer

LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("bert-base-chinese")


def make_config(**changes: bool) -> EnigmaConfig:
    return EnigmaConfig(
        d=16, num_heads=2, num_rev_blocks=1, num_rotors=1, num_transformer_layers=1,
        max_len=LENGTH, conv1x1_positions=4, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> EnigmaForCausalLM:
    torch.manual_seed(0)
    return EnigmaForCausalLM(make_config()).eval()


def test_of_a_long_prompt_the_end_is_read(model, tokenizer) -> None:
    ids = prompt_ids(model, tokenizer, "曹" * 5 + "操" * LENGTH, Sampling())
    assert ids == tokenizer.convert_tokens_to_ids(["操"]) * LENGTH
    assert prompt_ids(model, tokenizer, "", Sampling()) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("wanted", [4, LENGTH, 64])
@pytest.mark.parametrize("prompt", ["却说", "操" * LENGTH])
def test_learned_positions_end_a_text_and_leave_room_for_it(tokenizer, prompt, wanted) -> None:
    torch.manual_seed(0)
    model = EnigmaForCausalLM(make_config(use_alibi=False)).eval()
    sampling = Sampling(max_new_tokens=wanted)
    ids = generate(model, tokenizer, prompt, sampling)
    read = prompt_ids(model, tokenizer, prompt, sampling)
    assert ids[: len(read)] == read
    assert len(read) < len(ids) <= LENGTH
    with pytest.raises(ValueError, match=f"fewer than max_len={LENGTH} tokens.*got {LENGTH + 2}"):
        sample_ids(model, torch.zeros(1, LENGTH + 2, dtype=torch.long), sampling)


def test_the_seed_decides_and_greedy_ignores_it(model, tokenizer) -> None:
    def text(**settings) -> str:
        return continue_text(model, tokenizer, "却说", Sampling(max_new_tokens=6, **settings))

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    greedy = text(temperature=0.0, seed=1)
    assert greedy == text(temperature=0.0, seed=2) == text(top_k=1)


def test_a_latin_word_after_a_latin_word_is_separated(model, tokenizer, monkeypatch) -> None:
    added = tokenizer.convert_tokens_to_ids(["world", "月"])
    monkeypatch.setattr(
        model,
        "generate",
        lambda ids, **_: torch.cat([ids, torch.tensor([added])], dim=1),
    )
    assert continue_text(model, tokenizer, "hello", Sampling()) == " world月"
    assert generate(model, tokenizer, "hello", Sampling())[-2:] == added


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0), ("max_new_tokens", 1025), ("max_new_tokens", 1.5),
        ("temperature", -1.0), ("temperature", 1e-300), ("temperature", float("nan")),
        ("temperature", float("inf")), ("temperature", "hot"), ("top_k", None),
        ("top_k", 50.0), ("top_k", -1), ("top_k", True), ("top_p", 0.0),
        ("top_p", 1.1), ("repetition_penalty", 0.5), ("seed", -1), ("seed", 10**20),
    ],
)  # fmt: skip
def test_a_setting_out_of_bounds_is_named(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Sampling(**{name: value})


@pytest.mark.parametrize("end", [0, 1])
def test_every_bound_can_be_sampled_with(model, tokenizer, end) -> None:
    settings = {name: bounds[end] for name, bounds in LIMITS.items()} | {"max_new_tokens": 2}
    assert continue_text(model, tokenizer, "却说", Sampling(**settings))
    assert continue_text(model, tokenizer, "却说", Sampling(2, temperature=0.01))


def test_turns_of_the_largest_seed_have_seeds() -> None:
    last = Sampling(seed=int(LIMITS["seed"][1]))
    assert [last.for_turn(turn).seed for turn in (0, 1, 2)] == [last.seed, 0, 1]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (b"\xb2\xdc\xb2\xd9".decode(errors="surrogateescape"), "UTF-8"),
        ("曹" * (MAX_PROMPT_CHARACTERS + 1), "at most 4096"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(model, tokenizer, prompt, expected) -> None:
    with pytest.raises(ValueError, match=f"prompt: expected .*{expected}"):
        continue_text(model, tokenizer, prompt, Sampling(1))
