"""Where each stage's files are; the paths agree with `dvc.yaml` (a test compares them)."""

import os
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Workspace:
    """The paths of one profile, relative to the top of the repository.

    Args:
        profile: Name of the profile.
    """

    profile: str

    @property
    def raw(self) -> Path:
        """Raw parquet and its manifest, made by `ingest`."""
        return Path("data", self.profile, "raw")

    @property
    def documents(self) -> Path:
        """Clean documents, one parquet file per split, made by `clean`."""
        return Path("data", self.profile, "documents")

    @property
    def tokens(self) -> Path:
        """Packed sequences before decontamination, made by `tokenize`."""
        return Path("data", self.profile, "tokens")

    @property
    def shards(self) -> Path:
        """The final sequences, and those removed, made by `decontaminate`."""
        return Path("data", self.profile, "shards")

    @property
    def ngrams(self) -> Path:
        """The n-grams of the final train split, made by `count_ngrams`."""
        return Path("data", self.profile, "ngrams")

    @property
    def language_model(self) -> Path:
        """The trained EnigmaLM in Hugging Face format, made by `train`."""
        return Path("models", self.profile, "lm")

    @property
    def flow(self) -> Path:
        """The trained EnigmaFlow, made by `train_flow`."""
        return Path("models", self.profile, "flow")

    def report(self, stage: str) -> Path:
        """The directory of a stage's reports, metrics and plots."""
        return Path("reports", self.profile, stage)

    @property
    def overlap_report(self) -> Path:
        """What `decontaminate` removed, counted per pair of splits and method."""
        return self.report("decontaminate") / "overlap.json"

    @property
    def runs(self) -> Path:
        """Runs in progress; `ENIGMA_RUNS_DIR` moves them out of a temporary checkout."""
        return Path(os.environ.get("ENIGMA_RUNS_DIR", "runs"))
