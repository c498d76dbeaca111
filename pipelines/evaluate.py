"""Stage `evaluate`: how good the language model is, and whether to trust the result.

    python -m pipelines.evaluate

Perplexity per token and bits per character on validation and test, compared with Kneser-Ney models
of all training tokens, from the unigram to the 5-gram. Then the alarms, any of which fails the
stage: a perplexity that is too good, a leak from the future, a core that does not invert, text
that repeats itself. `pipelines/language_model/scoring.py` defines how [UNK] is charged.
"""

import csv
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from enigma.generation import Sampling, generate
from enigma.language_model.word_pieces import join_word_pieces
from pipelines.base.artifacts import (
    publish_directory,
    sha256_file,
    verify_manifest,
    write_json,
    write_text,
)
from pipelines.base.errors import GateError, UserError
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import Workspace
from pipelines.data.order import Indices, evenly_spaced
from pipelines.data.shards import ShardReader
from pipelines.language_model.baselines import ngram_nll_nats
from pipelines.language_model.classes import TokenClasses
from pipelines.language_model.continuations import (
    continuations_page,
    distinct_2,
    measure_continuations,
    repetition_rate,
)
from pipelines.language_model.losses import (
    LOSSES_FILE,
    Floats,
    Losses,
    evaluation_set_sha256,
    losses_of,
)
from pipelines.language_model.published import load_language_model
from pipelines.language_model.scoring import (
    UNK_CHARGE_BITS,
    Score,
    Span,
    batches,
    sequence_nll_nats,
)
from pipelines.params import EvaluateParams, NGramParams, load_params
from pipelines.runs.hardware import refuse_idle_gpus

BASELINES = ("unigram", "bigram", "3-gram", "4-gram", "5-gram")
# Fixed, so that the alarm means the same for every model.
TEMPERATURE = 0.8
TOP_P = 0.9

logger = logging.getLogger(__name__)


def main() -> None:
    """Evaluate the language model of the profile in use; alarms end in exit code 1."""
    refuse_idle_gpus()
    params = load_params()
    workspace = Workspace(params.name)
    report, losses = evaluate(workspace, params.profile.evaluation, params.profile.count_ngrams)
    directory = workspace.report("evaluate")
    losses.write(directory / LOSSES_FILE)
    write_json(directory / "evaluation.json", report)
    with publish_directory(directory / "figures") as figures:
        _draw(report, figures)
        page = continuations_page(f"Continuations, profile {params.name}", report["continuations"])
        write_text(figures / "continuations.html", page)
    test = report["test"]
    logger.info(
        "test: perplexity %.1f, %.3f bits per character (unigram %.3f, 5-gram %.3f)",
        test["perplexity"],
        test["bits_per_character"],
        report["baselines"]["unigram"]["bits_per_character"],
        report["baselines"]["5-gram"]["bits_per_character"],
    )
    if report["alarms"]:
        raise GateError(
            "evaluation",
            "; ".join(f"{alarm['name']}: {alarm['message']}" for alarm in report["alarms"]),
            f"read {directory / 'evaluation.json'}; a figure that is too good to be true "
            "means a leak in the data or in the model",
        )


def evaluate(
    workspace: Workspace, params: EvaluateParams, ngrams: NGramParams | None
) -> tuple[dict[str, Any], Losses]:
    """Measure everything; write nothing.

    Args:
        workspace: Where shards and model are.
        params: Sample sizes and bounds.
        ngrams: The classes of ids that the baselines count, which are the model's; None for every
            id that train has.

    Returns:
        What `evaluation.json` holds, and the loss of each test sequence.

    Raises:
        UserError: If shards or model are missing, or the shards are not as they were made.
    """
    from transformers import AutoTokenizer

    shards_root = verify_manifest(workspace.shards)["root"]
    model = load_language_model(workspace.language_model)
    readers = {split: ShardReader(workspace.shards, split) for split in ("validation", "test")}
    chosen = {name: evenly_spaced(len(r), params.max_sequences) for name, r in readers.items()}
    nll_nats = {
        split: _nll_nats(model, readers[split], chosen[split], params.batch_size)
        for split in ("validation", "test")
    }
    report: dict[str, Any] = {
        split: Score(Span.of(readers[split], chosen[split]), float(nll_N.sum())).to_dict()
        for split, nll_N in nll_nats.items()
    }
    report["unk_charge_bits_per_character"] = UNK_CHARGE_BITS
    report["baselines"], report["baseline_tokens"] = _baselines(
        workspace.shards, readers["test"], chosen["test"], ngrams
    )
    report |= _proofs(model, readers["test"], chosen["test"], params)
    tokenizer = AutoTokenizer.from_pretrained(workspace.language_model)
    report["generation"] = _generation(model, tokenizer, params)
    report["continuations"] = _continuations(model, tokenizer, readers, params)
    report["evaluation_set"] = {
        "shards_root": shards_root,
        "sequences": {split: len(indices) for split, indices in chosen.items()},
        "sha256": evaluation_set_sha256(readers["test"], chosen["test"]),
    }
    report["weights_sha256"] = sha256_file(workspace.language_model / "model.safetensors")
    report["bounds"] = {
        "min_perplexity": params.min_perplexity,
        "max_round_trip_error": params.max_round_trip_error,
        "max_repetition_rate": params.max_repetition_rate,
    }
    history = workspace.report("train") / "history.csv"
    report["alarms"] = alarms(report, lowest_validation_loss=_lowest_loss(history))
    return report, losses_of(readers["test"], chosen["test"], nll_nats["test"])


