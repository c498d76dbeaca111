"""A published model in plain torch is the model that transformers loads."""

import json

import pytest
import torch

from enigma import load_lm
from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.modeling_enigma import EnigmaForCausalLM

IDS = torch.arange(1, 25).view(2, 12)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"exact": True, "rotor_form": "lifting", "pointer_channels": 4},
        {"num_driven_rotors": 1, "kernel_size": 2, "return_path": "untied"},
    ],
)
@pytest.mark.parametrize("with_memory", [False, True])
def test_it_is_the_model_that_transformers_loads(make_causal_lm, tmp_path, changes, with_memory):
    model = make_causal_lm(**changes)
    if with_memory:
        possible = torch.ones(model.lm.vocab_size, dtype=torch.bool)
        model.set_reachable(torch.arange(2, 20), possible)
        counts = count_ngrams(model.lm.classes(IDS), model.lm.num_classes, 3)
        model.set_ngrams(counts, leave_one_out=True)
    model.save_pretrained(tmp_path)
    lm, expected = load_lm(tmp_path), EnigmaForCausalLM.from_pretrained(tmp_path).eval()
    assert not lm.training
    with torch.no_grad():
        assert torch.equal(lm(IDS), expected(IDS).logits)
        hidden = lm.hidden_states(IDS)
        assert torch.equal(lm.nll_nats(hidden, IDS), expected.lm.nll_nats(hidden, IDS))


def test_weights_of_another_shape_are_refused_by_name(make_causal_lm, tmp_path):
    make_causal_lm().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_rev_blocks": config["num_rev_blocks"] + 1}))
    with pytest.raises(RuntimeError, match="Missing key"):
        load_lm(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="config"):
        load_lm(tmp_path)
