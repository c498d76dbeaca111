"""A cache is extended once per token: training that recomputes must not extend it again."""

import copy
from itertools import product

import pytest
import torch
from transformers import DynamicCache

IDS = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(0))
RECOMPUTES = ["checkpoint", "reversible"]
VARIANTS = [
    {},
    {"kernel_size": 3},
    {"num_driven_rotors": 1, "rotor_channels": 4, "rotor_reflections": 2},
    {"pointer_channels": 4},
]


def labels_and_a_new_cache(model):
    out = model(IDS, labels=IDS, use_cache=True)
    return out.loss, out.past_key_values


def labels_behind_a_segment(model):
    cache = model(IDS[:, :5], use_cache=True).past_key_values
    return model(IDS[:, 5:], labels=IDS[:, 5:], past_key_values=cache).loss, cache


def logits_of_the_model_itself(model):
    cache = DynamicCache()
    return model.lm(IDS, cache=cache).sin().sum(), cache


def gradients(model, run, *, checkpointing=False):
    """Return the gradient of every parameter, and how many tokens the cache holds afterwards."""
    model = copy.deepcopy(model).double().train()
    if checkpointing:
        model.activation_checkpointing_enable()
    torch.manual_seed(1)
    loss, cache = run(model)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, cache.get_seq_length()


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        *product((labels_and_a_new_cache, labels_behind_a_segment), VARIANTS),
        # The adapter alone makes room for a pointer in an empty cache.
        *product((logits_of_the_model_itself,), VARIANTS[:-1]),
    ],
)
def test_gradients_are_those_of_autograd_in_every_mode(make_causal_lm, run, changes):
    changes = {"attention_dropout": 0.2, "hidden_dropout": 0.2, **changes}
    model = make_causal_lm(**changes)
    expected, length = gradients(model, run)
    assert length == IDS.shape[1]
    found = [gradients(make_causal_lm(memory=memory, **changes), run) for memory in RECOMPUTES]
    found.append(gradients(model, run, checkpointing=True))
    for grads, again in found:
        assert again == length
        torch.testing.assert_close(grads, expected, rtol=0, atol=1e-10)


# peft 0.21 asks by a name that transformers has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("changes", VARIANTS[:2])
def test_prefix_tuning_learns_the_same_in_every_mode(make_causal_lm, changes):
    peft = pytest.importorskip("peft")

    def gradient(memory):
        torch.manual_seed(0)
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = make_causal_lm(memory=memory, attention_dropout=0.0, **changes)
        tuned = peft.get_peft_model(model, config).double().train()
        tuned(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS).loss.backward()
        (grad,) = (p.grad for p in tuned.parameters() if p.requires_grad)
        return grad

    expected = gradient("plain")
    assert expected.abs().max() > 0
    for memory in RECOMPUTES:
        torch.testing.assert_close(gradient(memory), expected, rtol=0, atol=1e-10)
