"""A held-out cloze: the true next clause of a test document among clauses of others.

The wrong clauses are as long as the true one, in characters, and come from other documents. They
are drawn with a seed, so the same documents give the same items.
`benchmarks/language_model/lm_eval/zh_cloze.yaml` describes the task to lm-eval.
"""

import json
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.base.errors import UserError

TASK = Path(__file__).resolve().parent / "lm_eval" / "zh_cloze.yaml"
PATH = Path(__file__).resolve().parents[2] / "runs" / "lm_use" / "cloze.jsonl"
ITEMS, CHOICES, SEED = 200, 4, 0
CONTEXT_CHARACTERS, CLAUSE_CHARACTERS = 96, range(6, 21)
CLAUSE = re.compile(r"[^，。！？；：\n（）()「」《》“”]+[，。！？；]")


def items(documents: list[str]) -> list[dict[str, Any]]:
    """Draw the items.

    Args:
        documents: Texts.

    Returns:
        At most `ITEMS` items: `context`, `choices` and `label`, the index of the true clause.

    Raises:
        UserError: If no clause has enough alternatives of its length.
    """
    draw = random.Random(SEED)
    places = []
    by_length = defaultdict(list)
    for number, text in enumerate(documents):
        for match in CLAUSE.finditer(text):
            clause = match.group()
            if len(clause) in CLAUSE_CHARACTERS:
                by_length[len(clause)].append((number, clause))
                if match.start() >= CONTEXT_CHARACTERS:
                    places.append((number, match.start(), clause))
    draw.shuffle(places)
    found: list[dict[str, Any]] = []
    for number, start, clause in places:
        others = {other for n, other in by_length[len(clause)] if n != number} - {clause}
        if len(found) < ITEMS and len(others) >= CHOICES - 1:
            choices = [clause, *draw.sample(sorted(others), CHOICES - 1)]
            draw.shuffle(choices)
            context = documents[number][start - CONTEXT_CHARACTERS : start]
            found.append({"context": context, "choices": choices, "label": choices.index(clause)})
    if not found:
        raise UserError(
            f"cloze: expected documents with clauses of {CLAUSE_CHARACTERS.start} to "
            f"{CLAUSE_CHARACTERS.stop - 1} characters, found none in {len(documents)} documents",
            "name the shards of a profile whose test documents are longer",
        )
    return found


def write_items(documents: Path) -> None:
    """Write the items for lm-eval.

    Args:
        documents: The parquet file of the test documents, with a column `text`.
    """
    texts = pq.read_table(documents, columns=["text"])["text"].to_pylist()
    PATH.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(item, ensure_ascii=False) for item in items(texts)]
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")
