"""Tokenize: the stream is the documents, and every character is accounted for once."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.base.artifacts import read_manifest, verify_manifest
from pipelines.base.errors import UserError
from pipelines.base.workspace import SPLITS
from pipelines.data.shards import ShardReader
from pipelines.data.text.shard_vocabulary import ShardVocabulary, shard_tokenizer
from pipelines.data.text.vocabulary import load_tokenizer, vocabulary_file
from pipelines.data.tokenizer.fast import FastTokenizer
from pipelines.tokenize import tokenize

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def backend():
    tokenizer = load_tokenizer("bert-base-chinese").backend_tokenizer
    tokenizer.encode_special_tokens = True
    return FastTokenizer(tokenizer, end=102)


def everything(directory: Path, split: str) -> np.ndarray:
    return np.concatenate(list(ShardReader(directory, split)))


@pytest.mark.parametrize("split", SPLITS)
def test_the_shards_are_the_documents_end_to_end(sanguo: Path, split: str) -> None:
    tokenizer = shard_tokenizer(sanguo / "tokens")
    stream: list[int] = []
    starts = []
    table = pq.read_table(sanguo / "documents" / f"{split}.parquet")
    for text in table["text"].to_pylist():
        starts.append(len(stream))
        words = tokenizer.tokenize(text)
        stream += [*tokenizer.convert_tokens_to_ids(words), 102]
    packed = everything(sanguo / "tokens", split).reshape(-1)
    manifest = read_manifest(sanguo / "tokens")
    assert packed.tolist() == stream[: len(packed)]
    assert len(stream) - len(packed) == manifest["dropped_tokens"][split] < 256
    assert len(stream) == manifest["tokens"][split]
    documents = ShardReader(sanguo / "tokens", split).documents()
    assert documents["id"].to_pylist() == table["id"].to_pylist()
    assert documents["start_token"].to_pylist() == starts
    assert sum(documents["num_tokens"].to_pylist()) == len(stream)


def test_the_manifest_counts_unknown_tokens_honestly(sanguo: Path) -> None:
    manifest = verify_manifest(sanguo / "tokens")
    for split in SPLITS:
        rate = float((everything(sanguo / "tokens", split) == 100).mean())
        # The manifest counts the dropped rest and [SEP] too: nearly the same.
        assert manifest["unk_token_rate"][split] == pytest.approx(rate, abs=1e-3)
        assert rate < 0.001


def test_characters_are_those_of_the_text_without_white_space(sanguo: Path) -> None:
    """All but each sequence's first token is predicted: add those and the dropped rest."""
    tokens_NL = everything(sanguo / "tokens", "train")
    table = ShardReader(sanguo / "tokens", "train").sequences()
    texts = pq.read_table(sanguo / "documents" / "train.parquet")["text"].to_pylist()
    visible = sum(len("".join(text.split())) for text in texts)
    counted = sum(table["characters"].to_pylist())
    first_and_rest = len(tokens_NL) + read_manifest(sanguo / "tokens")["dropped_tokens"]["train"]
    assert counted <= visible <= counted + first_and_rest
    # In this text every [UNK] is one rare character.
    unknown = sum(table["unk_characters"].to_pylist())
    assert unknown == int((tokens_NL[:, 1:] == 100).sum())
    assert table["source_sequence"].to_pylist() == list(range(len(tokens_NL)))


@given(TEXT)
def test_no_code_point_counts_twice(backend, text: str) -> None:
    stream = backend.encode([text])
    assert len(stream.ids) == len(stream.characters)
    assert stream.characters.min() >= 0
    assert stream.characters.sum() <= len(text)
    assert stream.ids[-1] == 102
    assert stream.characters[-1] == 0


def test_a_syllable_of_several_tokens_counts_once(backend) -> None:
    stream = backend.encode(["한"])
    assert stream.characters.sum() == 1


def test_an_unknown_word_is_charged_all_its_characters(backend) -> None:
    stream = backend.encode(["曹\U0001f9ff\U0001f9ff\U0001f9ff操"])
    assert stream.ids.tolist()[1] == 100
    assert stream.characters.tolist() == [1, 3, 1, 0]


def test_the_name_of_a_special_token_in_a_text_ends_no_document(backend) -> None:
    stream = backend.encode(["以[SEP]分句，以[MASK]遮盖，[UNK]未知"])
    assert not set(stream.ids.tolist()[:-1]) & {100, 101, 102, 103}


