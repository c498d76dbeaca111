"""Run the Great Expectations suites on tables, and build Data Docs of the results."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations import ExpectationSuite
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.data_context import AbstractDataContext

SITE = "validate"


@dataclass(frozen=True)
class Check:
    """One expectation and its result.

    Args:
        expectation: Its name in Great Expectations.
        arguments: Its arguments.
        critical: Whether a failure refuses the data; otherwise it is a warning.
        success: Whether the data met it.
        observed: What was observed, as text.
    """

    expectation: str
    arguments: dict[str, Any]
    critical: bool
    success: bool
    observed: str

    @property
    def sentence(self) -> str:
        """The expectation with its arguments, as text."""
        spelled = (f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.expectation}({', '.join(spelled)})"

    @property
    def refuses(self) -> bool:
        """Whether the data are refused because of it."""
        return self.critical and not self.success


@dataclass(frozen=True)
class SuiteResult:
    """A suite, the evidence it judged, and its checks.

    Args:
        name: Of the suite.
        sha256: Hash of what it expects.
        evidence: The table that it judged.
        checks: Its expectations and their results.
        page: Its page of Data Docs, relative to the directory that holds them.
    """

    name: str
    sha256: str
    evidence: "pd.DataFrame"
    checks: list[Check]
    page: str = ""


def run_suites(
    suites: "list[ExpectationSuite]", tables: "dict[str, pd.DataFrame]", data_docs: Path
) -> list[SuiteResult]:
    """Judge each table by the suite with its name, and build Data Docs.

    Args:
        suites: The suites.
        tables: The evidence by the name of its suite.
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
    context.build_data_docs(site_names=[SITE])
    return [replace(result, page=_page(data_docs, result.name)) for result in results]


def _page(data_docs: Path, suite: str) -> str:
    """Find the page of a suite, to which the site's index shows no link without the network."""
    page = next(data_docs.glob(f"validations/{suite}/*/*/*.html"))
    return page.relative_to(data_docs.parent).as_posix()


def _context(data_docs: Path) -> "AbstractDataContext":
    """A context in memory, with analytics off, that writes Data Docs to one directory."""
    import great_expectations as gx
    from great_expectations.data_context.types import base

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
        data_docs_sites={SITE: site},
        analytics_enabled=False,
        progress_bars=base.ProgressBarsConfig(globally=False),
    )
    return gx.get_context(project_config=config, mode="ephemeral")


def suite_sha256(suite: "ExpectationSuite") -> str:
    """Hash what a suite expects, without ids and versions."""
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
        if "row_condition" in arguments:
            condition = config.to_json_dict()["kwargs"]["row_condition"]
            arguments["row_condition"] = (
                f"{condition['column']['name']} {condition['operator']} {condition['parameter']}"
            )
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
    if details.get("observed_value") is not None:
        return str(details["observed_value"])
    if "element_count" in details:
        total, unexpected = details["element_count"], details["partial_unexpected_list"]
        return f"{details['unexpected_count']} of {total} rows unexpected: {unexpected}"
    if "partial_missing_list" in details:
        unexpected, missing = details["partial_unexpected_list"], details["partial_missing_list"]
        return f"unexpected: {unexpected}, missing: {missing}"
    # The expectation could not be computed, for example without its column.
    info = result["exception_info"]
    causes = [info] if "exception_message" in info else list(info.values())
    return "; ".join(str(cause["exception_message"]) for cause in causes)
