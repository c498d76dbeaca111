"""Does a language model gain when the oddest tenth of a polluted training set is removed?

    OMP_NUM_THREADS=1 python -m benchmarks.flow.cleaning data/wiki-zh/documents

A tenth of the clean documents of train and of validation, drawn at random, is made odd
(`benchmarks/flow/planted_documents.py`, the kinds in turn). Nothing that follows knows which. A
language model learns from one half of train, a document flow is fitted to its states, and both
score the other half; then the halves change places, as a model says little of texts that it has
seen. A tenth of the documents is removed, at random or by what one score calls the worst, and a new
model learns from the rest. All are read on the clean test split.

Model, n-grams, flow, optimiser, rates, batch and epochs are those of the profile in use, in one
process, with the cosine schedule and the weights of the last step. Whoever removes long documents
trains on fewer tokens.

The scores: `enigma score`; the loss of the language model, the highest removed; token priors, the
mean and the standard deviation of a document's log unigram probabilities, the farthest from both
medians removed (Seo et al., "Prior-based Noisy Text Data Filtering", arXiv 2509.18577, 2025). "The
planted ones" knows them and is the best that any score could do.

What is done is kept under `runs/cleaning/`: an interrupted benchmark resumes with the same command.
The folder is named by documents and settings, not by the code: delete it if that changes.
"""

import argparse
import hashlib
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from benchmarks.flow.cleaning_table import LOSS, NOTHING, ORACLE, OURS, PRIORS, RANDOM, table
from benchmarks.flow.planted_documents import KINDS, plant
from benchmarks.record import write
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.artifacts import read_json, read_manifest, write_json, write_manifest
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import SPLITS
from pipelines.count_ngrams import count_ngrams
from pipelines.data.order import BatchPlan, SequenceOrder, evenly_spaced
from pipelines.data.shards import ShardReader
from pipelines.data.text.shard_vocabulary import ShardVocabulary, shard_tokenizer
from pipelines.flow.documents.document_flow import fit_document_flow
from pipelines.flow.documents.passages import Floats, Passages, read_passages, token_ids
from pipelines.flow.documents.typical import Typical
from pipelines.language_model.published import new_language_model
from pipelines.language_model.scoring import Score, Span, batches, sequence_nll_nats
from pipelines.params import Profile, load_params
from pipelines.tokenize import tokenize
from pipelines.training.optimisers import make_optimiser

RUNS = Path(__file__).resolve().parents[2] / "runs" / "cleaning"
DOCUMENTS, CHARACTERS = 1000, 800
"""Training documents, and how many characters of each at most."""
EVERY = 10
"""Of the documents, one in so many is made odd, and one in so many is removed."""
SEEDS = (0, 1)

Texts = list[str]


def read_texts(documents: Path) -> dict[str, Texts]:
    """Read the beginnings of the clean documents of every split."""
    found = {}
    for split in SPLITS:
        texts = pq.read_table(documents / f"{split}.parquet", columns=["text"])["text"].to_pylist()
        found[split] = [texts[i][:CHARACTERS] for i in evenly_spaced(len(texts), DOCUMENTS)]
    return found


