"""How far samples are from real states.

Shape legend: N states, K states of each of S sequences, M samples, D dimensions, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from pipelines.flow.clouds import Cloud
from pipelines.flow.decoding import Decoded, table
from pipelines.flow.energy import energy_distance

# Below the smallest float32 probability; only 0 log 0 needs it.
TINY = 1e-300


def moments(real_ND: Tensor, sampled_MD: Tensor) -> dict[str, float]:
    """Compare mean and width of samples with those of real states, averaged over dimensions."""
    scale_D = real_ND.std(dim=0)
    difference_D = (sampled_MD.mean(dim=0) - real_ND.mean(dim=0)).abs()
    return {
        "mean_difference_in_std": float((difference_D / scale_D).mean()),
        "std_ratio": float((sampled_MD.std(dim=0) / scale_D).mean()),
    }


def distances(real_SKD: Tensor, clouds: dict[str, Tensor], *, seed: int) -> dict[str, float]:
    """Measure energy distance and two-sample AUC of samples, and those of equal distributions.

    Args:
        real_SKD: (S, K, D) real states, K of each sequence.
        clouds: (M, D) samples by the prefix of their metrics; the classifier sees as many of them
            as there are real states.
        seed: Seed of the classifier.

    Returns:
        `energy_distance` and `two_sample_auc` after each prefix; after `real_` those of the
        even sequences against the odd ones.
    """
    # States of one sequence resemble each other: the halves must not share sequences.
    even_ND, odd_ND = real_SKD[::2].flatten(0, 1), real_SKD[1::2].flatten(0, 1)
    pairs = {
        "real_": (even_ND, odd_ND),
        **{prefix: (torch.cat((even_ND, odd_ND)), cloud) for prefix, cloud in clouds.items()},
    }
    found = {}
    for prefix, (first_ND, second_MD) in pairs.items():
        found[f"{prefix}energy_distance"] = float(energy_distance(first_ND, second_MD))
        found[f"{prefix}two_sample_auc"] = two_sample_auc(
            first_ND, second_MD[: len(first_ND)], seed=seed
        )
    return found


def two_sample_auc(first_ND: Tensor, second_MD: Tensor, *, seed: int) -> float:
    """Measure how well a classifier tells two clouds apart (Lopez-Paz and Oquab, 2017).

    Args:
        first_ND: (N, D) states.
        second_MD: (M, D) states.
        seed: Seed of the classifier, boosted trees: a small network mistook a Gaussian for
            real states (0.56) where they did not (0.84).

    Returns:
        Area under the ROC curve on the half of each cloud that the classifier was not trained
        on, averaged over both halves: 0.5 if it cannot tell them apart, 1 if it always can.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    clouds = [cloud.double().numpy() for cloud in (first_ND, second_MD)]
    halves = [
        (np.concatenate(parts), np.repeat((0, 1), [len(part) for part in parts]))
        for parts in zip(*(np.array_split(cloud, 2) for cloud in clouds), strict=True)
    ]
    found = []
    for train, test in (halves, halves[::-1]):
        classifier = HistGradientBoostingClassifier(random_state=seed).fit(*train)
        found.append(roc_auc_score(test[1], classifier.predict_proba(test[0])[:, 1]))
    return float(np.mean(found))


def divergences(decoded: dict[str, Decoded], next_tokens_N: Tensor) -> dict[str, float]:
    """Compare what the head reads from samples with what it reads from real states.

    Args:
        decoded: What it reads from "real", "flow" and "Gaussian".
        next_tokens_N: (N,) int64, the true next token of each real state.

    Returns:
        Jensen-Shannon divergences in bits, and mean entropies in nats.
    """
    real_V = decoded["real"].mean_prediction
    true_V = _frequencies(next_tokens_N, len(real_V))
    found = {}
    for prefix, name in (("real_", "real"), ("", "flow"), ("gaussian_", "Gaussian")):
        prediction_V = decoded[name].mean_prediction
        found[f"{prefix}true_jensen_shannon_bits"] = divergence_bits(true_V, prediction_V)
        entropy_name = "real_entropy_nats" if name == "real" else f"{prefix}decoded_entropy_nats"
        found[entropy_name] = decoded[name].entropy_nats
        if name != "real":
            found[f"{prefix}decoded_jensen_shannon_bits"] = divergence_bits(real_V, prediction_V)
    return found


def divergence_bits(first_V: Tensor, second_V: Tensor) -> float:
    """Return the Jensen-Shannon divergence (Lin, 1991): 0 for equal distributions, at most 1."""
    middle_V = (first_V + second_V) / 2
    return sum(
        0.5 * float((p_V * ((p_V + TINY) / (middle_V + TINY)).log2()).sum())
        for p_V in (first_V, second_V)
    )


def temperature_table(
    samples: dict[float, Cloud], real_white_ND: Tensor, next_tokens_N: Tensor
) -> str:
    """Compare samples at several temperatures with real states, as a Markdown table.

    Args:
        samples: The samples by temperature.
        real_white_ND: (N, D) whitened real states.
        next_tokens_N: (N,) int64, the true next token of each.

    Raises:
        ValueError: If the clouds have different sizes: a larger one has more different tokens.
    """
    if len({len(cloud.states) for cloud in samples.values()}) > 1:
        raise ValueError("expected as many samples at every temperature")
    columns: dict[str, list[str]] = {
        name: []
        for name in (
            "temperature",
            "energy distance",
            "Jensen-Shannon divergence from true next tokens (bits)",
            "entropy of a prediction (nats)",
            "different likeliest tokens",
        )
    }
    for temperature, cloud in samples.items():
        true_V = _frequencies(next_tokens_N, len(cloud.decoded.mean_prediction))
        cells = (
            f"{temperature:g}",
            f"{float(energy_distance(real_white_ND, cloud.white)):.3f}",
            f"{divergence_bits(true_V, cloud.decoded.mean_prediction):.3f}",
            f"{cloud.decoded.entropy_nats:.2f}",
            str(int((cloud.decoded.likeliest.bincount() > 0).sum())),
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return table(columns)


def _frequencies(tokens_N: Tensor, vocabulary: int) -> Tensor:
    return tokens_N.bincount(minlength=vocabulary).double() / len(tokens_N)
