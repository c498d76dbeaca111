"""Raw parquet to clean documents, split by document: `python -m pipelines.clean`.

Writes `train.parquet`, `validation.parquet`, `test.parquet` (`id`, `url`, `title`,
`text`, `cluster`), `dropped.parquet` (`id`, `title`, `reason`, `text`) and a manifest.

Near duplicates, and documents of one title (passages of one article), form a
cluster. A cluster is kept, but never straddles splits.
"""

import hashlib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.artifacts import publish_directory, write_manifest
from pipelines.errors import UserError
from pipelines.near_duplicates import UnionFind, join_near_duplicates
from pipelines.params import CleanParams, SplitParams, load_params
from pipelines.sources import RAW_SCHEMA
from pipelines.stage import progress, run_stage
from pipelines.workspace import SPLITS, Workspace

log = logging.getLogger(__name__)

# Change it with `normalise`: the manifest says which rules made a text.
NORMALISATION = 1
LINE_END = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# All control characters but the newline, and the byte-order mark.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
BLANK_LINES = re.compile("\n{3,}")

DOCUMENT_SCHEMA = RAW_SCHEMA.append(pa.field("cluster", pa.string()))
DROPPED_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "title", "reason", "text")])


@dataclass(frozen=True)
class Document:
    """A document of the raw corpus, its text normalised."""

    id: str
    url: str
    title: str
    text: str


def normalise(text: str) -> str:
    r"""Unify what carries no content; rules of version `NORMALISATION`.

    Unicode NFC; every line end becomes \n and a tab a space; other control
    characters go; lines lose the white space at their ends (U+3000 too), and
    more than one blank line becomes one.

    Args:
        text: Any text.

    Returns:
        The text with every visible character kept. Normalising twice changes nothing.
    """
    text = unicodedata.normalize("NFC", text)
    text = LINE_END.sub("\n", text).replace("\t", " ")
    text = CONTROL.sub("", text)
    text = "\n".join(line.strip() for line in text.split("\n"))
    return BLANK_LINES.sub("\n\n", text).strip()


def title_key(title: str) -> str:
    """What makes two titles one: compatibility forms, case and white space do not count."""
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())


def clean(params: CleanParams, raw: Path, output: Path) -> None:
    """Normalise, drop, cluster and split the documents of a raw corpus.

    Args:
        params: The section `clean`.
        raw: The output of `ingest`.
        output: The directory to publish.

    Raises:
        UserError: If a split would be empty.
    """
    documents = _read_documents(raw)
    kept, dropped = drop_unwanted(documents, params.min_characters)
    clusters, near_pairs = cluster_keys(kept, params)
    splits = [split_of(key, params.split) for key in clusters]
    _check_splits(splits, clusters, params.split)
    with publish_directory(output) as building:
        for split in SPLITS:
            rows = [row for row, name in enumerate(splits) if name == split]
            _write_split(building / f"{split}.parquet", kept, clusters, rows)
        _write_dropped(building / "dropped.parquet", dropped)
        sizes = Counter(clusters)
        facts = {
            "normalisation": NORMALISATION,
            "min_characters": params.min_characters,
            "split": params.split.model_dump(),
            "documents": {split: splits.count(split) for split in SPLITS},
            "clusters": {
                split: len(
                    {key for key, name in zip(clusters, splits, strict=True) if name == split}
                )
                for split in SPLITS
            },
            "characters": {
                split: sum(
                    len(document.text)
                    for document, name in zip(kept, splits, strict=True)
                    if name == split
                )
                for split in SPLITS
            },
            "dropped": dict(Counter(reason for _, reason in dropped)),
            "near_duplicate_pairs": near_pairs,
            "clusters_of_several": sum(size > 1 for size in sizes.values()),
        }
        write_manifest(building, stage="clean", facts=facts)
    log.info("documents %s, dropped %s", facts["documents"], facts["dropped"])


def _read_documents(raw: Path) -> list[Document]:
    documents = []
    for path in progress(
        sorted(raw.glob("part-*.parquet")), total=None, unit="file", label="clean"
    ):
        for batch in pq.ParquetFile(path).iter_batches():
            columns = [batch.column(name).to_pylist() for name in RAW_SCHEMA.names]
            documents += [
                Document(identity, url, title, normalise(text))
                for identity, url, title, text in zip(*columns, strict=True)
            ]
    return documents