def pollute(texts: Texts, seed: int) -> tuple[Texts, list[int]]:
    """Make a share of the documents odd.

    Returns:
        All documents, and the indices of the odd ones.
    """
    chosen = sorted(random.Random(seed).sample(range(len(texts)), len(texts) // EVERY))
    found, kinds = list(texts), list(KINDS)
    for number, index in enumerate(chosen):
        [found[index]] = plant(kinds[number % len(kinds)], [texts[index]], seed=seed + number)
    return found, chosen


def write_shards(texts: dict[str, Texts], profile: Profile, place: Path) -> Path:
    """Tokenize and pack texts as the pipeline does; return the directory of the shards."""
    documents = place / "documents"
    documents.mkdir(parents=True)
    for split, split_texts in texts.items():
        names = [str(number) for number in range(len(split_texts))]
        rows = pa.table({"id": names, "title": names, "text": split_texts})
        pq.write_table(rows, documents / f"{split}.parquet")
    counts = {split: len(split_texts) for split, split_texts in texts.items()}
    write_manifest(documents, stage="clean", facts={"documents": counts})
    tokenize(profile.tokenize, documents, place / "shards")
    return place / "shards"


def _count(shards: Path, profile: Profile) -> Path:
    """Run the stage `count_ngrams`, which wants to hear that the shards have passed."""
    certificate = shards.parent / "certificate.json"
    write_json(certificate, {"passed": True, "shards_root": read_manifest(shards)["root"]})
    count_ngrams(profile.count_ngrams, shards, certificate, shards.parent / "ngrams")
    return shards.parent / "ngrams"


def train(shards: Path, profile: Profile, seed: int, label: str) -> EnigmaForCausalLM:
    """Train a new language model as the profile does, in float32 on one process."""
    recipe = profile.train
    reader = ShardReader(shards, "train")
    ngrams = _count(shards, profile)
    torch.manual_seed(seed)
    model = new_language_model(profile.model, shards, ngrams).train()
    plan = BatchPlan(SequenceOrder(len(reader), seed), recipe.batch_size, 1, 1)
    steps = plan.steps(recipe.epochs)
    optimiser = make_optimiser(
        recipe.optimiser, model, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(
        optimiser, int(recipe.warmup_fraction * steps), steps
    )
    for step in progress(range(steps), total=steps, unit="step", label=label):
        ids_BL = torch.from_numpy(reader.gather(plan.batch(step, 0, 0)).astype(np.int64))
        model(input_ids=ids_BL, labels=ids_BL).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return model.eval()


def bits_per_character(model: EnigmaForCausalLM, shards: Path, batch_size: int) -> float:
    """Read the test split."""
    reader = ShardReader(shards, "test")
    indices = np.arange(len(reader))
    nll_nats = sequence_nll_nats(model, reader, batches(indices, batch_size)).sum()
    return Score(Span.of(reader, indices), float(nll_nats)).bits_per_character


def token_priors(shards: Path, ids: list[list[int]]) -> Floats:
    """Return how far documents are from typical token priors.

    Args:
        shards: The training set, whose unigrams count.
        ids: The tokens of each document.
    """
    counts_V = ShardVocabulary.read(shards).train_count_V
    # Tokens at the end of the stream may be in no sequence: they count as seen once.
    priors_V = np.log(np.maximum(counts_V, 1) / counts_V.sum())
    priors = [priors_V[document] for document in ids]
    values = np.array([[prior.mean() for prior in priors], [prior.std() for prior in priors]])
    typical = [Typical.of([1], value[None]) for value in values]
    ones = np.ones(len(ids), np.int64)
    deviations = [t.deviations(v, ones) for t, v in zip(typical, values, strict=True)]
    return np.sqrt(np.square(deviations).sum(axis=0))


def score(
    model: EnigmaForCausalLM, shards: Path, texts: Texts, profile: Profile
) -> dict[str, Floats]:
    """Score documents that the model has not seen; the higher, the worse."""
    flow, _ = fit_document_flow(model, shards, profile.train_flow, lambda _: None)
    tokenizer = shard_tokenizer(shards)
    passages = Passages.of_texts(tokenizer, texts, model.config.max_len)
    found = flow.score(passages, read_passages(model, passages, flow.ends))
    ids = [token_ids(tokenizer, text) for text in texts]
    return {
        OURS: found.atypicality,
        LOSS: found.loss_nats,
        PRIORS: token_priors(shards, ids),
    }


def cross_scores(texts: dict[str, Texts], profile: Profile, seed: int) -> dict[str, list[float]]:
    """Score every training document by what the other half of them says."""
    total = len(texts["train"])
    found = {name: np.empty(total) for name in (OURS, LOSS, PRIORS)}
    halves = [np.arange(first, total, 2) for first in (0, 1)]
    for mine, others in (halves, halves[::-1]):
        with tempfile.TemporaryDirectory() as temporary:
            half = {**texts, "train": [texts["train"][i] for i in mine]}
            shards = write_shards(half, profile, Path(temporary))
            model = train(shards, profile, seed, f"half, seed {seed}")
            scores = score(model, shards, [texts["train"][i] for i in others], profile)
        for name, values in scores.items():
            found[name][others] = values
    return {name: values.tolist() for name, values in found.items()}


def worst(scores: Floats) -> npt.NDArray[np.int64]:
    """Return the indices of the share of documents that is removed."""
    return np.argsort(-scores, kind="stable")[: len(scores) // EVERY]


def removals(scores: dict[str, Floats], planted: list[int], seed: int) -> dict[str, list[int]]:
    """Return what each way removes."""
    total = len(next(iter(scores.values())))
    at_random = random.Random(f"removed {seed}").sample(range(total), total // EVERY)
    return {
        NOTHING: [],
        RANDOM: at_random,
        **{name: worst(values).tolist() for name, values in scores.items()},
        ORACLE: planted,
    }


def measure(texts: dict[str, Texts], profile: Profile, seed: int, place: Path) -> list[Any]:
    """Do what is not done yet for one seed; return a record per way."""
    train_texts, planted = pollute(texts["train"], seed)
    polluted = {**texts, "train": train_texts, "validation": pollute(texts["validation"], seed)[0]}
    scored = place / f"scores-{seed}.json"
    if not scored.is_file():
        write_json(scored, cross_scores(polluted, profile, seed))
    scores = {name: np.array(values) for name, values in read_json(scored).items()}

    def run(way: str, removed: list[int]) -> dict[str, Any]:
        gone = set(removed)
        kept = [text for number, text in enumerate(train_texts) if number not in gone]
        with tempfile.TemporaryDirectory() as temporary:
            shards = write_shards({**polluted, "train": kept}, profile, Path(temporary))
            model = train(shards, profile, seed, f"{way}, seed {seed}")
            return {
                "way": way,
                "seed": seed,
                "bits_per_character": bits_per_character(model, shards, profile.train.batch_size),
                "sequences": len(ShardReader(shards, "train")),
                "planted_removed": len(gone & set(planted)) / len(planted),
            }

    found = []
    for way, removed in removals(scores, planted, seed).items():
        path = place / f"{way.replace(' ', '-')}-{seed}.json"
        if not path.is_file():
            write_json(path, run(way, removed))
        found.append(read_json(path))
    return found


def folder(documents: Path, profile: Profile) -> Path:
    """Name the folder of what is done by everything that decides it, except the code."""
    what = {
        "documents": read_manifest(documents)["root"],
        "sizes": (DOCUMENTS, CHARACTERS, EVERY),
        "kinds": list(KINDS),
        "profile": profile.model_dump(mode="json"),
    }
    mark = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return RUNS / mark[:12]


def main() -> None:
    """Measure seed by seed; write after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("documents", type=Path, help="the output of `clean`")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    profile = load_params().profile
    texts = read_texts(arguments.documents)
    place = folder(arguments.documents, profile)
    found = []
    for seed in arguments.seeds:
        found += measure(texts, profile, seed, place)
        write("cleaning", table(found), ("snownlp", "scikit-learn"))


if __name__ == "__main__":
    run_stage(main)
