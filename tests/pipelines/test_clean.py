"""Clean: nothing of content is lost, and no cluster straddles splits."""

import random
import unicodedata
from pathlib import Path

import opencc
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from pipelines.base.artifacts import read_manifest, verify_manifest
from pipelines.base.errors import UserError
from pipelines.base.workspace import SPLITS
from pipelines.clean import clean
from pipelines.data.cleaning.near_duplicates import NEAR_DUPLICATE
from pipelines.data.cleaning.splits import split_of
from pipelines.data.text.normalisation import normalise
from pipelines.params import CleanParams

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
    passages = [f"{text[-30:]}{prose(1000 + seed, 100)}" for seed, text in enumerate(copies)]
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


CHAPTER = "却说玄德引军前来，张飞大喜；云长曰：“兄长勿忧。”众皆拜服，遂同入城中。" * 3
COPIES = {
    "traditional": opencc.OpenCC("s2tw").convert(CHAPTER),
    "half width": unicodedata.normalize("NFKC", CHAPTER),
    "no punctuation": "".join(character for character in CHAPTER if character.isalnum()),
    "notes": CHAPTER.replace("，", "[12]，"),
    "readings": CHAPTER.replace("玄德", "玄德（Liú Bèi）"),
    "readings in kana": CHAPTER.replace("张飞", "张飞(ちょうひ)"),
    "lines": CHAPTER.replace("，", "，\n\n"),
}


@pytest.mark.parametrize("edited", [False, True], ids=["equal", "edited"])
@pytest.mark.parametrize("form", COPIES)
def test_a_copy_in_another_form_is_a_copy(
    write_raw, prose, profile, tmp_path: Path, *, form: str, edited: bool
) -> None:
    body = prose(500, 300)
    texts = [prose(seed, 80) for seed in range(120)]
    changed = f"{body[:150]}新{body[151:]}" if edited else body
    texts += [f"{CHAPTER}\n{body}", f"{COPIES[form]}\n{changed}"]
    output = tmp_path / "documents"
    clean(profile.clean, write_raw(texts, [""] * len(texts)), output)
    dropped = pq.read_table(output / "dropped.parquet").to_pylist()
    links = pq.read_table(output / "links.parquet").to_pylist()
    if edited:
        (link,) = links
        assert (link["document"], link["joined_to"]) == ("d0120", "d0121")
        assert (link["evidence"], link["strength"] > 0.9) == (NEAR_DUPLICATE, True)
        # What is trained on is not folded.
        kept = {name: row for rows in read(output).values() for name, row in rows.items()}
        assert kept["d0121"]["text"] == normalise(texts[-1])
        assert kept["d0121"]["cluster"] == "d0120"
    else:
        assert [(row["id"], row["reason"], row["twin"]) for row in dropped] == [
            ("d0121", "exact_duplicate", "d0120")
        ]
        assert not links


def test_a_placeholder_title_joins_nothing(write_raw, prose, profile, tmp_path: Path) -> None:
    texts = [prose(seed, 120) for seed in range(200)]
    titles = ["无标题"] * 100 + [f"題{index}" for index in range(100)]
    clean(profile.clean, write_raw(texts, titles), tmp_path / "documents")
    manifest = read_manifest(tmp_path / "documents")
    assert manifest["clusters_of_several"] == manifest["same_title_pairs"] == 0


def test_a_cluster_that_is_too_large_to_hold_out_goes_to_train(
    write_raw, prose, profile, tmp_path: Path
) -> None:
    """Whatever its hash says: a few seeds would hold it out, as the last assertion shows."""
    texts = [prose(seed, 200) for seed in range(200)]
    family = [f"{prose(999, 600)}{index:03d}" for index in range(130)]
    raw = write_raw([*texts, *family])
    held_out = 0
    for seed in range(12):
        split = profile.clean.split.model_copy(
            update={"seed": seed, "validation_fraction": 0.1, "test_fraction": 0.1}
        )
        output = tmp_path / f"documents-{seed}"
        clean(profile.clean.model_copy(update={"split": split}), raw, output)
        manifest = read_manifest(output)
        assert read(output)["train"].keys() >= {f"d{200 + index:04d}" for index in range(130)}
        wanted = split_of("d0200", split)
        assert manifest["clusters_too_large_to_hold_out"] == (wanted != "train")
        held_out += wanted != "train"
    assert held_out


@pytest.mark.parametrize(
    ("alphabet", "size", "reason", "remedy"),
    [
        ("abcdefghijklmnop ", 120, "not_chinese", {"min_han_share": 0.0}),
        ("ひらがなでかいたほん", 120, "not_chinese", {"max_kana_share": 1.0, "min_han_share": 0.0}),
        ("曹操起兵劉備關羽張飛", 8, "short", {"min_characters": 3}),
        ("曹操起兵劉備關羽張飛", 200, "long", {"max_characters": 500}),
    ],
)
def test_nothing_left_says_what_was_dropped_and_the_remedy_works(
    write_raw, profile, tmp_path: Path, *, alphabet: str, size: int, reason: str, remedy: dict
) -> None:
    generator = random.Random(0)
    raw = write_raw(["".join(generator.choices(alphabet, k=size)) for _ in range(20)])
    split = profile.clean.split.model_copy(
        update={"validation_fraction": 0.3, "test_fraction": 0.3}
    )
    params = profile.clean.model_copy(update={"max_characters": 150, "split": split})
    with pytest.raises(UserError, match=f"got none: of 20, 20 {reason} were dropped") as caught:
        clean(params, raw, tmp_path / "documents")
    assert all(name in caught.value.fix for name in remedy)
    clean(params.model_copy(update=remedy), raw, tmp_path / "documents")
    assert sum(read_manifest(tmp_path / "documents")["documents"].values()) == 20


@pytest.mark.parametrize("copies", [1, 30])
def test_a_single_text_says_that_the_others_were_copies(
    write_raw, prose, profile, tmp_path: Path, copies: int
) -> None:
    raw = write_raw([prose(0, 80)] * copies)
    dropped = f"{copies - 1} exact_duplicate" if copies > 1 else "none"
    with pytest.raises(UserError, match=f"got none of 1 .* dropped: {dropped}"):
        clean(profile.clean, raw, tmp_path / "documents")


def test_a_lost_document_fails_the_stage(raw_parts: Path, profile, tmp_path: Path) -> None:
    path = sorted(raw_parts.glob("part-*.parquet"))[3]
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match="each of 240 raw documents to be kept or dropped"):
        clean(profile.clean, raw_parts, tmp_path / "documents")
    assert not (tmp_path / "documents").exists()


def test_a_document_keeps_its_split_when_the_corpus_grows_or_is_shuffled(
    write_raw, prose, profile, tmp_path: Path
) -> None:
    texts = [prose(seed, 80) for seed in range(200)]
    clean(profile.clean, write_raw(texts[:120]), tmp_path / "small")
    clean(profile.clean, write_raw(texts), tmp_path / "large")
    small, large = read(tmp_path / "small"), read(tmp_path / "large")
    for split in SPLITS:
        assert small[split].keys() <= large[split].keys()


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
