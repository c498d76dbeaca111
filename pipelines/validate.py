"""The gate before training: `python -m pipelines.validate`.

Counts again from the final files, lets Great Expectations judge the counts, and
publishes the certificate without which nothing trains. If the gate refuses, there is
no certificate; the report stays in `reports/<profile>/validate-failed`, which DVC does
not own and therefore does not delete.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.base.artifacts import (
    publish_directory,
    read_manifest,
    remove_directory,
    write_json,
    write_text,
)
from pipelines.base.errors import GateError, UserError
from pipelines.base.run_stage import run_stage
from pipelines.base.workspace import Workspace
from pipelines.data.audit.certificate import make_certificate
from pipelines.data.audit.evidence import documents_table, raw_table, shards_table
from pipelines.data.audit.pages import render_validation
from pipelines.data.audit.recount import overlap_table
from pipelines.data.audit.suites import SuiteResult, run_suites
from pipelines.params import DecontaminateParams, ValidateParams, load_params

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations import ExpectationSuite

log = logging.getLogger(__name__)

CERTIFICATE_NAME = "certificate.json"
GATE = "validate"


def validate(
    params: ValidateParams,
    overlap_params: DecontaminateParams,
    workspace: Workspace,
    *,
    threads: int = 1,
) -> None:
    """Judge raw files, documents and final shards.

    Args:
        params: The section `validate`.
        overlap_params: The section `decontaminate`, which defines near overlap.
        workspace: Where the files are, and where the report goes.
        threads: Threads of the comparison; the result does not depend on it.

    Raises:
        GateError: If a critical expectation fails; it names the suite, the
            expectation, what was observed, and a shared sequence.
        UserError: If files are missing or truncated.
    """
    output = workspace.report("validate")
    failed = output.with_name(f"{output.name}-failed")
    # An old certificate must not outlive its data.
    for stale in (output, failed):
        remove_directory(stale)
    tables = collect_evidence(overlap_params, workspace, threads)
    suites = make_suites(params, overlap_params, workspace)
    with publish_directory(failed) as building:
        results = run_suites(suites, tables, building / "data_docs")
        certificate = make_certificate(
            workspace,
            results,
            window_characters=overlap_params.window_characters,
            max_containment=overlap_params.max_containment,
            title_windows=overlap_params.excerpt_windows,
        )
        tables["overlap"].to_parquet(building / "evidence.parquet")
        page = render_validation(certificate, results, refusals(results))
        write_text(building / "index.html", page)
        write_json(building / CERTIFICATE_NAME, certificate)
    if not certificate["passed"]:
        raise refusal(results, failed)
    failed.rename(output)
    log.info("passed: %s", output / "index.html")


def collect_evidence(
    overlap_params: DecontaminateParams, workspace: Workspace, threads: int
) -> "dict[str, pd.DataFrame]":
    """Count the evidence for each suite from the files.

    Raises:
        UserError: If a file is missing or damaged.
    """
    try:
        # First, as it needs most memory, and the others import pandas and Great Expectations.
        overlap = overlap_table(
            workspace.shards,
            window_characters=overlap_params.window_characters,
            max_containment=overlap_params.max_containment,
            title_windows=overlap_params.excerpt_windows,
            threads=threads,
        )
        documents = documents_table(workspace.documents)
        return {
            "raw": raw_table(workspace.raw),
            "documents": documents,
            "shards": shards_table(workspace.shards, documents),
            "overlap": overlap,
        }
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"expected the complete output of the earlier stages, got a file that cannot be read "
            f"({str(error).splitlines()[0]})",
            "restore it with `dvc checkout --force --with-deps decontaminate`, or make it again "
            "with `dvc repro decontaminate`",
        ) from error


def make_suites(
    params: ValidateParams, overlap_params: DecontaminateParams, workspace: Workspace
) -> "list[ExpectationSuite]":
    """Build the four suites with the bounds of this profile."""
    from expectations.documents import documents_suite
    from expectations.overlap import overlap_suite
    from expectations.raw import raw_suite
    from expectations.shards import shards_suite

    shards = read_manifest(workspace.shards)
    return [
        raw_suite(),
        documents_suite(min_characters=read_manifest(workspace.documents)["min_characters"]),
        shards_suite(
            min_sequences=params.min_sequences.model_dump(),
            sequence_length=shards["sequence_length"],
            vocabulary_size=shards["vocabulary_size"],
            max_unk_rate=params.max_unk_rate,
            max_drift_bits=params.max_drift_bits,
        ),
        overlap_suite(max_containment=overlap_params.max_containment),
    ]


def refusals(results: list[SuiteResult]) -> list[str]:
    """Say which expectations failed, on what, and which sequences are shared."""
    failed = [
        f"suite `{result.name}`: {check.sentence}: {check.observed}"
        for result in results
        for check in result.checks
        if check.refuses
    ]
    examples = [
        example
        for result in results
        if result.name == "overlap"
        for example in result.evidence.query("shared > 0")["example"]
    ]
    return [*failed, *examples]


def refusal(results: list[SuiteResult], report: Path) -> GateError:
    """Make the error of a refused gate, with the path of the report."""
    reasons = refusals(results)
    return GateError(
        GATE,
        "\n  " + "\n  ".join(reasons),
        f"read {report / 'index.html'}; then correct the data or the stage that made them "
        "(a bound that is too tight is in params.yaml under `validate`)",
    )


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    profile = params.profile
    # It logs its internals at level INFO from its import on.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    validate(
        profile.validation,
        profile.decontaminate,
        Workspace(params.name),
        threads=profile.workers,
    )


if __name__ == "__main__":
    run_stage(main)
