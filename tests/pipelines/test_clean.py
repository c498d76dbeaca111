"""Clean: nothing of content is lost, and no cluster straddles splits."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from pipelines.base.artifacts import read_manifest, verify_manifest
from pipelines.base.errors import UserError
from pipelines.base.workspace import SPLITS
from pipelines.clean import clean, split_of
from pipelines.params import CleanParams, SplitParams

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def read(directory: Path) -> dict[str, dict[str, dict]]:
    """Documents by split and id."""
    return {
        split: {row["id"]: row for row in pq.read_table(directory / f"{split}.parquet").to_pylist()}
        for split in SPLITS
    }


def test_short_and_repeated_documents_are_dropped_and_kept_aside(
    write_raw, prose, profile, tmp_path: Path
) -> None:
    texts = [prose(seed, 80) for seed in range(120)]
    texts += [f"{texts[3]}\r\n", "太短", " \n"]
    clean(profile.clean, write_raw(texts), tmp_path / "documents")
    manifest = verify_manifest(tmp_path / "documents")
    assert manifest["dropped"] == {"exact_duplicate": 1, "short": 2}
    assert sum(manifest["documents"].values()) == 120
    dropped = pq.read_table(tmp_path / "documents" / "dropped.parquet").to_pylist()
    assert [(row["id"], row["reason"]) for row in dropped] == [
        ("d0120", "exact_duplicate"),
        ("d0121", "short"),
        ("d0122", "short"),
    ]
    assert dropped[0]["text"] == texts[3]


def test_clusters_are_kept_whole_in_one_split(write_raw, prose, profile, tmp_path: Path) -> None:
    originals = [prose(seed, 400) for seed in range(100)]
    copies = [f"{text[:199]}新{text[200:]}" for text in originals]
    passages = [prose(1000 + seed, 100) for seed in range(100)]
    titles = [f"甲{i}" for i in range(100)] + [f"乙{i}" for i in range(100)]
    titles += [f" 乙{i}" for i in range(100)]
    output = tmp_path / "documents"
    clean(profile.clean, write_raw([*originals, *copies, *passages], titles), output)
    splits = read(output)
    assert sum(len(rows) for rows in splits.values()) == 300
    home = {name: split for split, rows in splits.items() for name in rows}
    for index in range(100):
        family = [f"d{index + offset:04d}" for offset in (0, 100, 200)]
        assert len({home[name] for name in family}) == 1
        assert {splits[home[name]][name]["cluster"] for name in family} == {family[0]}
    assert read_manifest(output)["clusters_of_several"] == 100


def test_empty_titles_join_nothing(write_raw, prose, profile, tmp_path: Path) -> None:
    texts = [prose(seed, 80) for seed in range(100)]
    clean(profile.clean, write_raw(texts, ["  "] * 100), tmp_path / "documents")
    assert read_manifest(tmp_path / "documents")["clusters_of_several"] == 0


def test_a_document_keeps_its_split_when_the_corpus_grows_or_is_shuffled(
    write_raw, prose, profile, tmp_path: Path
) -> None:
    texts = [prose(seed, 80) for seed in range(200)]
    clean(profile.clean, write_raw(texts[:120]), tmp_path / "small")
    clean(profile.clean, write_raw(texts), tmp_path / "large")
    small, large = read(tmp_path / "small"), read(tmp_path / "large")
    for split in SPLITS:
        assert small[split].keys() <= large[split].keys()


def test_the_split_has_the_fractions_asked_for() -> None:
    params = SplitParams(validation_fraction=0.1, test_fraction=0.2, seed=7)
    names = [split_of(f"document {index}", params) for index in range(20_000)]
    assert names.count("validation") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert names.count("test") / 20_000 == pytest.approx(0.2, abs=0.01)
    other = params.model_copy(update={"seed": 8})
    assert names != [split_of(f"document {index}", other) for index in range(20_000)]


def test_an_empty_split_says_how_to_fix_it(write_raw, prose, profile, tmp_path: Path) -> None:
    raw = write_raw([prose(0, 80), prose(1, 80)])
    with pytest.raises(UserError, match="got none of 2 in validation, test") as caught:
        clean(profile.clean, raw, tmp_path / "documents")
    assert "raise the fraction, or change split.seed" in caught.value.fix
    assert not (tmp_path / "documents").exists()


def test_the_order_of_equal_texts_does_not_matter(
    write_raw, prose, profile: CleanParams, tmp_path: Path
) -> None:
    texts = [prose(seed, 80) for seed in range(120)]
    generator = random.Random(0)
    positions = generator.sample(range(120), 40)
    doubled = [*texts, *(texts[position] for position in positions)]
    clean(profile.clean, write_raw(doubled), tmp_path / "documents")
    kept = {name for rows in read(tmp_path / "documents").values() for name in rows}
    assert kept == {f"d{index:04d}" for index in range(120)}
