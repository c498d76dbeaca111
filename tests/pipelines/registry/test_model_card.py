"""The card escapes what a model wrote, and stands alone."""

from pathlib import Path

import pytest

from pipelines.registry.model_card import ModelCard
from tests.finished import PNG


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    figure = tmp_path / "loss_curve.png"
    figure.write_bytes(PNG)
    tables = {"Evaluation": {"loss": 1.23456, "note": "a|b\nc", "causal": True}}
    return ModelCard("lm & flow", "A <model>.", tables, ["曹操<b>\n|大喜"], [figure])


def test_markdown_keeps_a_row_on_one_line(card: ModelCard) -> None:
    assert card.markdown() == (
        "# lm & flow\n\nA <model>.\n\n## Evaluation\n\n| | |\n|---|---|\n"
        "| loss | 1.235 |\n| note | a\\|b c |\n| causal | True |\n\n"
        "## Samples\n\n> 曹操<b> |大喜\n"
    )


def test_the_page_escapes_and_holds_its_figures(card: ModelCard, tmp_path: Path) -> None:
    card.write(tmp_path)
    page = (tmp_path / "model_card.html").read_text(encoding="utf-8")
    assert "<h1>lm &amp; flow</h1>" in page
    assert "曹操&lt;b&gt;" in page
    assert 'alt="loss curve" src="data:image/png;base64,' in page
    markdown = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert markdown == card.markdown() + "\n## Figures\n\n![loss curve](figures/loss_curve.png)\n"
    assert (tmp_path / "figures" / "loss_curve.png").read_bytes() == PNG
