"""Measure how well `enigma score` tells planted odd documents from normal ones.

    OMP_NUM_THREADS=1 python -m benchmarks.flow.odd_documents --language-model models/sanguo/lm \
        --shards data/sanguo/shards --documents data/sanguo/documents/test.parquet

The document flow is fitted as in `train_flow`, with the profile's parameters. Documents are pieces
of the test split; every second one is made into an odd document of each kind
(`benchmarks/flow/planted_documents.py`). AUROC is how often an odd document scores above a normal
one, 0.5 by chance. The baselines are the language model's own loss and, on the mean states that the
flow is fitted to, the full-covariance Gaussian (the Mahalanobis distance), isolation forest, LOF
and ECOD of PyOD with their defaults. The five deviations show what each part finds alone; "flow,
raw" is that of the state where only an unlikely one is odd.
"""

import argparse
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import mannwhitneyu
from transformers import AutoTokenizer

from benchmarks.flow.planted_documents import KINDS, plant
from benchmarks.record import row, write
from pipelines.base.errors import UserError
from pipelines.base.run_stage import run_stage
from pipelines.data.shards import ShardReader
from pipelines.flow.documents.document_flow import DocumentFlow, fit_document_flow
from pipelines.flow.documents.passages import Floats, Passages, mean_states, read_passages
from pipelines.language_model.published import load_language_model
from pipelines.params import load_params

CHARACTERS = 400
OURS, LOSS, GAUSSIAN = "enigma score", "loss of the LM", "Gaussian, same states"
DETECTORS = {"isolation forest": "iforest.IForest", "LOF": "lof.LOF", "ECOD": "ecod.ECOD"}
"""Names and where PyOD has them."""
PEERS = (LOSS, GAUSSIAN, *DETECTORS)
PARTS = ("flow, raw", "state", "loss", "peak", "order", "length")
MIN_MEAN_AUROC, MIN_AUROC = 0.97, 0.85


@dataclass(frozen=True)
class Scorer:
    """A language model, its tokenizer, the flow over its states, and fitted detectors."""

    model: Any
    tokenizer: Any
    flow: DocumentFlow
    detectors: dict[str, Any]

    def scores(self, texts: list[str]) -> dict[str, Floats]:
        """Return every score and baseline by name, one value per document; higher is odder."""
        passages = Passages.of_texts(self.tokenizer, texts, self.model.config.max_len)
        reading = read_passages(self.model, passages, self.flow.ends)
        found = self.flow.score(passages, reading)
        gaussian_P = self.flow.flow.gaussian.log_prob(reading.states).numpy()
        return {
            OURS: found.atypicality,
            LOSS: found.loss_nats,
            GAUSSIAN: passages.mean_by_document(-gaussian_P),
            **{
                name: passages.mean_by_document(detector.decision_function(reading.states.numpy()))
                for name, detector in self.detectors.items()
            },
            "flow, raw": found.state_deviation,
            **{part: np.abs(getattr(found, f"{part}_deviation")) for part in PARTS[1:]},
        }


def fit_detectors(states_PD: Floats) -> dict[str, Any]:
    """Fit PyOD's detectors to training states, (P, D)."""
    found = {}
    for name, place in DETECTORS.items():
        module, kind = place.split(".")
        found[name] = getattr(import_module(f"pyod.models.{module}"), kind)()
        found[name].fit(states_PD)
    return found


def pieces(path: Path) -> list[str]:
    """Cut every document of a parquet file into whole pieces of `CHARACTERS`."""
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    return [
        text[start : start + CHARACTERS]
        for text in texts
        for start in range(0, len(text) - CHARACTERS + 1, CHARACTERS)
    ]


def auroc(odd: Floats, normal: Floats) -> float:
    """Return how often an odd document scores above a normal one; a tie counts half."""
    return float(mannwhitneyu(odd, normal).statistic) / (len(odd) * len(normal))


def table(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return rows of AUROC by kind, the means last.

    Args:
        found: AUROC by kind and score.
    """
    rows = [
        row(f"{kind}: AUROC", values[OURS], "", peer=peer, peer_value=values[peer])
        for kind, values in found.items()
        for peer in PEERS
    ]
    means = {
        name: float(np.mean([values[name] for values in found.values()]))
        for name in (OURS, *PEERS, *PARTS)
    }
    worst = min(found, key=lambda kind: found[kind][OURS])
    rows.append(
        row(
            f"worst kind, {worst}: AUROC",
            found[worst][OURS],
            "",
            target=f">= {MIN_AUROC:g}",
            met=found[worst][OURS] >= MIN_AUROC,
        )
    )
    rows += [
        row(
            "mean AUROC",
            means[OURS],
            "",
            peer=peer,
            peer_value=means[peer],
            target=f">= {MIN_MEAN_AUROC:g} and above",
            met=means[OURS] >= MIN_MEAN_AUROC and means[OURS] > means[peer],
        )
        for peer in PEERS
    ]
    rows += [row(f"mean AUROC of a part: {part}", means[part], "") for part in PARTS]
    return rows + [row(f"{worst}, a part: {part}", found[worst][part], "") for part in PARTS]


def main() -> None:
    """Fit, plant, score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--language-model", type=Path, required=True, help="a published one")
    parser.add_argument("--shards", type=Path, required=True, help="that it was trained on")
    parser.add_argument("--documents", type=Path, required=True, help="parquet of unseen documents")
    arguments = parser.parse_args()
    texts = pieces(arguments.documents)
    if len(texts) < 2:
        raise UserError(
            f"{arguments.documents}: expected at least 2 pieces of {CHARACTERS} characters, "
            f"got {len(texts)}",
            "pass the test split of a profile, e.g. data/sanguo/documents/test.parquet",
        )
    model = load_language_model(arguments.language_model)
    params = load_params().profile.train_flow
    flow, course = fit_document_flow(model, arguments.shards, params, lambda _: None)
    print(f"best step {course.best.step} of {course.history[-1].step}")
    train = Passages.of_split(ShardReader(arguments.shards, "train"), params.passages)
    detectors = fit_detectors(mean_states(model, train).numpy())
    tokenizer = AutoTokenizer.from_pretrained(arguments.language_model)
    scorer = Scorer(model, tokenizer, flow, detectors)
    normal = scorer.scores(texts[::2])
    found = {}
    for kind in KINDS:
        odd = scorer.scores(plant(kind, texts[1::2], seed=0))
        found[kind] = {name: auroc(odd[name], normal[name]) for name in normal}
        print(kind, {name: round(value, 3) for name, value in found[kind].items()})
    write("odd_documents", table(found), ("snownlp", "scikit-learn", "pyod"))


if __name__ == "__main__":
    run_stage(main)
