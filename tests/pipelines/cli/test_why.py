"""`enigma why`: every fate of a document and of a sequence, with the evidence."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.base.errors import UserError
from pipelines.base.workspace import Workspace
from pipelines.clean import clean
from pipelines.cli.why import show_why, why
from pipelines.data.cleaning.near_duplicates import NEAR_DUPLICATE
from pipelines.decontaminate import decontaminate
from pipelines.ingest import ingest
from pipelines.params import Profile
from pipelines.tokenize import tokenize

MARKED = "曹操<br/>起兵（，）"
BRACKETS = "甲[b]乙 :smile:"
CUT = "<ref>[/b] 说明</ref>"


@pytest.fixture
def data(write_corpus, prose, profile: Profile, workspace: Path) -> Workspace:
    """200 documents, and one of every fate, in a working directory of their own."""
    texts = [prose(seed, 300) for seed in range(200)]
    near = f"{texts[3][:150]}新{texts[3][151:]}"
    texts += [near, f"{texts[4]}。", "太短", f"{prose(300, 200)}{MARKED}"]
    titles = [*map(str, range(len(texts))), BRACKETS]
    corpus = write_corpus([*texts, f"{prose(301, 200)}{CUT}"], titles)
    made = Workspace("sanguo")
    ingest(profile.ingest.model_copy(update={"source": str(corpus)}), made.raw)
    clean(profile.clean, made.raw, made.documents)
    tokenize(profile.tokenize, made.documents, made.tokens)
    made.overlap_report.parent.mkdir(parents=True)
    decontaminate(profile.decontaminate, made.tokens, made.shards, made.overlap_report)
    return made


def test_every_fate_is_told_with_its_evidence(data: Workspace, profile) -> None:
    facts = why("d0200", data, profile.clean)
    assert (facts["raw"]["row"], facts["raw"]["file"]) == (200, "part-00000.parquet")
    cleaned = facts["clean"]
    assert (cleaned["became"], cleaned["cluster"]) == ("kept", "d0003")
    assert cleaned["also in the cluster"] == ["d0003"]
    (link,) = cleaned["joined"]
    assert (link["document"], link["joined_to"]) == ("d0003", "d0200")
    assert link["evidence"] == NEAR_DUPLICATE
    assert 0.9 < link["strength"] < 1
    twin = why("d0201", data, profile.clean)["clean"]
    assert (twin["became"], twin["reason"], twin["twin"]) == (
        "dropped",
        "exact_duplicate",
        "d0004",
    )
    short = why("d0202", data, profile.clean)["clean"]
    assert (short["became"], short["reason"], short["twin"]) == ("dropped", "short", None)
    cut = why("d0203", data, profile.clean)["clean"]
    assert cut["cut out"] == {"tag": 1, "empty brackets": 1}
    assert ("d0203", "tag", "<br/>") in cut["pieces"]


def test_a_document_and_its_sequences_name_each_other(data: Workspace, profile) -> None:
    for name in ("d0000", "d0077", "d0200"):
        facts = why(name, data, profile.clean)
        for sequence in facts["tokenize"]["sequences"]:
            assert name in why(sequence, data, profile.clean)["tokenize"]["documents"]


def test_a_removed_sequence_says_why(data: Workspace, profile) -> None:
    path = data.shards / "removed.parquet"
    row = {
        "split": "train",
        "source_sequence": 2,
        "matched_split": "test",
        "method": "near",
        "tokens": [],
        "text": "",
    }
    table = pq.read_table(path).slice(0, 0)
    pq.write_table(table.from_pylist([row], schema=table.schema), path)
    (removal,) = why("train:2", data, profile.clean)["decontaminate"]
    assert removal["became"] == "removed"
    assert (removal["matched_split"], removal["method"]) == ("test", "near")
    assert "tokens" not in removal
    assert why("train:3", data, profile.clean)["decontaminate"] == [{"became": "kept"}]
    assert why("test:0", data, profile.clean)["decontaminate"] == [{"became": "kept"}]
    owner = why("train:2", data, profile.clean)["tokenize"]["documents"][0]
    assert removal in why(owner, data, profile.clean)["decontaminate"]


@pytest.mark.parametrize("name", ["nobody", "train:x", "elsewhere:3", "", "train:-1"])
def test_an_unknown_id_is_an_error_with_an_id_that_works(data, profile, name: str) -> None:
    with pytest.raises(UserError, match="expected the id of a document") as caught:
        why(name, data, profile.clean)
    known = caught.value.fix.rpartition(" ")[2]
    assert why(known, data, profile.clean)["raw"]["id"] == known


def test_a_sequence_beyond_the_last_is_an_error(data: Workspace, profile) -> None:
    with pytest.raises(UserError, match="expected a sequence of test below") as caught:
        why("test:100000", data, profile.clean)
    last = caught.value.fix.split()[1]
    assert why(last, data, profile.clean)["tokenize"]["sequence"] == last


def test_a_stage_that_has_not_run_is_an_error(data: Workspace, profile) -> None:
    (data.shards / "removed.parquet").unlink()
    with pytest.raises(UserError, match=r"found no .*removed\.parquet") as caught:
        why("train:0", data, profile.clean)
    assert "dvc repro" in caught.value.fix


def test_an_output_older_than_the_stage_before_it_is_an_error(
    data: Workspace, profile, write_corpus, prose
) -> None:
    """First only `ingest` has run again on more text, then `clean` too."""
    later = write_corpus([prose(seed, 300) for seed in range(220)])
    shutil.rmtree(data.raw)
    ingest(profile.ingest.model_copy(update={"source": str(later)}), data.raw)
    with pytest.raises(UserError, match="documents, got an output that is older") as caught:
        why("d0210", data, profile.clean)
    assert caught.value.fix == "run `dvc repro decontaminate`"
    shutil.rmtree(data.documents)
    clean(profile.clean, data.raw, data.documents)
    with pytest.raises(UserError, match="tokens, got an output that is older"):
        why("d0210", data, profile.clean)


def test_a_damaged_file_is_an_error_that_names_it(data: Workspace, profile) -> None:
    split = why("d0000", data, profile.clean)["clean"]["split"]
    for path in (
        data.raw / "part-00000.parquet",
        data.documents / "dropped.parquet",
        data.documents / f"{split}.parquet",
        data.documents / "links.parquet",
        data.tokens / f"{split}.documents.parquet",
        data.shards / "removed.parquet",
    ):
        content = path.read_bytes()
        for damaged in (b"", b"garbage", content[:-5]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="got a file that cannot be read") as caught:
                why("d0000", data, profile.clean)
            assert "dvc checkout --force" in caught.value.fix
        path.write_bytes(content)
    assert why("d0000", data, profile.clean)["decontaminate"]


def test_the_terminal_and_json_say_the_same(data: Workspace, capsys: pytest.CaptureFixture) -> None:
    show_why("d0200", as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["clean"]["became"] == "kept"
    show_why("d0200", as_json=False)
    shown = capsys.readouterr().out
    # A narrow terminal breaks lines.
    words = " ".join(shown.replace("│", " ").split())
    for word in ("raw", "clean", "tokenize", "decontaminate", "evidence: near", "d0003", "kept"):
        assert word in words


def test_the_terminal_shows_brackets_as_they_stand(
    data: Workspace, capsys: pytest.CaptureFixture
) -> None:
    show_why("d0204", as_json=False)
    shown = capsys.readouterr().out
    assert BRACKETS in shown
    assert CUT in shown