def test_a_split_shorter_than_a_sequence_gives_no_sequence(
    write_raw, prose, profile, tmp_path: Path
) -> None:
    from pipelines.clean import clean

    raw = write_raw([prose(seed, 60) for seed in range(60)])
    clean(profile.clean, raw, tmp_path / "documents")
    params = profile.tokenize.model_copy(update={"sequence_length": 1024})
    tokenize(params, tmp_path / "documents", tmp_path / "tokens")
    manifest = read_manifest(tmp_path / "tokens")
    assert manifest["sequences"]["test"] == 0
    assert manifest["dropped_tokens"]["test"] == manifest["tokens"]["test"]
    reader = ShardReader(tmp_path / "tokens", "test")
    assert len(reader) == len(reader.sequences()) == 0


@pytest.mark.parametrize("lower_case", [True, False])
def test_the_ids_are_those_of_the_stated_configuration(
    write_raw, prose, profile, tmp_path: Path, lower_case: bool
) -> None:
    """Hugging Face's tokenizer itself, with the vocabulary file and `do_lower_case`."""
    from transformers import BertTokenizerFast

    from pipelines.clean import clean

    raw = write_raw([f"{prose(seed, 60)}NBA与Été，Café" for seed in range(60)])
    clean(profile.clean, raw, tmp_path / "documents")
    params = profile.tokenize.model_copy(
        update={"lower_case": lower_case, "learn_characters": False, "sequence_length": 8}
    )
    tokenize(params, tmp_path / "documents", tmp_path / "tokens")
    lines = vocabulary_file("bert-base-chinese").read_text(encoding="utf-8").split("\n")
    vocabulary = {token: index for index, token in enumerate(lines[:21128])}
    peer = BertTokenizerFast(vocab=vocabulary, do_lower_case=lower_case)
    stream: list[int] = []
    for text in pq.read_table(tmp_path / "documents" / "test.parquet")["text"].to_pylist():
        stream += [*peer(text, add_special_tokens=False)["input_ids"], 102]
    packed = everything(tmp_path / "tokens", "test").reshape(-1)
    assert packed.tolist() == stream[: len(packed)]
    assert len(packed) > 100
    assert (vocabulary["nba"] in stream) is lower_case
    assert read_manifest(tmp_path / "tokens")["lower_case"] is lower_case


def test_characters_of_train_are_learned_and_no_others(
    write_raw, prose, profile, tmp_path: Path
) -> None:
    """Each document has a mark of its own, and all have quotes."""
    from pipelines.clean import clean

    marks = [chr(0x20000 + seed) for seed in range(60)]
    raw = write_raw([f"“{prose(seed, 60)}”{mark * 3}" for seed, mark in enumerate(marks)])
    clean(profile.clean, raw, tmp_path / "documents")
    params = profile.tokenize.model_copy(update={"sequence_length": 8})
    tokenize(params, tmp_path / "documents", tmp_path / "tokens", workers=2)
    learned = read_manifest(tmp_path / "tokens")["learned_characters"]
    tokens = ShardVocabulary.read(tmp_path / "tokens").tokens
    assert {tokens[index]: index for index in learned.values()} == learned
    assert learned["“"] == 1 or learned["”"] == 1
    for split in SPLITS:
        texts = pq.read_table(tmp_path / "documents" / f"{split}.parquet")["text"].to_pylist()
        held = {mark for mark in marks if mark in "".join(texts)}
        assert held
        assert held <= learned.keys() if split == "train" else not held & learned.keys()
    # The same bytes from one process, and after all parts but the vocabulary were kept.
    tokenize(params, tmp_path / "documents", tmp_path / "again")
    assert read_manifest(tmp_path / "again")["root"] == read_manifest(tmp_path / "tokens")["root"]


def test_a_lost_document_fails_the_stage(sanguo: Path, profile, tmp_path: Path) -> None:
    shutil.copytree(sanguo / "documents", tmp_path / "documents")
    path = tmp_path / "documents" / "validation.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match="expected the documents that `clean` wrote"):
        tokenize(profile.tokenize, tmp_path / "documents", tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_many_batches_give_the_stream_of_one(sanguo: Path, profile, tmp_path: Path) -> None:
    """The rest of a batch continues in the next one, also across token shards."""
    import pipelines.data.tokenizer.part as module

    params = profile.tokenize.model_copy(update={"sequences_per_shard": 10})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DOCUMENTS_PER_BATCH", 2)
        tokenize(params, sanguo / "documents", tmp_path / "tokens")
    for split in ("validation", "test"):
        assert np.array_equal(
            everything(tmp_path / "tokens", split), everything(sanguo / "tokens", split)
        )
