"""Plant copies of held-out text in train, and count what the stages leave of them.

    OMP_NUM_THREADS=1 python -m benchmarks.data.speed --corpus wiki.parquet recall

`ingest` and `clean` run on the corpus and decide which documents are held out. Then a copy of
each test document, whole or an excerpt of it, edited or not, is put into a train document at
a random place, and `tokenize` and `decontaminate` run. So a copy begins anywhere in a sequence,
and `clean`, which finds most copies that are documents of their own, does not help. A copy is
found if at most a fifth of its windows are left in train; windows that train has without it do
not count.
"""

import contextlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.record import row
from pipelines.base.artifacts import read_json, read_manifest, write_manifest
from pipelines.base.workspace import SPLITS
from pipelines.clean import clean
from pipelines.data.audit.windows import OTHERS
from pipelines.data.overlap.stream import read_pieces, stream_parts
from pipelines.data.overlap.windows import Hashes, TokenFolder, token_folder
from pipelines.data.shards import ShardReader
from pipelines.data.text.shard_vocabulary import ShardVocabulary, shard_tokenizer
from pipelines.data.tokenizer.fast import FastTokenizer
from pipelines.decontaminate import decontaminate
from pipelines.ingest import ingest
from pipelines.params import Profile, load_params
from pipelines.tokenize import tokenize

# More of test than in use, so that there are enough documents to copy: validation may lose some.
HELD_OUT = {"validation_fraction": 0.025, "test_fraction": 0.22}
ROUNDS = 4
EDITS = (0.0, 0.05, 0.1, 0.2)
# Characters of an excerpt; None is the whole document.
SIZES = (None, 30, 60, 120)
TARGETS = dict(zip(EDITS, (1.0, 1.0, 0.98, 0.9), strict=True))
MOST_LEFT = 0.2
CONFIDENCE_Z = 1.96

Kind = tuple[int | None, float]


def recall(corpus: Path) -> list[dict[str, Any]]:
    """Count the copies that are found, by kind, with Wilson's 95 % interval."""
    profile = load_params().profile
    split = profile.clean.split.model_copy(update=HELD_OUT)
    left: dict[Kind, list[float]] = {(size, edits): [] for size in SIZES for edits in EDITS}
    with TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        directory = Path(name)
        ingest(profile.ingest.model_copy(update={"source": str(corpus)}), directory / "raw")
        params = profile.clean.model_copy(update={"split": split})
        clean(params, directory / "raw", directory / "documents")
        before, removed = _train_windows(profile, directory / "documents", directory / "before")
        for turn in range(ROUNDS):
            _measure(profile, directory, turn, before, left)
    rows = [_row(kind, np.array(shares)) for kind, shares in left.items()]
    what = "share of real train sequences removed, with 22 % of the documents in test"
    return [*rows, row(what, removed, "")]


def _measure(
    profile: Profile, directory: Path, turn: int, before: Hashes, left: dict[Kind, list[float]]
) -> None:
    """Plant a copy of every test document, and add what is left of each."""
    generator = random.Random(turn)
    documents = directory / "documents"
    texts = pq.read_table(documents / "test.parquet")["text"].to_pylist()
    generator.shuffle(texts)
    kinds = list(left)
    # As often as the text has them: of all ideographs, two in three are [UNK], and an inserted
    # [UNK], like a letter of another script, has no key and would be no edit.
    letters = list(OTHERS.sub("", "".join(texts)))
    copies = []
    for number, text in enumerate(texts):
        size, edits = kinds[number % len(kinds)]
        start = generator.randrange(max(len(text) - size, 0) + 1) if size else 0
        copies.append(_edited(text[start:][:size], edits, letters, generator))
    planted = directory / f"planted-{turn}"
    _plant(documents, planted, copies, generator)
    output = directory / f"after-{turn}"
    after, _ = _train_windows(profile, planted, output)
    stream = FastTokenizer(shard_tokenizer(output / "tokens").backend_tokenizer).encode(copies)
    offsets = np.append(0, np.cumsum(stream.lengths))
    size = profile.decontaminate.window_characters
    windows = _folder(output / "tokens").windows(stream.ids, offsets, size)
    counts = np.isin(windows.hashes_W, before, invert=True)
    totals, kept = (
        np.bincount(windows.documents_W[mine], minlength=len(copies))
        for mine in (counts, counts & np.isin(windows.hashes_W, after))
    )
    for number in np.flatnonzero(totals).tolist():
        left[kinds[number % len(kinds)]].append(kept[number] / totals[number])


