"""The only schema of `params.yaml`.

Strict: a wrong type, an unknown key or a value out of range is refused, and the message
names the field, what was expected and what it got. There are no defaults here:
`params.yaml` is the only source of values.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.base.errors import UserError

PARAMS_FILE = Path("params.yaml")
PROFILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def stays_in_the_workspace(path: str) -> str:
    """Refuse a relative path out of the workspace.

    Raises:
        ValueError: If it leaves the workspace.

    Example:
        >>> stays_in_the_workspace("texts/../more/*.parquet")
        'texts/../more/*.parquet'
    """
    if Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        msg = "a relative path must stay in the workspace: write an absolute path for other places"
        raise ValueError(msg)
    return path


LocalOrNamed = Annotated[str, Field(min_length=1), AfterValidator(stays_in_the_workspace)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class IngestParams(_Section):
    """Where the raw text comes from, and what to do with a file that cannot be read."""

    source: LocalOrNamed
    on_bad_file: Literal["error", "quarantine"]
    max_bad_files: Annotated[int, Field(ge=0)]
    documents_per_file: PositiveInt
    max_documents: PositiveInt | None


class NearDuplicateParams(_Section):
    """MinHash over character shingles, verified by true Jaccard similarity."""

    shingle_characters: PositiveInt
    bands: PositiveInt
    rows_per_band: PositiveInt
    min_jaccard: Fraction


class SplitParams(_Section):
    """Fractions of documents that go to validation and test."""

    validation_fraction: Fraction
    test_fraction: Fraction
    seed: Seed

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> "SplitParams":
        if self.validation_fraction + self.test_fraction >= 1.0:
            msg = "validation_fraction + test_fraction must be below 1"
            raise ValueError(msg)
        return self


class CleanParams(_Section):
    """Normalisation, filters, deduplication and the split by document.

    `script: simplified` converts traditional characters (OpenCC).
    """

    remove_wiki_leftovers: bool
    script: Literal["as_is", "simplified"]
    min_characters: PositiveInt
    max_characters: PositiveInt | None
    min_han_share: Probability
    max_kana_share: Probability
    near_duplicates: NearDuplicateParams
    split: SplitParams


class TokenizeParams(_Section):
    """Vocabulary, and packing into sequences of one length.

    `lower_case: true` gives the ids of `BertTokenizerFast` with `do_lower_case=True`.
    `learn_characters: true` gives entries that no text uses to characters of train.
    """

    vocabulary: LocalOrNamed
    lower_case: bool
    learn_characters: bool
    sequence_length: Annotated[int, Field(ge=8, le=4096)]
    sequences_per_shard: PositiveInt


class DecontaminateParams(_Section):
    """Shared text by windows of the comparison key."""

    window_characters: Annotated[int, Field(ge=4, le=9)]
    max_containment: Probability
    excerpt_windows: PositiveInt


class MinSequences(_Section):
    """Fewest sequences that each split must keep."""

    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt


class ValidateParams(_Section):
    """Bounds for the final shards."""

    min_sequences: MinSequences
    max_unk_rate: Probability
    max_drift_bits: Probability


class ModelParams(_Section):
    """The architecture of EnigmaLM."""

    d: Annotated[int, Field(ge=8)]
    num_rev_blocks: PositiveInt
    num_rotors: PositiveInt
    num_transformer_layers: PositiveInt
    num_heads: PositiveInt
    conv1x1_positions: PositiveInt
    use_alibi: bool
    use_dynamic_conv1x1: bool
    attention_dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    hidden_dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    rotor_form: Literal["plu", "lifting"]
    exact: bool
    # Versions registered before the pointer existed do not name it.
    pointer_channels: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_exactness(self) -> "ModelParams":
        if self.exact and self.rotor_form != "lifting":
            msg = "exact: true needs rotor_form: lifting, as a PLU rotor solves a linear system"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_widths(self) -> "ModelParams":
        if self.d % 2 or self.d % self.num_heads or self.d % self.conv1x1_positions:
            msg = "d must be even and a multiple of num_heads and of conv1x1_positions"
            raise ValueError(msg)
        return self


class NGramParams(_Section):
    """The n-grams of train that the language model carries as a memory.

    `min_token_count` is how often train must have an id for it to have a logit of its own; the ids
    below it that the tokenizer can produce share one. `max_entries` bounds the n-grams of all
    orders: from trigrams on, those with the lowest counts go first.
    """

    order: Annotated[int, Field(ge=2, le=8)]
    min_token_count: PositiveInt
    max_entries: PositiveInt


class TrainParams(_Section):
    """The training recipe; lengths in optimiser steps, sizes in sequences."""

    ranks: PositiveInt
    seed: Seed
    batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    epochs: PositiveInt
    max_steps: PositiveInt | None
    optimiser: Literal["adamw", "muon"]
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0.0)]
    schedule: Literal["cosine", "trapezoid"]
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    cooldown_fraction: Probability
    ema_decay: Fraction | None
    max_gradient_norm: PositiveFloat
    max_loss_rise_nats: PositiveFloat
    precision: Literal["auto", "fp32", "bf16"]
    memory: Literal["auto", "plain", "checkpoint", "reversible"]
    gradient_precision: Literal["fp32", "bf16"]
    deterministic: bool
    log_every_steps: PositiveInt
    evaluate_every_steps: PositiveInt
    max_validation_sequences: PositiveInt
    early_stopping_patience: PositiveInt
    # A rank that does not answer the others, or is stopped, for this long is restarted.
    rank_timeout_s: PositiveInt

    @property
    def sequences_per_step(self) -> int:
        """Sequences that all ranks together read in one optimiser step."""
        return self.ranks * self.batch_size * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _check_schedule(self) -> "TrainParams":
        if self.schedule == "cosine" and self.cooldown_fraction:
            msg = "cooldown_fraction belongs to the schedule trapezoid; set it to 0"
            raise ValueError(msg)
        if self.warmup_fraction + self.cooldown_fraction > 1.0:
            msg = "warmup_fraction + cooldown_fraction must be at most 1"
            raise ValueError(msg)
        return self


class EvaluateParams(_Section):
    """Sizes and alarms of the evaluation; an alarm fails the stage."""

    batch_size: PositiveInt
    max_sequences: PositiveInt
    min_perplexity: Annotated[float, Field(gt=1.0)]
    max_round_trip_error: PositiveFloat
    causality_length: Annotated[int, Field(ge=2)]
    max_repetition_rate: Probability
    continuations: PositiveInt
    generated_tokens: Annotated[int, Field(ge=1, le=1024)]  # as `enigma.generation.LIMITS`
    prompts: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class MixtureParams(_Section):
    """The mixture of Gaussians behind the flow over final states, and the flow's recipe there."""

    components: PositiveInt
    pseudo_counts: PositiveFloat  # states of a typical cluster that are added to each
    steps: PositiveInt
    learning_rate: PositiveFloat


