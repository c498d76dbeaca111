"""Clean one part of the raw corpus: normalise, remove leftovers, filter and sign.

kept.arrow       documents to keep: `id`, `url`, `title`, `text`; `key`, by which texts are
                 compared (`pipelines/data/text/folding.py`), and its `digest`; `title_key`,
                 `characters` (of the text) and `row`
dropped.arrow    the others, with the reason
signatures.bin   (H, D) uint32, the MinHash signatures of the kept ones, one hash per row
removed.parquet  the first pieces that every rule removed
facts.json       counts
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.artifacts import write_json
from pipelines.data.cleaning.leftovers import Removed, remove_leftovers
from pipelines.data.cleaning.minhash import minhash_signatures
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.data.text.folding import document_keys, title_keys
from pipelines.data.text.normalisation import normalise, to_simplified
from pipelines.data.text.scripts import HAN, KANA
from pipelines.params import CleanParams

DIGEST_BYTES = 16
TITLE_BYTES = 8
ROWS_PER_BATCH = 1024
KEPT_SCHEMA = pa.schema(
    [
        *RAW_SCHEMA,
        # Null for an empty title, which joins no documents.
        ("title_key", pa.binary(TITLE_BYTES)),
        ("characters", pa.int32()),
        ("row", pa.int64()),
        ("key", pa.large_string()),
        ("digest", pa.binary(DIGEST_BYTES)),
    ]
)
# What the division into kept and dropped documents knows.
DIVIDED_SCHEMA = pa.schema(list(KEPT_SCHEMA)[:-2])
DROPPED_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "title", "reason", "twin", "text")),
        ("row", pa.int64()),
    ]
)
REMOVED_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "rule", "text")])
HAN_KIND, KANA_KIND, SPACE_KIND = 1, 2, 3


@dataclass(frozen=True)
class Part:
    """What a worker of `clean` needs to know.

    Args:
        path: A parquet file of raw documents.
        params: The section `clean`.
    """

    path: Path
    params: CleanParams


def clean_part(part: Part, directory: Path) -> None:
    """Clean the documents of one raw file.

    Args:
        part: The file and the rules.
        directory: Where the files described above go.

    Raises:
        UserError: If OpenCC is needed and not installed.
    """
    params = part.params.near_duplicates
    removed = Removed()
    reasons: Counter[str] = Counter()
    blocks = []
    row = 0
    with (
        pa.OSFile(str(directory / "kept.arrow"), "wb") as kept_file,
        pa.ipc.new_file(kept_file, KEPT_SCHEMA) as kept,
        pa.OSFile(str(directory / "dropped.arrow"), "wb") as dropped_file,
        pa.ipc.new_file(dropped_file, DROPPED_SCHEMA) as dropped,
        pq.ParquetFile(part.path, pre_buffer=False) as parquet,
    ):
        for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=RAW_SCHEMA.names):
            to_keep, to_drop = _divide(batch.to_pylist(), row, part.params, removed)
            row += batch.num_rows
            reasons.update(document["reason"] for document in to_drop)
            dropped.write_batch(pa.RecordBatch.from_pylist(to_drop, schema=DROPPED_SCHEMA))
            table = pa.RecordBatch.from_pylist(to_keep, schema=DIVIDED_SCHEMA)
            keys = document_keys(table["text"])
            columns = [*table.columns, keys, pa.array(_digests(keys), pa.binary(DIGEST_BYTES))]
            kept.write_batch(pa.record_batch(columns, schema=KEPT_SCHEMA))
            blocks.append(minhash_signatures(keys, params).T)
    empty = np.empty((params.bands * params.rows_per_band, 0), np.uint32)
    np.concatenate([empty, *blocks], axis=1).astype("<u4").tofile(directory / "signatures.bin")
    pieces = [dict(zip(REMOVED_SCHEMA.names, piece, strict=True)) for piece in removed.pieces]
    pq.write_table(
        pa.Table.from_pylist(pieces, schema=REMOVED_SCHEMA), directory / "removed.parquet"
    )
    facts = {"removed": dict(removed.counts), "dropped": dict(reasons), "documents": row}
    write_json(directory / "facts.json", facts)


def _divide(
    documents: list[dict[str, Any]], first_row: int, params: CleanParams, removed: Removed
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divide documents into those to keep and those to drop."""
    texts = [clean_text(d["id"], d["text"], params, removed) for d in documents]
    reasons = drop_reasons(texts, params)
    titles = [normalise(document["title"]) for document in documents]
    if params.script == "simplified":
        titles = list(map(to_simplified(), titles))
    keys = title_keys(titles)
    kept, dropped = [], []
    for row, (document, title, key, text, reason) in enumerate(
        zip(documents, titles, keys, texts, reasons, strict=True)
    ):
        named = {**document, "title": title, "text": text, "row": first_row + row}
        if reason:
            dropped.append({**named, "reason": reason})
            continue
        named["characters"] = len(text)
        named["title_key"] = hashlib.sha256(key.encode()).digest()[:TITLE_BYTES] if key else None
        kept.append(named)
    return kept, dropped


