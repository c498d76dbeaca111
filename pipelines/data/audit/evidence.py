"""Small tables of facts about the files on disk, for the suites of `expectations`.

Everything is counted again from the files: no number in the manifest of an earlier stage is
trusted, and none of its code is used but the format of the shards.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.base.artifacts import MANIFEST_NAME, manifest_root, read_manifest, sha256_file
from pipelines.base.workspace import SPLITS
from pipelines.data.shards import SequenceFiles, shard_paths
from pipelines.data.text.arrays import hash_keys
from pipelines.data.text.shard_vocabulary import ShardVocabulary

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

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
    changed = _files_changed(directory)
    rows = [
        {
            "file": path.name,
            "schema": ", ".join(f"{field.name}: {field.type}" for field in file.schema_arrow),
            "documents": file.metadata.num_rows,
            "files_changed": changed,
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
    texts = {split: _Texts(file) for split, file in files.items()}
    repeated = _repeated([column.values for column in ids.values()])
    configured = read_manifest(directory)["split"]
    held_out = {name: configured[f"{name}_fraction"] for name in ("validation", "test")}
    documents = {split: clusters.documents_K for split, clusters in texts.items()}
    characters = {split: clusters.characters_K for split, clusters in texts.items()}
    num_documents = sum(int(sizes.sum()) for sizes in documents.values())
    mean_characters = sum(int(s.sum()) for s in characters.values()) / max(num_documents, 1)
    shares = {
        "": _shares({split: np.ones(len(s)) for split, s in documents.items()}, held_out, 1),
        "documents_": _shares(documents, held_out, 1),
        "characters_": _shares(characters, held_out, 2 * mean_characters),
    }
    changed = _files_changed(directory)
    rows = []
    for split, file in files.items():
        elsewhere = np.concatenate([texts[other].names_K for other in SPLITS if other != split])
        rows.append(
            {
                "split": split,
                "documents": file.metadata.num_rows,
                "files_changed": changed,
                "null_ids": ids[split].nulls,
                "repeated_ids": int(np.count_nonzero(np.isin(ids[split].values, repeated))),
                "null_texts": texts[split].nulls,
                "shortest_characters": texts[split].shortest or 0,
                "clusters": len(texts[split].names_K),
                "clusters_elsewhere": int(np.isin(texts[split].names_K, elsewhere).sum()),
                "configured_fraction": held_out.get(split, 1.0 - sum(held_out.values())),
                **{
                    f"{unit}{name}": value
                    for unit, of_split in shares.items()
                    for name, value in of_split[split].items()
                },
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Texts:
    """The texts of one split, and its K clusters: their names, documents and characters."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self.nulls, self.shortest = 0, None
        keys, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=["text", "cluster"]):
            length = pc.utf8_length(batch["text"])
            self.nulls += length.null_count
            shortest = [pc.min(length).as_py(), self.shortest]
            self.shortest = min((size for size in shortest if size is not None), default=None)
            lengths.append(length.fill_null(0).to_numpy())
            keys.append(hash_keys(batch["cluster"]))
        self.names_K, cluster, self.documents_K = np.unique(
            np.concatenate(keys), return_inverse=True, return_counts=True
        )
        self.characters_K = np.bincount(cluster, np.concatenate(lengths), len(self.names_K))


def _shares(
    sizes: dict[str, npt.NDArray[Any]], held_out: dict[str, float], smallest_bound: float
) -> dict[str, Row]:
    """Compare the share of every split with its configuration.

    A hash assigns clusters to splits, so the variance of what a split holds follows from the
    sizes of the clusters. Those above half of what a split is to hold must be in train (one of
    `smallest_bound` need not): they count neither in its expectation nor in its variance, so a
    split that holds one is far outside.

    Args:
        sizes: The sizes of the clusters of each split.
        held_out: The configured fractions of validation and test.
        smallest_bound: The least size above which a cluster is too large.

    Returns:
        For each split the share and its deviation in standard deviations.
    """
    all_sizes = np.concatenate(list(sizes.values())).astype(np.float64)
    total = all_sizes.sum()
    expected, variance = {"train": total}, {"train": 0.0}
    for split, fraction in held_out.items():
        free = all_sizes[all_sizes <= max(fraction * total / 2, smallest_bound)]
        expected[split] = fraction * free.sum()
        variance[split] = fraction * (1 - fraction) * (free**2).sum()
        expected["train"] -= expected[split]
        variance["train"] += variance[split]
    return {
        split: {
            "fraction": float(mine.sum() / max(total, 1)),
            "deviation_sigmas": float(
                (mine.sum() - expected[split]) / max(variance[split] ** 0.5, 1e-9)
            ),
        }
        for split, mine in sizes.items()
    }


def shards_table(directory: Path, documents: "pd.DataFrame") -> "pd.DataFrame":
    """Count the sequences and tokens of the final shards.

    Args:
        directory: The output of `decontaminate`.
        documents: The table of the documents, whose shares those of the tokens should be.

    Returns:
        One row per split, columns `expectations.shards.COLUMNS`. `files_changed` is of the
        whole directory, here as in the other tables; an `_off` column is a difference from
        the manifest.
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
    shares = documents.set_index("split")["characters_fraction"]
    total = sum(scan.sequences for scan in scans.values())
    changed = _files_changed(directory)
    rows = [
        {
            **_shards_row(directory, split, manifest, scans[split]),
            "files_changed": changed,
            "drift_bits": divergence_bits(scans[split].tokens, scans["train"].tokens),
            "fraction": scans[split].sequences / max(total, 1),
            "characters_fraction": shares[split],
            # One sequence more, as a small split is rounded to whole sequences.
            "fraction_ratio": scans[split].sequences / (shares[split] * total + 1),
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
    vocabulary = ShardVocabulary.read(directory)
    counts_V = scan.tokens[: len(vocabulary.tokens)]
    miscounted_V = counts_V != vocabulary.train_count_V
    return {
        "split": split,
        "sequences": sequences,
        "sequence_length": int(manifest["sequence_length"]),
        "manifest_sequences_off": abs(sequences - int(manifest["sequences"][split])),
        "side_rows_off": abs(sequences - side_rows),
        "smallest_id": int(found[0]) if len(found) else -1,
        "largest_id": int(found[-1]) if len(found) else -1,
        "documents_ended": int(scan.tokens[manifest["eos_token_id"]]),
        "impossible_tokens": int(counts_V[~vocabulary.possible_V].sum()),
        # Only train is counted there.
        "miscounted_ids": int(miscounted_V.sum()) if split == "train" else 0,
        "unk_rate": int(scan.tokens[manifest["unk_token_id"]]) / max(int(scan.tokens.sum()), 1),
        "duplicate_rate": scan.repeated / max(sequences, 1),
    }


def _files_changed(directory: Path) -> int:
    """Count what differs from the manifest: files, those missing on either side, and the root."""
    manifest = read_manifest(directory)
    listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    found = {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in directory.rglob("*")
        if path.is_file() and path.name != MANIFEST_NAME
    }
    changed = {name for name, _ in listed.items() ^ found.items()}
    if manifest_root(manifest["files"]) != manifest["root"]:
        changed.add(MANIFEST_NAME)
    if changed:
        log.warning("%s: changed since its manifest was written: %s", directory, sorted(changed))
    return len(changed)


def _repeated(keys: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """The second and later occurrences of every key, in order."""
    ordered = np.sort(np.concatenate([np.empty(0, np.uint64), *keys]))
    again: npt.NDArray[np.uint64] = ordered[1:][ordered[1:] == ordered[:-1]]
    return again


def _count(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)
