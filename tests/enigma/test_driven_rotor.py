"""Driven rotors: the chunked form is the product of reflections, in value, gradient and cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from enigma import driven_rotor
from enigma.bijections.base import TokenContext
from enigma.causality import prove_causality
from enigma.driven_rotor import DrivenRotor, turn

ROTORS = {"num_driven_rotors": 2, "rotor_channels": 4, "rotor_reflections": 2}
IDS = torch.arange(2 * 40).view(2, 40)


def draw(length, *, batch=2, heads=3, reflections=2, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(batch, heads, channels, generator=generator, dtype=torch.float64)
    shape = (batch, heads, length, reflections, channels)
    u = torch.randn(shape, generator=generator, dtype=torch.float64)
    return start, functional.normalize(u, dim=-1)


def one_by_one(start, u):
    states, z = [], start
    for token in u.unbind(2):
        for direction in token.unbind(2):
            z = z - 2 * (z * direction).sum(-1, keepdim=True) * direction
        states.append(z)
    return torch.stack(states, dim=2)


@given(st.integers(1, 50), st.integers(1, 5), st.integers(2, 9), st.integers(0, 99))
def test_it_is_one_reflection_after_the_other(length, reflections, channels, seed):
    start, u = draw(length, reflections=reflections, channels=channels, seed=seed)
    torch.testing.assert_close(turn(start, u), one_by_one(start, u), rtol=0, atol=1e-12)


def test_so_are_its_gradients():
    start, u = inputs = [x.requires_grad_() for x in draw(37)]
    unit = functional.normalize(u, dim=-1)  # a rounded state is made as long as the start again
    grads = [
        torch.autograd.grad((form(start, unit) ** 3).sum(), inputs, retain_graph=True)
        for form in (turn, one_by_one)
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


def test_a_long_text_keeps_the_length_of_the_state():
    start, u = draw(100_000, batch=1, heads=2)
    exact = turn(start, u)
    rounded = turn(start.float(), u.float())
    lengths = rounded.double().norm(dim=-1) / start.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)
    assert (rounded - exact).abs().max() < 1e-2


@pytest.mark.parametrize("chunk", [1, 4])
def test_in_bf16_the_state_keeps_its_length_however_it_is_read(monkeypatch, chunk):
    states = []
    monkeypatch.setattr(driven_rotor, "_CHUNK", chunk)
    monkeypatch.setattr(
        driven_rotor, "turn", lambda *given: states.append(turn(*given)) or states[0]
    )
    torch.manual_seed(0)
    rotor = DrivenRotor(10, channels=5, reflections=2).bfloat16()
    rotor(torch.randn(1, 400, 10, dtype=torch.bfloat16))
    lengths = states[0].norm(dim=-1)
    start = (functional.normalize(rotor.start, dim=-1) * 5**0.5).float().norm(dim=-1)
    torch.testing.assert_close(lengths, start.view(1, 2, 1).expand_as(lengths), rtol=1e-4, atol=0)


def test_a_fresh_rotor_stands_nearly_still():
    torch.manual_seed(0)
    rotor = DrivenRotor(16, channels=4, reflections=2)
    x = torch.randn(1, 8, 16)
    state = turn(rotor.start[None], rotor._directions(x, None, x.dtype))
    assert (state - rotor.start[None, :, None]).abs().max() < 2.0
    assert not rotor(x, TokenContext.of(x)).any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d": 16, "channels": 5}, "rotor_channels must be at least 2 and divide d=16, got 5"),
        ({"d": 16, "reflections": 3}, "rotor_reflections must be even and at least 2, got 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        DrivenRotor(**sizes)


def test_no_state_depends_on_a_later_token(make_lm):
    assert prove_causality(make_lm(**ROTORS), length=40).is_causal


@pytest.mark.parametrize("pieces", [(40,), (20, 1, 1, 18), (1,) * 40])
def test_a_cache_gives_the_logits_of_the_whole_text(make_causal_lm, pieces):
    model = make_causal_lm(**ROTORS).double()
    cache, parts = None, []
    for piece in IDS.split(pieces, dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(IDS).logits, rtol=0, atol=1e-10)


def test_padding_turns_nothing(make_causal_lm):
    model = make_causal_lm(**ROTORS).double()
    padded = functional.pad(IDS, (3, 0))
    mask = functional.pad(torch.ones_like(IDS), (3, 0))
    torch.testing.assert_close(
        model(padded, attention_mask=mask).logits[:, 3:], model(IDS).logits, rtol=0, atol=1e-10
    )


def test_beams_are_those_without_a_cache(make_causal_lm):
    model = make_causal_lm(**ROTORS).double()
    settings = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    expected = model.generate(IDS, use_cache=False, **settings)
    assert torch.equal(model.generate(IDS, **settings), expected)


def test_packed_texts_are_refused(make_causal_lm):
    model = make_causal_lm(**ROTORS)
    places = torch.cat((torch.arange(20), torch.arange(20))).unsqueeze(0)
    with pytest.raises(ValueError, match="expected num_driven_rotors=0 with position_ids"):
        model(IDS[:1], position_ids=places)


@pytest.mark.parametrize("memory", ["reversible", "checkpoint"])
def test_training_in_less_memory_has_the_same_gradients(make_causal_lm, memory):
    model = make_causal_lm(**ROTORS, attention_dropout=0.0).double().train()
    grads = []
    for mode in ("plain", memory):
        model.lm.memory = mode
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)
