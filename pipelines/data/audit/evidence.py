"""Small tables of facts about the files on disk, for the suites of `expectations`.

Everything is counted again from the files: no number in the manifest of an earlier stage is
trusted, and none of its code is used but the format of the shards.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.base.artifacts import read_manifest, sha256_file
from pipelines.base.workspace import SPLITS
from pipelines.data.shards import SequenceFiles, shard_paths
from pipelines.data.text.arrays import hash_keys

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

ROWS_PER_BATCH = 1024


def raw_table(directory: Path) -> "pd.DataFrame":
    """Count what raw parquet files hold.

    Args:
        directory: The output of `ingest`.

    Returns:
        One row per file, columns `expectations.raw.COLUMNS`.
    """
    import pandas as pd

    from expectations.raw import COLUMNS

    paths = sorted(directory.glob("*.parquet"))
    files = [pq.ParquetFile(path, pre_buffer=False) for path in paths]
    ids = [_Keys(file, "id") for file in files]
    repeated = _repeated([column.values for column in ids])
    rows = [
        {
            "file": path.name,
            "schema": ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow),
            "documents": file.metadata.num_rows,
            "null_ids": keys.nulls,
            "repeated_ids": int(np.count_nonzero(np.isin(keys.values, repeated))),
            **_count_texts(file),
        }
        for path, file, keys in zip(paths, files, ids, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Keys:
    """A column of strings as hashes of 64 bits, as a corpus of strings does not fit into memory.

    Args:
        file: An open parquet file.
        name: The column; if it is missing, every row counts as null.
    """

    def __init__(self, file: pq.ParquetFile, name: str) -> None:
        self.nulls = 0 if name in file.schema_arrow.names else int(file.metadata.num_rows)
        keys = [np.empty(0, np.uint64)]
        if not self.nulls:
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[name]):
                column = batch.column(0).cast(pa.string())
                self.nulls += column.null_count
                keys.append(hash_keys(column.drop_null()))
        self.values = np.concatenate(keys)


def _count_texts(file: pq.ParquetFile) -> Row:
    if "text" not in file.schema_arrow.names:
        return {"null_texts": file.metadata.num_rows, "empty_texts": 0}
    nulls = empty = 0
    for batch in file.iter_batches(ROWS_PER_BATCH, columns=["text"]):
        nulls += batch.column(0).null_count
        empty += _count(pc.equal(pc.utf8_length(batch.column(0)), 0))
    return {"null_texts": nulls, "empty_texts": empty}


def documents_table(directory: Path) -> "pd.DataFrame":
    """Count the clean documents of each split, and compare the split with its configuration.

    Args:
        directory: The output of `clean`.

    Returns:
        One row per split, columns `expectations.documents.COLUMNS`.
    """
    import pandas as pd

    from expectations.documents import COLUMNS

    files = {
        split: pq.ParquetFile(directory / f"{split}.parquet", pre_buffer=False) for split in SPLITS
    }
    ids = {split: _Keys(file, "id") for split, file in files.items()}
    clusters = {split: np.unique(_Keys(file, "cluster").values) for split, file in files.items()}
    repeated = _repeated([column.values for column in ids.values()])
    configured = read_manifest(directory)["split"]
    fractions = {name: configured[f"{name}_fraction"] for name in ("validation", "test")}
    fractions["train"] = 1.0 - sum(fractions.values())
    total = sum(len(keys) for keys in clusters.values())
    rows = []
    for split, file in files.items():
        elsewhere = np.concatenate([clusters[other] for other in SPLITS if other != split])
        fraction = fractions[split]
        expected = total * fraction
        rows.append(
            {
                "split": split,
                "documents": file.metadata.num_rows,
                "null_ids": ids[split].nulls,
                "repeated_ids": int(np.count_nonzero(np.isin(ids[split].values, repeated))),
                **_measure_texts(file),
                "clusters": len(clusters[split]),
                "clusters_elsewhere": int(np.isin(clusters[split], elsewhere).sum()),
                "configured_fraction": fraction,
                "fraction": len(clusters[split]) / max(total, 1),
                "deviation_sigmas": (len(clusters[split]) - expected)
                / max(expected * (1.0 - fraction), 1e-9) ** 0.5,
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measure_texts(file: pq.ParquetFile) -> Row:
    nulls, shortest = 0, None
    for batch in file.iter_batches(ROWS_PER_BATCH, columns=["text"]):
        texts = batch.column(0)
        nulls += texts.null_count
        lengths = [pc.min(pc.utf8_length(texts)).as_py(), shortest]
        shortest = min((length for length in lengths if length is not None), default=None)
    return {"null_texts": nulls, "shortest_characters": shortest or 0}


def shards_table(directory: Path) -> "pd.DataFrame":
    """Count the sequences and tokens of the final shards.

    Args:
        directory: The output of `decontaminate`.

    Returns:
        One row per split, columns `expectations.shards.COLUMNS`. `files_changed`
        counts the files whose hash differs from the manifest's; an `_off` column is a
        difference from it.
    """
    import pandas as pd

    from expectations.shards import COLUMNS

    manifest = read_manifest(directory)
    length = int(manifest["sequence_length"])
    scans = {
        split: _Scan(
            SequenceFiles(shard_paths(directory, split), length), manifest["vocabulary_size"]
        )
        for split in SPLITS
    }
    rows = [
        {
            **_shards_row(directory, split, manifest, scans[split]),
            "drift_bits": divergence_bits(scans[split].tokens, scans["train"].tokens),
        }
        for split in SPLITS
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Scan:
    """One pass over a split: the counts of its ids, and its repeated sequences."""

    def __init__(self, files: SequenceFiles, vocabulary_size: int) -> None:
        self.sequences = len(files)
        # Room for ids outside the vocabulary as well.
        self.tokens = np.zeros(max(vocabulary_size, 1 << 16), np.int64)
        odd = 2 * np.random.default_rng(0).integers(
            2**63, size=files.sequence_length, dtype=np.uint64, endpoint=True
        ) + np.uint64(1)
        keys = []
        for block in files:
            self.tokens += np.bincount(block.reshape(-1), minlength=len(self.tokens))
            # Repeated sequences are recognised by a hash of 64 bits.
            keys.append((block * odd).sum(axis=1, dtype=np.uint64))
        self.repeated = len(_repeated(keys))


def divergence_bits(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    """Jensen-Shannon divergence of two histograms (Lin, 1991), in [0, 1] bits.

    1 if one of them is empty.
    """
    if not a.sum() or not b.sum():
        return 1.0
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2
    parts = (np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])) for x in (p, q))
    return float(max(sum(parts) / 2, 0.0))


def _shards_row(directory: Path, split: str, manifest: dict[str, Any], scan: _Scan) -> Row:
    sequences = scan.sequences
    side_rows = pq.read_metadata(directory / f"{split}.sequences.parquet").num_rows
    found = np.flatnonzero(scan.tokens)
    return {
        "split": split,
        "sequences": sequences,
        "sequence_length": int(manifest["sequence_length"]),
        "manifest_sequences_off": abs(sequences - int(manifest["sequences"][split])),
        "side_rows_off": abs(sequences - side_rows),
        "files_changed": _files_changed(directory, split, manifest),
        "smallest_id": int(found[0]) if len(found) else -1,
        "largest_id": int(found[-1]) if len(found) else -1,
        "documents_ended": int(scan.tokens[manifest["eos_token_id"]]),
        "unk_rate": int(scan.tokens[manifest["unk_token_id"]]) / max(int(scan.tokens.sum()), 1),
        "duplicate_rate": scan.repeated / max(sequences, 1),
    }


def _files_changed(directory: Path, split: str, manifest: dict[str, Any]) -> int:
    """Count the files of a split that differ from the manifest, or are missing on either side."""
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


def _repeated(keys: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """The second and later occurrences of every key, in order."""
    ordered = np.sort(np.concatenate([np.empty(0, np.uint64), *keys]))
    again: npt.NDArray[np.uint64] = ordered[1:][ordered[1:] == ordered[:-1]]
    return again


def _count(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)
