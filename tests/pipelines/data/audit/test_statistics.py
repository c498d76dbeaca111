"""Analyze: its description of each split is that of a count by hand, on every page."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import read_json, read_manifest
from pipelines.base.errors import UserError
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.audit import statistics as module
from pipelines.data.audit.statistics import script_shares
from pipelines.tracking.store import connect


@pytest.fixture
def novel(sanguo: Path, workspace: Path) -> Workspace:
    """The finished novel as hard links; the test only reads it."""
    novel = Workspace("sanguo")
    shutil.copytree(sanguo / "documents", novel.documents, copy_function=os.link)
    shutil.copytree(sanguo / "shards", novel.shards, copy_function=os.link)
    novel.overlap_report.parent.mkdir(parents=True)
    novel.overlap_report.hardlink_to(sanguo / "overlap.json")
    return novel


def test_scripts_are_distinguished() -> None:
    histogram = np.zeros(0x110000, np.int64)
    for character in "曹操孟德かハ한aé12，。 ∞":
        histogram[ord(character)] += 1
    shares = script_shares(histogram)
    counts = {script: round(share * 15) for script, share in shares.items()}
    assert counts == {
        "Han": 4, "kana": 2, "Hangul": 1, "Latin": 2, "digit": 2,
        "punctuation": 2, "space": 1, "other": 1,
    }  # fmt: skip
    assert set(script_shares(np.zeros(0x110000, np.int64)).values()) == {0.0}


@pytest.mark.slow
def test_the_novel_is_described_printed_drawn_and_logged(
    novel: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    module.main()
    report = novel.report("analyze")
    analysis = read_json(report / "analysis.json")
    assert analysis["shards_root"] == read_manifest(novel.shards)["root"]
    for split in SPLITS:
        texts = pq.read_table(novel.documents / f"{split}.parquet")["text"].to_pylist()
        facts = analysis["splits"][split]
        assert facts["documents"] == len(texts)
        assert facts["characters"] == sum(map(len, texts))
        assert facts["distinct_characters"] == len(set("".join(texts)))
        assert facts["length_quantiles"]["longest"] == max(map(len, texts))
        character, count = facts["top_characters"][0]
        assert count == "".join(texts).count(character)
        assert facts["script_shares"]["Han"] > 0.7
        assert facts["unk_rate"] < 0.001
    assert "2,106" in capsys.readouterr().out
    page = (report / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "曹" in page
    assert not [word for word in ('src="http', 'href="http') if word in page]
    client = connect()
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["train_documents"] == 109
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {
        "sanguo/documents", "sanguo/shards",
    }  # fmt: skip
    names = {entry.path for entry in client.list_artifacts(run.info.run_id, "analyze")}
    assert {"analyze/index.html", "analyze/analysis.json"} <= names


def test_without_data_it_says_what_to_run(workspace: Path) -> None:
    with pytest.raises(UserError, match="found no such file") as caught:
        module.main()
    assert "dvc repro" in caught.value.fix
