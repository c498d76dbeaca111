"""Stage `count_ngrams`: the n-grams of train, for the memory of the language model.

    python -m pipelines.count_ngrams

All of the final train split is counted out of core, pruned to `count_ngrams.max_entries`, and
written as `ngrams.safetensors` (pipelines/language_model/ngram_table.py). The certificate comes
first: no n-gram is counted from shards that `validate` has not passed, and the table holds nothing
but train. With `count_ngrams: null` the stage writes a manifest alone, and the model has no memory.
"""

import logging
from pathlib import Path

from pipelines.base.artifacts import publish_directory, verify_manifest, write_manifest
from pipelines.base.certificate import check_certificate
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import Workspace
from pipelines.data.shards import ShardReader
from pipelines.language_model.classes import TokenClasses
from pipelines.language_model.counting import bucketed
from pipelines.language_model.ngram_table import NGRAMS_FILE, make_table
from pipelines.params import NGramParams, load_params

logger = logging.getLogger(__name__)


def main() -> None:
    """Count for the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    certificate = workspace.report("validate") / "certificate.json"
    count_ngrams(params.profile.count_ngrams, workspace.shards, certificate, workspace.ngrams)


def count_ngrams(params: NGramParams | None, shards: Path, certificate: Path, output: Path) -> None:
    """Count the n-grams of the final train split.

    Args:
        params: The section `count_ngrams`.
        shards: The directory of the final shards.
        certificate: What `validate` wrote about them.
        output: The directory to publish.

    Raises:
        GateError: `certificate`, if these shards have no passing one.
        UserError: If shards are damaged, or unigrams and bigrams are more than
            `max_entries` alone.
    """
    root = verify_manifest(shards)["root"]
    check_certificate(certificate, root)
    with publish_directory(output) as building:
        if params is None:
            write_manifest(building, stage="count_ngrams", facts={"shards_root": root, "order": 0})
            return
        classes = TokenClasses.of_shards(shards, params.min_token_count)
        train = ShardReader(shards, "train")
        blocks = progress(iter(train), total=None, unit="block", label="windows")
        with bucketed(
            blocks, classes.class_of_id, classes.train_count_C, params.order, near=output
        ) as buckets:
            table = make_table(buckets, params.max_entries)
        facts = {
            "shards_root": root,
            "min_token_count": params.min_token_count,
            "num_classes": classes.num_classes,
            "num_other": classes.num_other,
        }
        table.write(building / NGRAMS_FILE, facts)
        write_manifest(building, stage="count_ngrams", facts={**facts, **table.sizes})
        logger.info(
            "kept %s of %s n-grams; lowest counts by order: %s",
            f"{table.num_entries:,}", f"{sum(table.num_counted):,}", table.thresholds,
        )  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
