"""Pages: what they show of the evidence, and that no value becomes markup."""

import pandas as pd
import pytest

from pipelines.data.audit.pages import render_validation
from pipelines.data.audit.suites import Check, SuiteResult

CERTIFICATE = {
    "profile": "<sanguo>",
    "raw_root": "aa",
    "documents_root": "bb",
    "shards_root": "cc",
    "measured": {"not_found": "Paraphrase, <translation>."},
}


def check(*, critical: bool, success: bool) -> Check:
    arguments = {"column": "unk_rate", "max_value": 0.05}
    return Check("expect_column_max", arguments, critical, success, "<0.0301>")


@pytest.fixture
def result() -> SuiteResult:
    evidence = pd.DataFrame({"split": ["train"], "num_ids": [12345], "unk_rate": [0.0301234]})
    checks = [check(critical=True, success=False), check(critical=False, success=False)]
    return SuiteResult("shards", "", evidence, checks, "data_docs/shards.html")


def test_a_refused_data_set_says_why(result: SuiteResult) -> None:
    page = render_validation({**CERTIFICATE, "passed": False}, [result], ["too many <unknown>"])
    assert "<title>Validation of &lt;sanguo&gt;: refused</title>" in page
    assert '<p class="reason">too many &lt;unknown&gt;</p>' in page
    assert "shards: 2 expectations, 1 failed" in page
    assert "<details open>" in page
    assert page.count('<span class="refused">not met') == 1
    assert page.count('<span class="warning">not met') == 1
    assert "<code>column = unk_rate, max_value = 0.05</code>" in page
    assert "&lt;0.0301&gt;" in page
    assert "<tr><th>not found</th><td>Paraphrase, &lt;translation&gt;.</td></tr>" in page


def test_numbers_are_rounded_grouped_and_aligned_under_their_headings(result: SuiteResult) -> None:
    page = render_validation({**CERTIFICATE, "passed": True}, [result], [])
    assert "<th>split</th>" in page
    assert '<th class="number">num ids</th>' in page
    assert '<td class="number">12,345</td>' in page
    assert '<td class="number">0.03012</td>' in page
