"""`enigma score FILE`: find atypical documents before a language model learns from them.

The flow in production, or one from a directory, scores every document of a file; the most
atypical come first. `pipelines.flow.documents.document_flow.Scores` defines the columns.

Documents are read and scored in parts, and what is scored goes to disk, so memory does not grow
with their number. Every part is named by a hash of its documents, of the models and of the code:
a killed run resumes by the same command, and never mixes in the scores of other documents or by
another model.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.base.artifacts import read_json, sha256_file
from pipelines.base.code_hash import installed_code
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress
from pipelines.cli.scores.report import check_output, write_report
from pipelines.cli.scores.store import Row, ScoreStore, open_store
from pipelines.data.sources.files import Source, find_source
from pipelines.flow.documents.document_flow import DIRECTORY, DocumentFlow
from pipelines.flow.documents.passages import Passages, read_passages
from pipelines.flow.state_flow import check_language_model
from pipelines.language_model.published import load_language_model
from pipelines.registry.names import FLOW
from pipelines.registry.versions import champion_version, downloaded
from pipelines.runs.hardware import refuse_idle_gpus
from pipelines.tracking.store import connect

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

SHOWN_COLUMNS = (
    "atypicality",
    "state_deviation",
    "loss_deviation",
    "peak_deviation",
    "order_deviation",
    "length_deviation",
)
# A killed run loses at most the part that it was at.
DOCUMENTS_PER_PART = 128
# A part of fewer documents, where they are long.
CHARACTERS_PER_PART = 1 << 20
NAMED_DOCUMENTS = 5


def score(source: str, *, models: Path | None, output: Path | None, top: int) -> None:
    """Score documents, print the most atypical, and write the scores of all if asked to.

    Args:
        source: A file, directory or glob of documents, as `ingest.source` takes it.
        models: A directory with `lm/` and `flow/`, like models/sanguo; None for the champion.
        output: A file for the scores of every document as JSON lines, with a picture and a page
            beside it; None for none. What is scored is kept beside it until then.
        top: Number of documents to print, and to show on the page.

    Raises:
        GateError: `weights`, if the champion's files are not those that were registered.
        UserError: If there is no flow over documents, if a document has no text, or if the output
            cannot be written.
    """
    if output is not None:
        check_output(output)
    files = find_source(source, "FILE")
    with _directories(models) as (language_model, flow):
        scorer = Scorer.load(language_model, flow)
    total = _check_documents(source, files, scorer.tokenizer)
    with open_store(output) as store:
        scored = score_parts(scorer, _parts(_documents(files)), store)
        for _ in progress(scored, total=total, unit="document", label="score"):
            pass
        oddest = store.oddest(top)
        _print(oddest)
        if output is not None:
            write_report(output, source, store, oddest)


@dataclass(frozen=True)
class Scorer:
    """A flow over the states of its own language model.

    Args:
        model: The language model in evaluation mode.
        tokenizer: Its tokenizer.
        flow: The flow.
        fingerprint: What decides a score beside the document.
    """

    model: "EnigmaForCausalLM"
    tokenizer: Any
    flow: DocumentFlow
    fingerprint: str

    @classmethod
    def load(cls, language_model: Path, flow: Path) -> "Scorer":
        """Load both models.

        Args:
            language_model: A published language model.
            flow: The flow that `train_flow` published over it.

        Raises:
            UserError: If the flow is over another language model, or has no part for documents,
                or if torch cannot use the GPU of this machine.
        """
        refuse_idle_gpus()
        facts = read_json(flow / "flow_training.json")
        check_language_model(language_model, facts["lm_weights_sha256"])
        if not (flow / DIRECTORY).is_dir():
            raise UserError(
                f"expected a flow over documents in {flow / DIRECTORY}, found none",
                "run `dvc repro train_flow`, then register and promote it: it was made before "
                "documents could be scored",
            )
        # The model first: importing it registers the type that the tokenizer's loader looks up.
        model = load_language_model(language_model)
        from transformers import AutoTokenizer

        return cls(
            model,
            AutoTokenizer.from_pretrained(language_model),
            DocumentFlow.load(flow / DIRECTORY, model.device),
            _hash(
                {
                    "files": [*_hashes(language_model), *_hashes(flow / DIRECTORY)],
                    "code": installed_code(),
                    "torch": torch.__version__,
                    "device": model.device.type,
                }
            ),
        )

    def score(self, documents: list[Row]) -> list[Row]:
        """Return id, title, length and scores of each document."""
        texts = [document["text"] for document in documents]
        passages = Passages.of_texts(self.tokenizer, texts, self.model.config.max_len)
        reading = read_passages(self.model, passages, self.flow.ends, quiet=True)
        columns = asdict(self.flow.score(passages, reading))
        values = (column.tolist() for column in columns.values())
        return [
            {"id": document["id"], "title": document["title"]}
            | dict(zip(columns, scores, strict=True))
            | {"characters": len(document["text"])}
            for document, *scores in zip(documents, *values, strict=True)
        ]


def score_parts(scorer: Scorer, parts: Iterable[list[Row]], store: ScoreStore) -> Iterator[None]:
    """Score what the store does not have yet; yield once per document."""
    number = 0
    for number, documents in enumerate(parts, start=1):
        key = _hash({"scorer": scorer.fingerprint, "documents": documents})
        if not store.has(number, key):
            texts = [document["text"] for document in documents]
            store.add(number, key, scorer.score(documents), texts)
        yield from (None for _ in documents)
    store.forget_after(number)


def _documents(files: Source) -> Iterator[Row]:
    for file in files:
        for table in file.read():
            yield from table.select(["id", "title", "text"]).to_pylist()


def _parts(documents: Iterable[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    characters = 0
    for document in documents:
        part.append(document)
        characters += len(document["text"])
        if len(part) == DOCUMENTS_PER_PART or characters >= CHARACTERS_PER_PART:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _check_documents(source: str, files: Source, tokenizer: Any) -> int:
    """Count documents; refuse all that have no text, before hours go into the others."""
    count = 0
    empty: list[str] = []
    for document in progress(_documents(files), total=None, unit="document", label="check"):
        count += 1
        if not _has_tokens(document["text"], tokenizer):
            empty.append(document["id"])
    if count == 0:
        raise UserError(f"{source}: expected documents, got none", "name a file that has documents")
    if empty:
        named = ", ".join(map(repr, empty[:NAMED_DOCUMENTS]))
        more = len(empty) - NAMED_DOCUMENTS
        raise UserError(
            f"{source}: expected text in {count} documents, got none in {named}"
            + (f" and {more} more" if more > 0 else ""),
            "remove documents that are empty or only white space",
        )
    return count


def _has_tokens(text: str, tokenizer: Any) -> bool:
    # The first letter or digit settles it; the tokenizer drops some of the other characters.
    return any(map(str.isalnum, text)) or bool(tokenizer.tokenize(text))


def _hashes(directory: Path) -> list[str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return [f"{path.relative_to(directory)} {sha256_file(path)}" for path in files]


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _directories(models: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the directories of the language model and of the flow over it."""
    if models is not None:
        if not (models / "flow" / "flow_training.json").is_file():
            raise UserError(
                f"--models: expected a directory with lm/ and flow/, got {models}",
                "name one such as models/sanguo, or leave the option out for the champion",
            )
        yield models / "lm", models / "flow"
        return
    client = connect()
    with downloaded(client, FLOW, champion_version(FLOW)) as champion:
        champion.check(client)
        yield champion.artifacts / "language_model", champion.artifacts / "model"


def _print(rows: list[Row]) -> None:
    sys.stdout.write("\t".join(("id", *SHOWN_COLUMNS, "title")) + "\n")
    for row in rows:
        figures = (f"{row[name]:.2f}" for name in SHOWN_COLUMNS)
        sys.stdout.write("\t".join((_cell(row["id"]), *figures, _cell(row["title"]))) + "\n")


def _cell(text: str) -> str:
    """Escape what would break the line, or be obeyed by the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