def alarms(report: dict[str, Any], *, lowest_validation_loss: float) -> list[dict[str, str]]:
    """Find the alarms that a report raises, each with its figures.

    Args:
        report: What `evaluation.json` holds.
        lowest_validation_loss: The lowest in the training history, in nats per token.

    Returns:
        One entry per alarm: `name` and `message`.
    """
    bounds = report["bounds"]
    found = []
    for split in ("validation", "test"):
        perplexity = report[split]["perplexity"]
        if perplexity is None or report[split]["bits_per_character"] is None:
            found.append(("not_finite", f"{split} perplexity is not a finite number"))
        elif perplexity < bounds["min_perplexity"]:
            found.append(
                (
                    "perplexity_near_1",
                    f"{split} perplexity {perplexity:.3f} is below {bounds['min_perplexity']}",
                )
            )
    if lowest_validation_loss < math.log(bounds["min_perplexity"]):
        found.append(
            (
                "validation_loss_near_0",
                f"validation loss fell to {lowest_validation_loss:.4f} nats in training",
            )
        )
    if report["causality"]["is_causal"] is not True:
        found.append(("not_causal", f"a logit depends on a later token: {report['causality']}"))
    for direction in ("float32", "float32_reversed"):
        error = report["round_trip"][direction]
        if not error <= bounds["max_round_trip_error"]:
            bound = bounds["max_round_trip_error"]
            found.append(
                ("round_trip", f"{direction}: relative error {error:.2e} is above {bound}")
            )
    rate = report["generation"]["repetition_rate"]
    if rate > bounds["max_repetition_rate"]:
        found.append(
            (
                "repetitive_generation",
                f"{rate:.2f} of generated 4-grams repeat, above {bounds['max_repetition_rate']}",
            )
        )
    return [{"name": name, "message": message} for name, message in found]


def _nll_nats(model: Any, reader: ShardReader, indices: Indices, batch_size: int) -> Floats:
    cut = batches(indices, batch_size)
    shown = progress(cut, total=len(cut), unit="batch", label=f"evaluate {reader.split}")
    return sequence_nll_nats(model, reader, shown)


def _baselines(
    shards: Path, test: ShardReader, test_indices: Indices, ngrams: NGramParams | None
) -> tuple[dict[str, Any], dict[str, int]]:
    train = ShardReader(shards, "train")
    span = Span.of(test, test_indices)
    classes = TokenClasses.of_shards(shards, ngrams.min_token_count if ngrams else 1)
    sums = ngram_nll_nats(train, test.gather(test_indices), classes, order=len(BASELINES))
    tokens = len(train) * train.sequence_length
    scores = {
        name: Score(span, nll_nats).to_dict()
        for name, nll_nats in zip(BASELINES, sums, strict=True)
    }
    return scores, {"counted": int(classes.train_count_V.sum()), "train": tokens}


def _proofs(
    model: Any, test: ShardReader, test_indices: Indices, params: EvaluateParams
) -> dict[str, Any]:
    import torch

    from enigma.bijections.round_trip import core_round_trip_error
    from enigma.causality import prove_causality

    spread = test_indices[evenly_spaced(len(test_indices), params.batch_size)]
    ids_BL = torch.from_numpy(test.gather(spread).astype(np.int64))
    ids_L = ids_BL[0, : params.causality_length]
    if len(ids_L) < params.causality_length:
        raise UserError(
            f"expected causality_length of at most {test.sequence_length}, "
            f"got {params.causality_length}",
            "lower evaluate.causality_length",
        )
    causality = prove_causality(model, params.causality_length, ids=ids_L)
    return {
        "causality": causality.to_dict(),
        "round_trip": core_round_trip_error(model.lm, ids=ids_BL).to_dict(),
    }


def _generation(model: Any, tokenizer: Any, params: EvaluateParams) -> dict[str, Any]:
    # A repetition penalty would hide the repetition that is measured.
    sampling = Sampling(params.generated_tokens, TEMPERATURE, top_p=TOP_P)
    texts = [generate(model, tokenizer, prompt, sampling) for prompt in params.prompts]
    return {
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "repetition_rate": repetition_rate(texts),
        "distinct_2": distinct_2(texts),
        "samples": [join_word_pieces(tokenizer, ids, skip_special_tokens=True) for ids in texts],
    }


def _continuations(
    model: Any, tokenizer: Any, readers: Mapping[str, ShardReader], params: EvaluateParams
) -> dict[str, Any]:
    sequences = {
        split: reader.gather(evenly_spaced(len(reader), params.continuations)).astype(np.int64)
        for split, reader in readers.items()
    }
    return measure_continuations(model, tokenizer, sequences, tokens=params.generated_tokens)


def _lowest_loss(history: Path) -> float:
    try:
        with history.open(newline="", encoding="utf-8") as stream:
            return min(float(row["validation_loss_nats"]) for row in csv.DictReader(stream))
    except FileNotFoundError:
        raise UserError(
            f"expected the training history {history}, found no such file",
            "run `dvc repro train`, which makes it",
        ) from None


def _draw(report: dict[str, Any], directory: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    bars = {
        name: report["baselines"][name]["bits_per_character"] for name in report["baselines"]
    } | {"EnigmaLM": report["test"]["bits_per_character"]}
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    drawn = axes.barh(
        list(bars), list(bars.values()), color=["#8fa3c0"] * len(BASELINES) + ["#c98a2b"]
    )
    axes.bar_label(drawn, fmt="%.3f", padding=3)
    axes.set(
        xlabel="bits per character on test (lower is better)", xlim=(0, 1.15 * max(bars.values()))
    )
    figure.savefig(directory / "bits_per_character.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_stage(main)
