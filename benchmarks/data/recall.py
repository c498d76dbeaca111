"""Measure how many planted copies of held-out text `decontaminate` finds, by kind of copy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.record import row
from pipelines.data.overlap.reference import Reference
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.data.tokenizer.fast import FastTokenizer
from pipelines.data.tokenizer.packing import pack
from pipelines.params import load_params

LENGTH, PLANTS, EXCERPT = 256, 500, 60


def recall(corpus: Path) -> list[dict[str, Any]]:
    """Plant copies of held-out text among train sequences, and look for them."""
    params = load_params().profile.decontaminate
    texts = pq.read_table(corpus, columns=["text"])["text"]
    stream = FastTokenizer(load_tokenizer("bert-base-chinese").backend_tokenizer).encode(texts)
    tokens_NL, _ = pack(stream.ids, LENGTH)
    held_ML, train_NL = tokens_NL[:1500], tokens_NL[3000:]
    reference = Reference({"test": held_ML}, params.window_characters)
    generator = np.random.default_rng(0)
    whole = held_ML[:PLANTS]
    shifted = held_ML.reshape(-1)[LENGTH // 2 :][: PLANTS * LENGTH].reshape(-1, LENGTH)
    excerpt = train_NL[:PLANTS].copy()
    excerpt[:, 90 : 90 + EXCERPT] = held_ML[:PLANTS, 50 : 50 + EXCERPT]

    def edited(share: float) -> np.ndarray:
        copy = whole.copy()
        mask = generator.random(copy.shape) < share
        copy[mask] = generator.integers(670, 7992, int(mask.sum()))
        return copy

    plants: dict[str, Callable[[], np.ndarray]] = {
        "whole copies": lambda: whole,
        "5 % of the tokens edited": lambda: edited(0.05),
        "10 % edited": lambda: edited(0.10),
        "20 % edited": lambda: edited(0.20),
        "windows shifted by half": lambda: shifted,
        f"excerpts of {EXCERPT} tokens in other text": lambda: excerpt,
    }
    rows = []
    for name, make in plants.items():
        found = reference.matches(make(), max_containment=params.max_containment)
        share = len(found) / PLANTS
        rows.append(row(f"recall of decontaminate: {name}", share, ""))
    clean = reference.matches(train_NL, max_containment=params.max_containment)
    share = len(clean) / len(train_NL)
    rows.append(row("share of real train sequences removed (boilerplate)", share, ""))
    return rows
