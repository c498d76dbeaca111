"""The table holds train alone, counted from shards that passed, and training takes no other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.base.artifacts import read_json, read_manifest, write_json, write_manifest
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.count_ngrams import main
from pipelines.data.shards import ShardReader
from pipelines.params import load_params
from pipelines.train import prepare
from tests.support import TINY_NGRAMS, TINY_POSSIBLE, TINY_RUN


@pytest.fixture
def counted(shards: Path, set_params: Any) -> Path:
    """The n-grams of the tiny shards, counted by the stage."""
    set_params({**TINY_RUN, "count_ngrams": TINY_NGRAMS})
    main()
    return Workspace("sanguo").ngrams


def test_train_alone_is_counted(counted: Path, shards: Path) -> None:
    train = np.concatenate(list(ShardReader(shards, "train")))
    ids, number = np.unique(train, return_counts=True)
    reachable = ids[number >= TINY_NGRAMS["min_token_count"]]
    manifest = read_manifest(counted)
    assert 0 < len(reachable) < len(ids)
    assert manifest["num_classes"] == len(reachable) + 1
    assert manifest["num_other"] == TINY_POSSIBLE - len(reachable), "the possible ids that are left"
    assert manifest["shards_root"] == read_manifest(shards)["root"]
    classes = np.searchsorted(reachable, train)
    classes[~np.isin(train, reachable)] = len(reachable)
    bigrams = np.unique(classes[:, :-1] * 100 + classes[:, 1:])
    tensors = load_file(counted / "ngrams.safetensors")
    assert [(key >> 16) * 100 + (key & 0xFFFF) for key in tensors["keys_2"]] == bigrams.tolist()
    assert tensors["counts_3"].sum() == train[:, 2:].size


def test_a_second_run_writes_the_same_bytes(counted: Path) -> None:
    root = read_manifest(counted)["root"]
    main()
    assert read_manifest(counted)["root"] == root


def test_without_a_memory_only_the_manifest_is_written(counted: Path, set_params: Any) -> None:
    set_params({"count_ngrams": None})
    main()
    assert [path.name for path in counted.iterdir()] == ["manifest.json"]
    assert read_manifest(counted)["order"] == 0


def test_shards_that_did_not_pass_are_not_counted(counted: Path) -> None:
    certificate = Workspace("sanguo").report("validate") / "certificate.json"
    write_json(certificate, {**read_json(certificate), "passed": False})
    before = read_manifest(counted)["root"]
    with pytest.raises(GateError, match="did not pass"):
        main()
    assert read_manifest(counted)["root"] == before, "what was there is left alone"
    certificate.unlink()
    with pytest.raises(UserError, match="certificate"):
        main()


def test_shards_that_changed_are_not_counted(counted: Path, shards: Path) -> None:
    path = shards / "train-00000.bin"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match="expected sha256"):
        main()


def test_a_table_of_other_shards_never_trains(counted: Path, set_params: Any) -> None:
    profile = load_params().profile
    name = prepare(Workspace("sanguo"), profile)[1].fingerprint
    facts = {
        key: value
        for key, value in read_manifest(counted).items()
        if key not in {"stage", "root", "files"}
    }
    write_manifest(counted, stage="count_ngrams", facts={**facts, "shards_root": "f" * 64})
    with pytest.raises(GateError, match="counted from shards ffffffffffff"):
        prepare(Workspace("sanguo"), profile)
    # The remedy that the message names.
    main()
    assert prepare(Workspace("sanguo"), profile)[1].fingerprint == name
    set_params({"count_ngrams.max_entries": 1000})
    main()
    assert prepare(Workspace("sanguo"), profile)[1].fingerprint != name, (
        "another table, another run"
    )


def test_a_threshold_that_leaves_no_class_of_others_is_refused(
    shards: Path, set_params: Any
) -> None:
    set_params({"count_ngrams": {**TINY_NGRAMS, "min_token_count": 10**6}})
    with pytest.raises(UserError, match=r"change count_ngrams\.min_token_count"):
        main()
