"""A model with a memory of n-grams, where only the kinds of its operations matter."""

from typing import Any

import torch

from enigma.language_model.memory.ngram_counts import count_ngrams


def with_ngrams(model: Any, order: int) -> Any:
    """Give an `EnigmaForCausalLM` a head over classes and a memory of n-grams of random texts."""
    ids = model.config.vocab_size
    model.set_reachable(torch.arange(ids // 2), torch.ones(ids, dtype=torch.bool))
    counted = model.lm.classes(torch.randint(ids, (8, 64)))
    model.set_ngrams(count_ngrams(counted, model.lm.num_classes, order), leave_one_out=True)
    return model
