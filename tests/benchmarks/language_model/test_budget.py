"""What the budget of the mission counts."""

import pytest

from benchmarks.language_model.budget import run_rows, table_bytes
from benchmarks.language_model.entrants import make
from pipelines.params import NGramParams, load_params


def test_a_table_has_12_bytes_per_ngram_and_28_per_context() -> None:
    counting = NGramParams(order=5, min_token_count=2, max_entries=20_000_000)
    expected = 12 * 20_000_000 + 28 * 16_000_000
    assert table_bytes(counting) == pytest.approx(expected, rel=1e-5)


def test_every_checkpoint_and_the_disk_hold_the_table(workspace) -> None:
    recipe = load_params().profiles["wiki-zh"].train
    model = make("enigma", "1M", 8, 0)
    small, large = (
        {row["name"]: row["value"] for row in run_rows(recipe, model, size, 1e9, 0.1)}
        for size in (10**9, 2 * 10**9)
    )
    (checkpoints,) = (name for name in small if name.endswith("checkpoints"))
    assert large[checkpoints] == pytest.approx(2 * small[checkpoints])
    (disk,) = (name for name in small if name.endswith("disk"))
    assert large[disk] - small[disk] == pytest.approx(4)