def _digests(keys: pa.Array) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest()[:DIGEST_BYTES] for key in keys.to_pylist()]


def clean_text(document: str, text: str, params: CleanParams, removed: Removed) -> str:
    """Normalise a text, remove leftovers and convert its script.

    Args:
        document: Its id, for the samples.
        text: The raw text.
        params: The section `clean`.
        removed: Counts and samples of what is removed are added to it.

    Returns:
        The clean text.
    """
    text = normalise(text)
    if params.remove_wiki_leftovers:
        without = remove_leftovers(document, text, params.script, removed)
        text = text if without == text else normalise(without)
    if params.script == "simplified":
        text = normalise(to_simplified()(text))
    return text


def drop_reasons(texts: list[str], params: CleanParams) -> list[str]:
    """Say why each clean text is dropped: `short`, `long`, `not_chinese`, or "" to keep it.

    A text is Chinese if, among the characters that are not white space, enough are Han and
    fewer are kana than in Japanese.
    """
    spaces, han, kana = _counts(texts, (SPACE_KIND, HAN_KIND, KANA_KIND))
    reasons = []
    for text, num_spaces, num_han, num_kana in zip(texts, spaces, han, kana, strict=True):
        visible = len(text) - num_spaces
        if len(text) < params.min_characters:
            reasons.append("short")
        elif params.max_characters is not None and len(text) > params.max_characters:
            reasons.append("long")
        elif num_han < params.min_han_share * visible or num_kana > params.max_kana_share * visible:
            reasons.append("not_chinese")
        else:
            reasons.append("")
    return reasons


@lru_cache
def _kinds() -> npt.NDArray[np.uint8]:
    """The kind of every code point."""
    kinds = np.zeros(0x110000, np.uint8)
    for kind, ranges in ((HAN_KIND, HAN), (KANA_KIND, KANA)):
        for start, stop in ranges:
            kinds[start:stop] = kind
    kinds[[point for point in range(0x3001) if chr(point).isspace()]] = SPACE_KIND
    return kinds


def _counts(texts: list[str], wanted: tuple[int, ...]) -> list[list[int]]:
    """Count the characters of each kind in each text."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    kinds = _kinds()[points]
    lengths = np.array([len(text) for text in texts])
    starts = np.cumsum(lengths) - lengths
    filled = lengths > 0
    counts = np.zeros((len(wanted), len(texts)), np.int64)
    for row, kind in enumerate(wanted):
        if filled.any():
            # For an empty text, `reduceat` would return the first character of the next one.
            is_mine = (kinds == kind).view(np.uint8)
            counts[row, filled] = np.add.reduceat(is_mine, starts[filled], dtype=np.int64)
    return counts.tolist()


def read_arrow(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read the record batches of an Arrow file one by one, without mapping it.

    Args:
        path: The file.
        columns: The columns to read; all of them by default.
    """
    with pa.OSFile(str(path)) as source:
        schema = pa.ipc.open_file(source).schema
        fields = [schema.get_field_index(name) for name in columns or schema.names]
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        with pa.ipc.open_file(source, options=options) as file:
            for index in range(file.num_record_batches):
                yield file.get_batch(index)
