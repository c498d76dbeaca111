"""The gate before training: `python -m pipelines.validate`.

Counts again from the final files, lets Great Expectations judge the counts, and
publishes the certificate without which nothing trains. When the gate refuses,
there is no certificate; the report is left in `reports/<profile>/validate-failed`,
which DVC does not own and so does not delete.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.artifacts import publish_directory, read_manifest, write_json, write_text
from pipelines.errors import GateError, UserError
from pipelines.evidence import documents_table, raw_table, shards_table
from pipelines.params import DecontaminateParams, ValidateParams, load_params
from pipelines.recount import overlap_table
from pipelines.stage import run_stage
from pipelines.validation_page import render_page
from pipelines.workspace import SPLITS, Workspace

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations import ExpectationSuite
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.data_context import AbstractDataContext

log = logging.getLogger(__name__)

CERTIFICATE_NAME = "certificate.json"
GATE = "validate"
VERSIONED = ("great-expectations", "pyarrow", "transformers")


@dataclass(frozen=True)
class Check:
    """One expectation and what came of it.

    Args:
        expectation: Its name in Great Expectations.
        arguments: Its arguments.
        critical: Whether its failure refuses the data; else it is a warning.
        success: Whether the data met it.
        observed: What was found, as text.
    """

    expectation: str
    arguments: dict[str, Any]
    critical: bool
    success: bool
    observed: str

    @property
    def refuses(self) -> bool:
        """Whether it stops the pipeline."""
        return self.critical and not self.success


@dataclass(frozen=True)
class SuiteResult:
    """A suite, the evidence it judged, and its checks."""

    name: str
    sha256: str
    evidence: "pd.DataFrame"
    checks: list[Check]


def validate(
    params: ValidateParams,
    overlap_params: DecontaminateParams,
    workspace: Workspace,
) -> None:
    """Judge raw files, documents and final shards.

    Args:
        params: The section `validate`.
        overlap_params: The section `decontaminate`: what counts as near.
        workspace: Where the files are, and where the report goes.

    Raises:
        GateError: If a critical expectation fails; it names the suite, the
            expectation, what was observed, and a shared sequence.
        UserError: If files are missing or cut off.
    """
    output = workspace.report("validate")
    failed = output.with_name(f"{output.name}-failed")
    # An old certificate must not outlive the data it was given for.
    for stale in (output, failed):
        if stale.exists():
            shutil.rmtree(stale)
    tables = collect_evidence(overlap_params, workspace)
    suites = make_suites(params, overlap_params, workspace)
    with publish_directory(failed) as building:
        results = run_suites(suites, tables, building / "data_docs")
        passed = not any(check.refuses for result in results for check in result.checks)
        certificate = make_certificate(workspace, results, passed=passed)
        tables["overlap"].to_parquet(building / "evidence.parquet")
        write_text(building / "index.html", render_page(workspace.profile, certificate, results))
        write_json(building / CERTIFICATE_NAME, certificate)
    if not passed:
        raise refusal(results, failed)
    failed.rename(output)
    log.info("passed: %s", output / "index.html")


def collect_evidence(
    overlap_params: DecontaminateParams, workspace: Workspace
) -> "dict[str, pd.DataFrame]":
    """The evidence for each suite, counted from the files.

    Raises:
        UserError: If a file is missing or damaged.
    """
    try:
        return {
            "raw": raw_table(workspace.raw),
            "documents": documents_table(workspace.documents),
            "shards": shards_table(workspace.shards),
            "overlap": overlap_table(
                workspace.shards,
                window_tokens=overlap_params.window_tokens,
                max_containment=overlap_params.max_containment,
            ),
        }
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"expected the whole output of the earlier stages, came a file that cannot be read "
            f"({str(error).splitlines()[0]})",
            "restore it with `dvc checkout --force`, or make it again with `dvc repro`",
        ) from error


def make_suites(
    params: ValidateParams, overlap_params: DecontaminateParams, workspace: Workspace
) -> "list[ExpectationSuite]":
    """The four suites with the bounds of this profile."""
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
        ),
        overlap_suite(max_containment=overlap_params.max_containment),
    ]


def run_suites(
    suites: "list[ExpectationSuite]", tables: "dict[str, pd.DataFrame]", data_docs: Path
) -> list[SuiteResult]:
    """Judge each table by the suite of its name, and build Data Docs.

    Args:
        suites: The suites.
        tables: The evidence by name of the suite.
        data_docs: Where the site goes.

    Returns:
        The results, in the order of the suites.
    """
    import great_expectations as gx

    context = _context(data_docs)
    source = context.data_sources.add_pandas("evidence")
    results = []
    for suite in suites:
        digest = suite_sha256(suite)
        batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all")
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=suite.name, data=batch, suite=context.suites.add(suite))
        )
        table = tables[suite.name]
        outcome = definition.run(batch_parameters={"dataframe": table}, result_format="SUMMARY")
        results.append(SuiteResult(suite.name, digest, table, _checks(outcome)))
    context.build_data_docs(site_names=[GATE])
    return results


def _context(data_docs: Path) -> "AbstractDataContext":
    """A context that lives in memory, phones nobody, and writes Data Docs to one place."""
    import great_expectations as gx
    from great_expectations.data_context.types import base

    # It tells of its own unset defaults at level INFO, twice a row condition.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(data_docs.resolve()),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    config = base.DataContextConfig(
        store_backend_defaults=base.InMemoryStoreBackendDefaults(),
        data_docs_sites={GATE: site},
        analytics_enabled=False,
        progress_bars=base.ProgressBarsConfig(globally=False),
    )
    return gx.get_context(project_config=config, mode="ephemeral")


def suite_sha256(suite: "ExpectationSuite") -> str:
    """Hash what a suite expects; ids and versions do not count."""
    expected = [
        {key: item[key] for key in ("type", "kwargs", "severity")}
        for item in suite.to_json_dict()["expectations"]
    ]
    return hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()


def _checks(outcome: "ExpectationSuiteValidationResult") -> list[Check]:
    checks = []
    for result in outcome.results:
        config = result.expectation_config
        arguments = {key: value for key, value in config.kwargs.items() if key != "batch_id"}
        checks.append(
            Check(
                expectation=config.type,
                arguments=arguments,
                critical=config.severity == "critical",
                success=bool(result.success),
                observed=_observed(result.to_json_dict()),
            )
        )
    return sorted(checks, key=lambda check: (check.success, not check.critical))


def _observed(result: dict[str, Any]) -> str:
    details = result["result"]
    if "observed_value" in details:
        return str(details["observed_value"])
    if "partial_unexpected_list" in details:
        unexpected = details["partial_unexpected_list"]
        total = details["element_count"]
        return (
            f"{details['unexpected_count']} of {total} rows: {unexpected}"
            if unexpected
            else (f"{total} rows as expected")
        )
    # The expectation could not be computed at all, say for want of the column.
    info = result["exception_info"]
    causes = [info] if "exception_message" in info else list(info.values())
    return "; ".join(str(cause["exception_message"]) for cause in causes)


def make_certificate(
    workspace: Workspace, results: list[SuiteResult], *, passed: bool
) -> dict[str, Any]:
    """State what was judged, by what, and how it came out; without a timestamp."""
    evidence = {result.name: result.evidence for result in results}
    sequences = evidence["shards"].set_index("split")["sequences"]
    overlap: dict[str, dict[str, Any]] = {}
    for row in evidence["overlap"].to_dict("records"):
        overlap.setdefault(row["pair"], {})[row["method"]] = row["shared"]
    near = evidence["overlap"].query("method == 'near_containment'")
    return {
        "passed": passed,
        "profile": workspace.profile,
        "raw_root": read_manifest(workspace.raw)["root"],
        "documents_root": read_manifest(workspace.documents)["root"],
        "shards_root": read_manifest(workspace.shards)["root"],
        "sequences": {split: int(sequences[split]) for split in SPLITS},
        "overlap": overlap,
        "max_containment": float(near["max_containment"].max()),
        "suites": [
            {
                "name": result.name,
                "sha256": result.sha256,
                "evaluated": len(result.checks),
                "failed": sum(check.refuses for check in result.checks),
                "warnings": sum(
                    not check.success and not check.critical for check in result.checks
                ),
            }
            for result in results
        ],
        "versions": {name: version(name) for name in VERSIONED},
    }


def refusal(results: list[SuiteResult], report: Path) -> GateError:
    """Say which expectations failed, on what, and which sequences are shared."""
    lines = [
        f"suite `{result.name}`: {check.expectation}({_spell(check.arguments)}): {check.observed}"
        for result in results
        for check in result.checks
        if check.refuses
    ]
    examples = [
        example
        for result in results
        if result.name == "overlap"
        for example in result.evidence["example"]
        if example
    ]
    return GateError(
        GATE,
        "\n  " + "\n  ".join([*lines, *dict.fromkeys(examples)]),
        f"read {report / 'index.html'}; then correct the data or the stage that made it "
        "(a bound that is too tight is in params.yaml under `validate`)",
    )


def _spell(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def main() -> None:
    """Run the stage for the profile in use."""
    params = load_params()
    profile = params.profile
    validate(profile.validation, profile.decontaminate, Workspace(params.name))


if __name__ == "__main__":
    run_stage(main)