class TrainFlowParams(_Section):
    """The flows over the LM's final states, from a mixture or one Gaussian, and over passages."""

    seed: Seed
    train_states: PositiveInt
    validation_states: Annotated[int, Field(ge=2)]  # an energy distance needs two
    states_per_sequence: PositiveInt
    passages: PositiveInt
    noise_std: PositiveFloat
    mixture: MixtureParams | None
    energy_weight: Annotated[float, Field(ge=0.0)]
    num_blocks: PositiveInt
    hidden_channels: PositiveInt
    coupling: Literal["affine", "spline", "affine-spline"]
    steps: PositiveInt
    batch_size: Annotated[int, Field(ge=4)]  # half of a batch is drawn, at least two
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0.0)]
    max_gradient_norm: PositiveFloat
    evaluate_every_steps: PositiveInt
    early_stopping_patience: PositiveInt


class SampleFlowParams(_Section):
    """Samples drawn from the flow, and the bound on its round trip."""

    seed: Seed
    samples: Annotated[int, Field(ge=4)]
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)]
    passages: Annotated[int, Field(ge=2)]
    states_per_sequence: PositiveInt
    max_round_trip_error: PositiveFloat


class PromoteParams(_Section):
    """Gates that are checked again before the alias `champion` moves."""

    baseline: Literal["unigram", "5-gram"]
    min_perplexity: Annotated[float, Field(gt=1.0)]
    max_perplexity: PositiveFloat

    @model_validator(mode="after")
    def _check_the_band(self) -> "PromoteParams":
        if self.min_perplexity >= self.max_perplexity:
            msg = "min_perplexity must be below max_perplexity"
            raise ValueError(msg)
        return self


class Profile(_Section):
    """One complete configuration of the pipeline.

    `workers` is the number of processes of the data stages; their output does not depend on it.
    """

    workers: PositiveInt
    ingest: IngestParams
    clean: CleanParams
    tokenize: TokenizeParams
    decontaminate: DecontaminateParams
    validation: Annotated[ValidateParams, Field(alias="validate")]
    count_ngrams: NGramParams | None
    model: ModelParams
    train: TrainParams
    evaluation: Annotated[EvaluateParams, Field(alias="evaluate")]
    train_flow: TrainFlowParams
    sample_flow: SampleFlowParams
    promote: PromoteParams


class SigningParams(_Section):
    """The key that signs versions and the ledger, and the keys that are trusted."""

    # None for signing_key.pem in the user's configuration directory.
    key: str | None
    # Public keys as PEM; the user's own is always trusted.
    trusted_keys: Annotated[tuple[str, ...], Field(strict=False)]
    # Sign the model's directory with Sigstore as well, which needs a network and an identity.
    sigstore: bool


class Params(_Section):
    """`params.yaml`: the profiles, the name of the one in use, and the keys."""

    name: Annotated[str, Field(alias="profile", pattern=PROFILE_PATTERN)]
    profiles: dict[str, Profile]
    # The parameters that a version carries have no keys.
    signing: SigningParams | None = None

    @property
    def profile(self) -> Profile:
        """The profile in use."""
        return self.profiles[self.name]


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check `params.yaml`.

    Args:
        path: The file; by default the one in the working directory.

    Returns:
        The checked parameters, every profile included.

    Raises:
        UserError: If the file is missing, is not YAML, names an unknown
            profile, or has a field that is unknown, missing or out of range.
    """
    try:
        raw: Any = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"expected {path} in {Path.cwd()}, found no such file",
            "run the command from the top of the repository",
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid YAML in UTF-8: {error}", "correct the syntax"
        ) from error
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(
            f"{path} does not match the schema:\n{_explain(error)}",
            "correct these fields (the schema is pipelines/params.py)",
        ) from None
    if params.name not in params.profiles:
        known = ", ".join(sorted(params.profiles))
        raise UserError(
            f"{path}: profile: expected one of {known}, got {params.name!r}",
            "name an existing profile, or add this one under `profiles:`",
        )
    return params


def _explain(error: ValidationError) -> str:
    """Write one line per field: where it is, what was expected, what it got."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "(top level)"
        got = "" if item["type"] == "missing" else f", got {_shorten(item['input'])}"
        lines.append(f"  {where}: {item['msg']}{got}")
    return "\n".join(lines)


def _shorten(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
