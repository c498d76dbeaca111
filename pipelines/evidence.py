"""Small tables that say what the files on disk are, for the suites of `expectations`.

Everything is counted again from the files: no number of an earlier stage's
manifest is believed, and none of its code is asked.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.artifacts import read_manifest, sha256_file
from pipelines.errors import UserError
from pipelines.shards import TOKEN_DTYPE, Tokens
from pipelines.workspace import SPLITS

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

SEQUENCES_A_BLOCK = 8192


def raw_table(directory: Path) -> "pd.DataFrame":
    """Count what raw parquet files hold.

    Args:
        directory: The output of `ingest`.

    Returns:
        A row a file, columns `expectations.raw.COLUMNS`.
    """
    import pandas as pd

    from expectations.raw import COLUMNS

    paths = sorted(directory.glob("*.parquet"))
    files = [pq.ParquetFile(path) for path in paths]
    ids = [_read_column(file, "id") for file in files]
    repeated = _repeated(pa.chunked_array(ids, pa.string()))
    rows = [
        {
            "file": path.name,
            "schema": ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow),
            "documents": file.metadata.num_rows,
            "null_ids": column.null_count,
            "repeated_ids": _count(pc.is_in(column, value_set=repeated)),
            **_count_texts(file),
        }
        for path, file, column in zip(paths, files, ids, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _read_column(file: pq.ParquetFile, name: str) -> pa.Array:
    """A string column in one array; where there is none, as many nulls."""
    if name not in file.schema_arrow.names:
        return pa.nulls(file.metadata.num_rows, pa.string())
    column = file.read(columns=[name])[name].cast(pa.string())
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())


def _count_texts(file: pq.ParquetFile) -> Row:
    if "text" not in file.schema_arrow.names:
        return {"null_texts": file.metadata.num_rows, "empty_texts": 0}
    nulls = empty = 0
    for batch in file.iter_batches(columns=["text"]):
        nulls += batch.column(0).null_count
        empty += _count(pc.equal(pc.utf8_length(batch.column(0)), 0))
    return {"null_texts": nulls, "empty_texts": empty}


def documents_table(directory: Path) -> "pd.DataFrame":
    """Count the clean documents of each split, and how the split came out.

    Args:
        directory: The output of `clean`.

    Returns:
        A row a split, columns `expectations.documents.COLUMNS`.
    """
    import pandas as pd

    from expectations.documents import COLUMNS

    tables = {
        split: pq.read_table(directory / f"{split}.parquet", columns=["id", "text", "cluster"])
        for split in SPLITS
    }
    clusters = {split: set(table["cluster"].to_pylist()) for split, table in tables.items()}
    repeated = _repeated(pa.chunked_array([c for t in tables.values() for c in t["id"].chunks]))
    configured = read_manifest(directory)["split"]
    fractions = {name: configured[f"{name}_fraction"] for name in ("validation", "test")}
    fractions["train"] = 1.0 - sum(fractions.values())
    total = sum(len(keys) for keys in clusters.values())
    rows = []
    for split, table in tables.items():
        elsewhere = set().union(*(clusters[other] for other in SPLITS if other != split))
        fraction = fractions[split]
        expected = total * fraction
        shortest = pc.min(pc.utf8_length(table["text"])).as_py()
        rows.append(
            {
                "split": split,
                "documents": table.num_rows,
                "null_ids": table["id"].null_count,
                "repeated_ids": _count(pc.is_in(table["id"], value_set=repeated)),
                "null_texts": table["text"].null_count,
                "shortest_characters": shortest or 0,
                "clusters": len(clusters[split]),
                "clusters_elsewhere": len(clusters[split] & elsewhere),
                "configured_fraction": fraction,
                "fraction": len(clusters[split]) / max(total, 1),
                "deviation_sigmas": (len(clusters[split]) - expected)
                / max(expected * (1.0 - fraction), 1e-9) ** 0.5,
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def shards_table(directory: Path) -> "pd.DataFrame":
    """Count the sequences and tokens of the final shards.

    Args:
        directory: The output of `decontaminate`.

    Returns:
        A row a split, columns `expectations.shards.COLUMNS`. `files_changed` are
        the files whose hash is not that of the manifest; an `_off` column is a
        difference to it.
    """
    import pandas as pd

    from expectations.shards import COLUMNS

    manifest = read_manifest(directory)
    length = int(manifest["sequence_length"])
    counts = {
        split: token_counts(read_shards(directory, split, length), manifest["vocabulary_size"])
        for split in SPLITS
    }
    rows = [
        {
            **_shards_row(directory, split, manifest, length),
            "drift_bits": divergence_bits(counts[split], counts["train"]),
        }
        for split in SPLITS
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def token_counts(pieces: list[Tokens], vocabulary_size: int) -> npt.NDArray[np.int64]:
    """How often each id occurs; ids that the vocabulary does not have come after it."""
    counts = np.zeros(max(vocabulary_size, 1 << 16), np.int64)
    for piece in pieces:
        for start in range(0, len(piece), SEQUENCES_A_BLOCK):
            block = piece[start : start + SEQUENCES_A_BLOCK].reshape(-1)
            counts += np.bincount(block, minlength=len(counts))
    return counts


def divergence_bits(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    """Jensen-Shannon divergence of two histograms (Lin, 1991), in [0, 1] bits.

    1 if one of them is empty: nothing is known to be alike.
    """
    if not a.sum() or not b.sum():
        return 1.0
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2
    parts = (np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])) for x in (p, q))
    return float(max(sum(parts) / 2, 0.0))


def _shards_row(directory: Path, split: str, manifest: dict[str, Any], length: int) -> Row:
    pieces = read_shards(directory, split, length)
    sequences = sum(len(piece) for piece in pieces)
    unknown = sum(int(np.count_nonzero(p == manifest["unk_token_id"])) for p in pieces)
    ended = sum(int(np.count_nonzero(p == manifest["eos_token_id"])) for p in pieces)
    side_rows = pq.read_metadata(directory / f"{split}.sequences.parquet").num_rows
    return {
        "split": split,
        "sequences": sequences,
        "sequence_length": length,
        "manifest_sequences_off": abs(sequences - int(manifest["sequences"][split])),
        "side_rows_off": abs(sequences - side_rows),
        "files_changed": _files_changed(directory, split, manifest),
        "smallest_id": min((int(piece.min()) for piece in pieces), default=-1),
        "largest_id": max((int(piece.max()) for piece in pieces), default=-1),
        "documents_ended": ended,
        "unk_rate": unknown / max(sequences * length, 1),
        "duplicate_rate": _duplicates(pieces) / max(sequences, 1),
    }


def _duplicates(pieces: list[Tokens]) -> int:
    """Count the sequences that stand before in their split, by a hash of 64 bits."""
    keys = [np.empty(0, np.uint64)]
    for piece in pieces:
        multipliers = np.random.default_rng(0).integers(
            2**63, size=piece.shape[1], dtype=np.uint64, endpoint=True
        )
        for start in range(0, len(piece), SEQUENCES_A_BLOCK):
            block = piece[start : start + SEQUENCES_A_BLOCK].astype(np.uint64)
            keys.append((block * (2 * multipliers + np.uint64(1))).sum(axis=1, dtype=np.uint64))
    ordered = np.sort(np.concatenate(keys))
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def _files_changed(directory: Path, split: str, manifest: dict[str, Any]) -> int:
    """Count the files of a split that are not what the manifest lists, or are not in it."""
    listed = {
        entry["path"]: entry["sha256"]
        for entry in manifest["files"]
        if entry["path"].startswith((f"{split}-", f"{split}."))
    }
    found = {
        path.name: sha256_file(path)
        for pattern in (f"{split}-*", f"{split}.*")
        for path in directory.glob(pattern)
    }
    return len({name for name, _ in listed.items() ^ found.items()})


def read_shards(directory: Path, split: str, length: int) -> list[Tokens]:
    """Map the shards of a split, whatever a manifest says of their number.

    Args:
        directory: The final shards.
        split: Name of the split.
        length: Tokens a sequence.

    Returns:
        (N, L) uint16 a file, in the order of the files.

    Raises:
        UserError: If a file does not hold whole sequences.
    """
    pieces = []
    for path in sorted(directory.glob(f"{split}-*.bin")):
        size = path.stat().st_size
        if size == 0 or size % (TOKEN_DTYPE.itemsize * length):
            raise UserError(
                f"{path}: expected whole sequences of {length} tokens, came {size} bytes",
                "restore the file with `dvc checkout --force`, or run `dvc repro`",
            )
        pieces.append(np.memmap(path, dtype=TOKEN_DTYPE, mode="r").reshape(-1, length))
    return pieces


def _repeated(values: pa.ChunkedArray) -> pa.Array:
    """The values that occur more than once; null is not a value."""
    counts = pc.value_counts(values.drop_null())
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values")


def _count(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)
