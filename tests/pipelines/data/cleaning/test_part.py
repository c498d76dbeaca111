"""A cleaned part: what stays and what goes, with reasons, rows and signatures."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.base.artifacts import read_json
from pipelines.data.cleaning.minhash import minhash_signatures
from pipelines.data.cleaning.part import Part, clean_part, drop_reasons, read_arrow
from pipelines.data.text.arrays import text_array
from pipelines.data.text.folding import fold


def test_a_part_keeps_drops_and_signs_its_documents(
    write_corpus, prose, profile, tmp_path: Path
) -> None:
    texts = [prose(0, 80), "短", prose(1, 80)]
    clean_part(Part(write_corpus(texts, titles=["甲", "乙", " "]), profile.clean), tmp_path)
    kept = pa.Table.from_batches(read_arrow(tmp_path / "kept.arrow"))
    assert kept["row"].to_pylist() == [0, 2]
    assert kept["text"].to_pylist() == [texts[0], texts[2]]
    assert kept["key"].to_pylist() == [fold(text) for text in kept["text"].to_pylist()]
    assert kept["title_key"].is_null().to_pylist() == [False, True]
    assert kept["characters"].to_pylist() == [80, 80]
    (dropped,) = read_arrow(tmp_path / "dropped.arrow", ["id", "reason", "row"])
    assert dropped.to_pylist() == [{"id": "d0001", "reason": "short", "row": 1}]
    signatures_HD = np.fromfile(tmp_path / "signatures.bin", "<u4").reshape(-1, 2)
    expected = minhash_signatures(text_array(kept["key"]), profile.clean.near_duplicates)
    assert np.array_equal(signatures_HD.T, expected)
    facts = read_json(tmp_path / "facts.json")
    assert facts == {"removed": {}, "dropped": {"short": 1}, "documents": 3}


def test_filters_say_why(profile) -> None:
    params = profile.clean.model_copy(update={"max_characters": 200})
    texts = ["短", "曹操起兵" * 20, "曹操起兵" * 60, "The quick brown fox. " * 5]
    texts.append("これはにほんごのぶんしょうです、東京都千代田区。" * 4)
    assert drop_reasons(texts, params) == ["short", "", "long", "not_chinese", "not_chinese"]
    assert drop_reasons(["曹\u3000 \n操" * 20], params) == [""]


def test_an_empty_text_takes_nothing_from_its_neighbours(profile) -> None:
    params = profile.clean.model_copy(update={"min_characters": 1})
    texts = ["", "三国", "", "kana かな", "", "english", ""]
    reasons = ["short", "", "short", "not_chinese", "short", "not_chinese", "short"]
    for use_numba in (True, False):
        assert drop_reasons(texts, params, use_numba=use_numba) == reasons
        assert drop_reasons([""], params, use_numba=use_numba) == ["short"]
