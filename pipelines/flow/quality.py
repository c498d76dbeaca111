"""How far a cloud of samples is from real states.

Shape legend: N states, K states of each of S sequences, M samples, D dimensions, V vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.flow.decoding import Decoded, divergence_bits, table
from pipelines.flow.energy import energy_distance


def moments(real_ND: Tensor, sampled_MD: Tensor) -> dict[str, float]:
    """Mean and width of samples beside those of real states, averaged over dimensions."""
    scale_D = real_ND.std(dim=0)
    difference_D = (sampled_MD.mean(dim=0) - real_ND.mean(dim=0)).abs()
    return {
        "mean_difference_in_std": float((difference_D / scale_D).mean()),
        "std_ratio": float((sampled_MD.std(dim=0) / scale_D).mean()),
    }


def distances(real_SKD: Tensor, clouds: dict[str, Tensor], *, seed: int) -> dict[str, float]:
    """Energy distance and two-sample AUC of each cloud, and what equal distributions would give.

    Args:
        real_SKD: (S, K, D) real states, K of each sequence.
        clouds: (M, D) samples by the prefix of their metrics.
        seed: Of the classifier.

    Returns:
        `energy_distance` and `two_sample_auc` behind each prefix; behind `real_` those of the
        even sequences against the odd ones.
    """
    # States of one sequence are alike: the halves of a cloud must not share sequences.
    even_ND, odd_ND = real_SKD[::2].flatten(0, 1), real_SKD[1::2].flatten(0, 1)
    pairs = {
        "real_": (even_ND, odd_ND),
        **{prefix: (torch.cat((even_ND, odd_ND)), cloud) for prefix, cloud in clouds.items()},
    }
    found = {}
    for prefix, (first_ND, second_MD) in pairs.items():
        found[f"{prefix}energy_distance"] = float(energy_distance(first_ND, second_MD))
        found[f"{prefix}two_sample_auc"] = two_sample_auc(first_ND, second_MD, seed=seed)
    return found


def two_sample_auc(first_ND: Tensor, second_MD: Tensor, *, seed: int) -> float:
    """How well a classifier tells two clouds apart (Lopez-Paz and Oquab, 2017).

    Args:
        first_ND: (N, D) states.
        second_MD: (M, D) states.
        seed: Of the classifier, boosted trees: a small network took a Gaussian for real
            states (0.56) where they did not (0.84).

    Returns:
        Area under the ROC curve on the half of each cloud that the classifier did not see,
        the mean over first and last halves: 0.5 where it can't tell, 1 where it always can.
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
    """How far what the head reads from samples is from what it reads from real states.

    Args:
        decoded: Of "real", "flow" and "Gaussian".
        next_tokens_N: (N,) int64, what truly came after each real state.

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


def temperature_table(
    decode_at: Callable[[float], tuple[Tensor, Decoded]],
    temperatures: Sequence[float],
    real_ND: Tensor,
    next_tokens_N: Tensor,
) -> str:
    """Compare samples of several temperatures with real states, as a Markdown table.

    Args:
        decode_at: Gives samples (M, D) of a temperature, and what the head reads from them.
        temperatures: Which.
        real_ND: (N, D) real states, in the coordinates of the samples.
        next_tokens_N: (N,) int64, what truly came after each.
    """
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
    for temperature in temperatures:
        sampled_MD, decoded = decode_at(temperature)
        true_V = _frequencies(next_tokens_N, len(decoded.mean_prediction))
        cells = (
            f"{temperature:g}",
            f"{float(energy_distance(real_ND, sampled_MD)):.3f}",
            f"{divergence_bits(true_V, decoded.mean_prediction):.3f}",
            f"{decoded.entropy_nats:.2f}",
            str(int((decoded.likeliest.bincount() > 0).sum())),
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return table(columns)


def _frequencies(tokens_N: Tensor, vocabulary: int) -> Tensor:
    return tokens_N.bincount(minlength=vocabulary).double() / len(tokens_N)
