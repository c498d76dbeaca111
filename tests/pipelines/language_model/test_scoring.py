"""Likelihoods by hand, of models whose predictions are known in closed form."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.base.workspace import Workspace
from pipelines.count_ngrams import main as count_ngrams
from pipelines.data.shards import SEQUENCE_SCHEMA, ShardReader
from pipelines.language_model.published import new_language_model
from pipelines.language_model.scoring import (
    UNK_CHARGE_BITS,
    Score,
    Span,
    batches,
    model_nll_nats,
    sequence_nll_nats,
)
from pipelines.params import load_params
from tests.support import TINY_NGRAMS, TINY_RUN

LENGTH = 5


class Bigram(torch.nn.Module):
    """Predicts a token in proportion to its id plus the id before it plus one."""

    def __init__(self) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not self.training
        assert not torch.is_grad_enabled()
        weights_BLV = input_ids[..., None] + torch.arange(1, 11)
        return SimpleNamespace(logits=weights_BLV.log())


@pytest.fixture
def reader(write_shards: Callable[..., Path]) -> ShardReader:
    tokens_NL = np.random.default_rng(0).integers(0, 10, (9, LENGTH)).astype(np.uint16)
    return ShardReader(
        write_shards({"train": tokens_NL, "validation": tokens_NL, "test": tokens_NL}), "test"
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_sequence_loses_what_its_tokens_after_the_first_lose(
    reader: ShardReader, training: bool
) -> None:
    indices = np.array([8, 0, 3, 4, 1])
    tokens_NL = reader.gather(indices).tolist()
    # 1 to 10 add up to 55, and each of the ten has the id before it on top.
    expected = [
        -sum(math.log((b + a + 1) / (55 + 10 * a)) for a, b in pairwise(row)) for row in tokens_NL
    ]
    model = Bigram().train(training)
    found = sequence_nll_nats(model, reader, batches(indices, 2))
    assert found.dtype == np.float64
    assert found == pytest.approx(expected, abs=1e-5)
    assert model_nll_nats(model, reader, batches(indices, 5)) == pytest.approx(sum(expected))
    assert model.training == training


def test_no_sequences_lose_nothing(reader: ShardReader) -> None:
    assert sequence_nll_nats(Bigram(), reader, []).shape == (0,)
    assert Span.of(reader, np.empty(0, dtype=np.int64)) == Span(0, 0, 0)


def test_batches_are_the_indices_in_order() -> None:
    indices = np.array([5, 3, 9, 1, 7])
    assert [batch.tolist() for batch in batches(indices, 2)] == [[5, 3], [9, 1], [7]]
    assert batches(indices[:0], 2) == []


def test_a_span_counts_what_is_predicted_and_the_text_behind_it(reader: ShardReader) -> None:
    columns = [list(range(9)), [10 + n for n in range(9)], [n % 2 for n in range(9)]]
    table = pa.table(columns, schema=SEQUENCE_SCHEMA)
    pq.write_table(table, reader.directory / "test.sequences.parquet")
    # Two sequences of 4 predicted tokens.
    assert Span.of(reader, np.array([7, 2])) == Span(8, 17 + 12, 1)


def test_a_uniform_guess_has_the_perplexity_of_its_vocabulary() -> None:
    score = Score(Span(tokens=20, characters=10, unk_characters=1), nll_nats=20 * math.log(64))
    assert score.perplexity == pytest.approx(64)
    # 20 tokens of 6 bits, and one hidden character, over 10 characters.
    assert score.bits_per_character == pytest.approx((120 + UNK_CHARGE_BITS) / 10)


def test_what_is_not_finite_is_none_in_json() -> None:
    score = Score(Span(tokens=1, characters=0, unk_characters=0), nll_nats=800.0)
    assert score.perplexity == math.inf
    assert score.bits_per_character == math.inf
    assert score.to_dict() == {
        "loss_nats": 800.0,
        "perplexity": None,
        "bits_per_character": None,
        "tokens": 1,
        "characters": 0,
        "unk_characters": 0,
    }


@pytest.mark.parametrize("counted", [None, TINY_NGRAMS])
def test_sequences_are_scored_as_by_the_logits(
    shards: Path, set_params: Any, counted: dict[str, int] | None
) -> None:
    """Training, evaluation and the registry score by `nll_nats`; generation draws by logits."""
    set_params({**TINY_RUN, "count_ngrams": counted})
    count_ngrams()
    torch.manual_seed(0)
    workspace = Workspace("sanguo")
    model = new_language_model(load_params().profile.model, shards, workspace.ngrams).eval()
    reader = ShardReader(shards, "test")
    ids_BL = torch.from_numpy(reader.gather(np.arange(5)).astype(np.int64))
    with torch.no_grad():
        log_p_BLV = model(input_ids=ids_BL).logits[:, :-1].log_softmax(-1)
    of_targets = log_p_BLV.gather(-1, ids_BL[:, 1:, None]).double()
    found = sequence_nll_nats(model, reader, [np.arange(3), np.arange(3, 5)])
    assert found == pytest.approx(-of_targets.sum((1, 2)).numpy(), rel=1e-5)
