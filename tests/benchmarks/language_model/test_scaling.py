"""The fit finds a planted law, and its interval is wide where the law is not known."""

import numpy as np
import pytest

from benchmarks.language_model.scaling import fit, law, projection_rows

PLANTED = np.array([2.0, 3.0, 0.3, 4.5, 0.25])
SIZES = np.array([[n, d] for n in (5e5, 1e6, 3e6, 1e7) for d in (25_600, 51_200, 102_400)])


def points(noise_nats: float) -> np.ndarray:
    loss = law(PLANTED, *SIZES.T)
    loss = loss + noise_nats * np.random.default_rng(1).standard_normal(len(loss))
    return np.column_stack([SIZES, loss])


def width_nats(noise_nats: float) -> float:
    rows = {row["name"]: row["value"] for row in projection_rows(points(noise_nats))}
    return (
        rows["mission, projected loss, 95 % quantile"]
        - rows["mission, projected loss, 5 % quantile"]
    )


def test_a_planted_law_is_found() -> None:
    np.testing.assert_allclose(fit(points(0.0)), PLANTED, rtol=1e-3)


@pytest.mark.slow
def test_noise_widens_the_interval() -> None:
    assert width_nats(0.05) > 0.1 > width_nats(0.0)