def _edited(text: str, share: float, letters: list[str], generator: random.Random) -> str:
    """Substitute, insert or delete a share of the characters."""
    edits: list[Callable[[str], str]] = [
        lambda _: generator.choice(letters),
        lambda character: character + generator.choice(letters),
        lambda _: "",
    ]
    return "".join(
        generator.choice(edits)(character) if generator.random() < share else character
        for character in text
    )


def _plant(documents: Path, planted: Path, copies: list[str], generator: random.Random) -> None:
    """Copy the documents, with one copy in each of some train documents."""
    planted.mkdir()
    counts = {}
    for split in SPLITS:
        table = pq.read_table(documents / f"{split}.parquet")
        if split == "train":
            texts = table["text"].to_pylist()
            for host, copy in zip(
                generator.sample(range(len(texts)), len(copies)), copies, strict=True
            ):
                at = generator.randrange(len(texts[host]) + 1)
                texts[host] = texts[host][:at] + copy + texts[host][at:]
            column = table.schema.get_field_index("text")
            table = table.set_column(column, table.schema.field(column), pa.array(texts))
        pq.write_table(table, planted / f"{split}.parquet", row_group_size=1024)
        counts[split] = table.num_rows
    write_manifest(planted, stage="clean", facts={"documents": counts})


def _train_windows(profile: Profile, documents: Path, output: Path) -> tuple[Hashes, float]:
    """Run the later stages; return the windows of the final train, and the share removed."""
    tokens, shards, report = output / "tokens", output / "shards", output / "overlap.json"
    tokenize(profile.tokenize, documents, tokens)
    decontaminate(profile.decontaminate, tokens, shards, report)
    length = int(read_manifest(tokens)["sequence_length"])
    sources: npt.NDArray[np.int64] = ShardReader(shards, "train").sequences()[0].to_numpy()
    removed = np.setdiff1d(np.arange(len(ShardReader(tokens, "train"))), sources)
    folder, size = _folder(tokens), profile.decontaminate.window_characters
    found = [
        folder.windows(pieces.ids_T, pieces.offsets, size).hashes_W
        for part in stream_parts(tokens, "train", length)
        for pieces in read_pieces(part, removed)
    ]
    return np.concatenate(found), read_json(report)["train"]["removed_percent"] / 100


def _folder(tokens: Path) -> TokenFolder:
    return token_folder(ShardVocabulary.read(tokens).tokens)


def _row(kind: Kind, left: npt.NDArray[np.float64]) -> dict[str, Any]:
    size, edits = kind
    count = len(left)
    share = float((left <= MOST_LEFT).mean())
    # Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    middle = share + CONFIDENCE_Z**2 / (2 * count)
    reach = CONFIDENCE_Z * np.sqrt(share * (1 - share) / count + (CONFIDENCE_Z / (2 * count)) ** 2)
    low, high = ((middle + side * reach) / (1 + CONFIDENCE_Z**2 / count) for side in (-1.0, 1.0))
    what = "documents" if size is None else f"excerpts of {size} characters"
    name = (
        f"recall of decontaminate: {what}, {100 * edits:.0f} % edited "
        f"(95 %: {low:.3f} to {high:.3f}, n = {count}; "
        f"{100 * left.mean():.1f} % of the windows left)"
    )
    if size is not None:
        return row(name, share, "")
    target = TARGETS[edits]
    return row(name, share, "", target=f">= {target:g}", met=share >= target)