def drop_unwanted(
    documents: Sequence[Document], min_characters: int
) -> tuple[list[Document], list[tuple[Document, str]]]:
    """Drop short documents and exact duplicates.

    Args:
        documents: Normalised documents.
        min_characters: The fewest characters of a document that is kept.

    Returns:
        The documents kept, in order, and those dropped with the reason
        (`short`, `exact_duplicate`). Of equal texts the smallest id is kept, so
        that the order of the input does not matter.
    """
    owner: dict[bytes, str] = {}
    digests = [hashlib.sha256(document.text.encode()).digest() for document in documents]
    for document, digest in zip(documents, digests, strict=True):
        owner[digest] = min(document.id, owner.get(digest, document.id))
    kept, dropped = [], []
    for document, digest in zip(documents, digests, strict=True):
        if len(document.text) < min_characters:
            dropped.append((document, "short"))
        elif owner[digest] != document.id:
            dropped.append((document, "exact_duplicate"))
        else:
            kept.append(document)
    return kept, dropped


def cluster_keys(documents: Sequence[Document], params: CleanParams) -> tuple[list[str], int]:
    """Name the cluster of every document.

    Args:
        documents: Documents without exact duplicates.
        params: The section `clean`.

    Returns:
        For every document the smallest id of its cluster, and how many pairs of
        near duplicates were joined. An empty title joins nothing.
    """
    sets = UnionFind(len(documents))
    first_of_title: dict[str, int] = {}
    for index, document in enumerate(documents):
        key = title_key(document.title)
        if key:
            sets.union(first_of_title.setdefault(key, index), index)
    texts = pa.array([document.text for document in documents], pa.large_string())
    pairs = join_near_duplicates(texts, params.near_duplicates, sets)
    smallest: dict[int, str] = {}
    for index, document in enumerate(documents):
        root = sets.find(index)
        smallest[root] = min(document.id, smallest.get(root, document.id))
    return [smallest[sets.find(index)] for index in range(len(documents))], pairs


def split_of(cluster: str, params: SplitParams) -> str:
    """Choose the split of a cluster by a stable hash.

    The choice depends on the seed and the cluster alone: when the corpus grows,
    a document stays where it was.

    Args:
        cluster: The smallest document id of the cluster.
        params: Fractions and seed.

    Returns:
        `train`, `validation` or `test`.
    """
    digest = hashlib.sha256(f"{params.seed}:{cluster}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < params.test_fraction:
        return "test"
    if position < params.test_fraction + params.validation_fraction:
        return "validation"
    return "train"


def _check_splits(splits: list[str], clusters: list[str], params: SplitParams) -> None:
    counts = Counter(splits)
    empty = [split for split in SPLITS if counts[split] == 0]
    if empty:
        raise UserError(
            f"expected documents in every split; {', '.join(empty)} got none of "
            f"{len(splits)} documents in {len(set(clusters))} clusters (validation_fraction "
            f"{params.validation_fraction}, test_fraction {params.test_fraction})",
            "take more documents, raise the fraction, or change split.seed in params.yaml "
            "(documents of one title or of nearly one text stay together)",
        )


def _write_split(
    path: Path, documents: Sequence[Document], clusters: list[str], rows: list[int]
) -> None:
    table = pa.table(
        {
            **{name: [getattr(documents[row], name) for row in rows] for name in RAW_SCHEMA.names},
            "cluster": [clusters[row] for row in rows],
        },
        schema=DOCUMENT_SCHEMA,
    )
    pq.write_table(table, path, compression="zstd", row_group_size=4096)


def _write_dropped(path: Path, dropped: list[tuple[Document, str]]) -> None:
    table = pa.table(
        {
            "id": [document.id for document, _ in dropped],
            "title": [document.title for document, _ in dropped],
            "reason": [reason for _, reason in dropped],
            "text": [document.text for document, _ in dropped],
        },
        schema=DROPPED_SCHEMA,
    )
    pq.write_table(table, path, compression="zstd")


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    clean(params.profile.clean, workspace.raw, workspace.documents)


if __name__ == "__main__":
    run_stage(main)
