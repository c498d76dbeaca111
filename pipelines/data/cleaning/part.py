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
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.base.artifacts import write_json
from pipelines.data.cleaning.leftovers import Removed, remove_leftovers
from pipelines.data.cleaning.minhash import minhash_signatures
from pipelines.data.text.arrays import text_array, utf8_views
from pipelines.data.text.compiled import have_numba
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
# Kinds of characters; 0 are the others.
HAN_KIND, KANA_KIND, SPACE_KIND = 1, 2, 3
KINDS = 4


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
            to_keep, to_drop = _divide(batch, row, part.params, removed)
            row += batch.num_rows
            reasons.update(to_drop["reason"].to_pylist())
            dropped.write_batch(to_drop)
            keys = document_keys(to_keep["text"])
            columns = [*to_keep.columns, keys, pa.array(_digests(keys), pa.binary(DIGEST_BYTES))]
            kept.write_batch(pa.record_batch(columns, schema=KEPT_SCHEMA))
            blocks.append(minhash_signatures(keys, params).T)
    with (directory / "signatures.bin").open("wb") as signatures:
        # Hash by hash: all of them side by side would be in memory twice.
        for hashes in zip(*blocks, strict=True):
            for block in hashes:
                signatures.write(block.astype("<u4", copy=False).tobytes())
    pieces = [dict(zip(REMOVED_SCHEMA.names, piece, strict=True)) for piece in removed.pieces]
    pq.write_table(
        pa.Table.from_pylist(pieces, schema=REMOVED_SCHEMA), directory / "removed.parquet"
    )
    facts = {"removed": dict(removed.counts), "dropped": dict(reasons), "documents": row}
    write_json(directory / "facts.json", facts)


def _divide(
    documents: pa.RecordBatch, first_row: int, params: CleanParams, removed: Removed
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Divide documents into those to keep (`DIVIDED_SCHEMA`) and those to drop."""
    pairs = zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True)
    texts = [clean_text(name, text, params, removed) for name, text in pairs]
    titles = list(map(normalise, documents["title"].to_pylist()))
    if params.script == "simplified":
        titles = list(map(to_simplified(), titles))
    reasons = drop_reasons(texts, params)
    size = len(texts)
    columns = {
        "id": documents["id"],
        "url": documents["url"],
        "title": pa.array(titles, pa.string()),
        "text": pa.array(texts, pa.string()),
        "title_key": pa.array(map(_title_digest, title_keys(titles)), pa.binary(TITLE_BYTES)),
        "characters": pa.array(map(len, texts), pa.int32()),
        "row": pa.array(range(first_row, first_row + size), pa.int64()),
        "reason": pa.array(reasons, pa.string()),
        "twin": pa.nulls(size, pa.string()),
    }
    is_kept = pa.array([not reason for reason in reasons], pa.bool_())
    kept, dropped = (
        pa.record_batch([columns[name] for name in schema.names], schema=schema).filter(chosen)
        for schema, chosen in ((DIVIDED_SCHEMA, is_kept), (DROPPED_SCHEMA, pc.invert(is_kept)))
    )
    return kept, dropped


def _title_digest(key: str) -> bytes | None:
    return hashlib.sha256(key.encode()).digest()[:TITLE_BYTES] if key else None


def _digests(keys: pa.Array) -> list[bytes]:
    data, offsets = utf8_views(keys)
    content = data.data
    return [
        hashlib.sha256(content[start:stop]).digest()[:DIGEST_BYTES]
        for start, stop in pairwise(offsets.tolist())
    ]


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


def drop_reasons(
    texts: list[str], params: CleanParams, *, use_numba: bool | None = None
) -> list[str]:
    """Say why each clean text is dropped: `short`, `long`, `not_chinese`, or "" to keep it.

    A text is Chinese if, among the characters that are not white space, enough are Han and
    fewer are kana than in Japanese.

    Args:
        texts: The texts.
        params: The section `clean`.
        use_numba: Whether to compile the loop; by default if numba is installed.
    """
    count_kinds = _count_compiled if have_numba(use_numba) else _count_kinds
    _, han, kana, spaces = count_kinds(texts).T.tolist()
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


def _count_compiled(texts: list[str]) -> npt.NDArray[np.int64]:
    from pipelines.data.cleaning import kernels

    data, offsets = utf8_views(text_array(texts))
    counts_DK = np.zeros((len(texts), KINDS), np.int64)
    kernels.count_kinds(data, offsets, _kinds(), counts_DK)
    return counts_DK


def _count_kinds(texts: list[str]) -> npt.NDArray[np.int64]:
    """Count the characters of each kind in each text."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    lengths = np.array([len(text) for text in texts])
    text_of = np.repeat(np.arange(len(texts)), lengths)
    found = np.bincount(text_of * KINDS + _kinds()[points], minlength=len(texts) * KINDS)
    return found.reshape(len(texts), KINDS)


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
