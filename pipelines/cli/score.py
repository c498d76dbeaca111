"""`enigma score FILE`: find atypical documents before a language model learns from them.

The flow in production, or one from a directory, scores every document of a file; the most
atypical come first. `pipelines.flow.document_flow.Scores` defines the columns.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.base.artifacts import read_json, write_text
from pipelines.base.errors import UserError
from pipelines.data.sources.files import find_source
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.flow.document_flow import DIRECTORY, DocumentFlow, Scores
from pipelines.flow.passages import Passages, read_passages
from pipelines.flow.state_flow import check_language_model
from pipelines.language_model.published import load_language_model
from pipelines.registry.names import FLOW
from pipelines.registry.versions import champion_version, downloaded
from pipelines.runs.hardware import refuse_idle_gpus
from pipelines.tracking.store import connect

SHOWN_COLUMNS = ("atypicality", "state_deviation", "loss_deviation")


def score(source: str, *, models: Path | None, output: Path | None, top: int) -> None:
    """Score documents, print the most atypical, and write the scores of all if asked to.

    Args:
        source: A file, directory or glob of documents, as `ingest.source` takes it.
        models: A directory with `lm/` and `flow/`, like models/sanguo; None for the champion.
        output: A file for the scores of every document as JSON lines; None for none.
        top: Number of documents to print.

    Raises:
        GateError: `weights`, if the champion's files are not those that were registered.
        UserError: If there is no flow over documents, or a document has no text.
    """
    tables = [table for file in find_source(source, "FILE") for table in file.read()]
    documents = pa.concat_tables(tables or [RAW_SCHEMA.empty_table()])
    if documents.num_rows == 0:
        raise UserError(f"{source}: expected documents, got none", "name a file that has documents")
    with _directories(models) as (language_model, flow):
        scores = score_texts(language_model, flow, documents["text"].to_pylist())
    order = np.argsort(-scores.atypicality)
    columns = {name: values[order].tolist() for name, values in asdict(scores).items()}
    rows = [
        {"id": documents["id"][int(index)].as_py(), "title": documents["title"][int(index)].as_py()}
        | {name: values[rank] for name, values in columns.items()}
        for rank, index in enumerate(order)
    ]
    _print(rows[:top])
    if output is not None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            write_text(output, "".join(lines))
        except OSError as error:
            raise UserError(
                f"--output: expected a file that can be written, got {output}: {error.strerror}",
                "name a file in a folder where you may write",
            ) from None


def score_texts(language_model: Path, flow: Path, texts: list[str]) -> Scores:
    """Score texts by a flow over the states of its own language model.

    Args:
        language_model: A published language model.
        flow: The flow that `train_flow` published over it.
        texts: The documents.

    Raises:
        UserError: If the flow is over another language model, or has no part for documents, or if
            torch cannot use the GPU of this machine.
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

    tokenizer = AutoTokenizer.from_pretrained(language_model)
    document_flow = DocumentFlow.load(flow / DIRECTORY, model.device)
    passages = Passages.of_texts(tokenizer, texts, model.config.max_len)
    return document_flow.score(passages, read_passages(model, passages))


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


def _print(rows: list[dict[str, Any]]) -> None:
    sys.stdout.write("\t".join(("id", *SHOWN_COLUMNS, "title")) + "\n")
    for row in rows:
        figures = (f"{row[name]:.2f}" for name in SHOWN_COLUMNS)
        sys.stdout.write("\t".join((row["id"], *figures, row["title"])) + "\n")
