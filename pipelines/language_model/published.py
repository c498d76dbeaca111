"""From `params.yaml` to a language model, and from a published directory back."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.base.artifacts import read_manifest
from pipelines.base.errors import UserError
from pipelines.language_model.classes import TokenClasses
from pipelines.language_model.ngram_table import NGRAMS_FILE
from pipelines.params import ModelParams

if TYPE_CHECKING:
    from enigma.configuration_enigma import EnigmaConfig
    from enigma.model import EnigmaLM
    from enigma.modeling_enigma import EnigmaForCausalLM


def model_config(model: ModelParams, shards: Path) -> "EnigmaConfig":
    """Make the configuration from the parameters and the sizes of the shards.

    Args:
        model: The section `model`.
        shards: The directory of the final shards.

    Returns:
        The configuration of an `EnigmaForCausalLM`.
    """
    from enigma.configuration_enigma import EnigmaConfig

    manifest = read_manifest(shards)
    return EnigmaConfig(
        vocab_size=manifest["vocabulary_size"],
        max_len=manifest["sequence_length"],
        eos_token_id=manifest["eos_token_id"],
        **model.model_dump(mode="json"),
    )


def new_language_model(model: ModelParams, shards: Path, ngrams: Path) -> "EnigmaForCausalLM":
    """Make a model to train, with its classes of ids and its memory of n-grams.

    Args:
        model: The section `model`.
        shards: The directory of the final shards.
        ngrams: What `count_ngrams` made of them; it says whether there is a memory.

    Returns:
        The model. Its weights are drawn from torch's generator, whatever the memory holds.
    """
    import torch

    from enigma.language_model.memory.ngram_counts import NGramCounts
    from enigma.modeling_enigma import EnigmaForCausalLM

    made = EnigmaForCausalLM(model_config(model, shards))
    counted = read_manifest(ngrams)
    if counted["order"]:
        classes = TokenClasses.of_shards(shards, counted["min_token_count"])
        made.set_reachable(
            torch.from_numpy(classes.reachable_R), torch.from_numpy(classes.possible_V)
        )
        # In training the counted texts are the model's own: each target must be a new one.
        made.set_ngrams(NGramCounts.read(ngrams / NGRAMS_FILE), leave_one_out=True)
    return made


def load_language_model(directory: Path) -> "EnigmaForCausalLM":
    """Load a published language model for evaluation.

    Args:
        directory: The directory that `train` published.

    Returns:
        The model in evaluation mode, on the GPU if there is one.

    Raises:
        UserError: If the directory holds no model, or one of another architecture.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from enigma.modeling_enigma import EnigmaForCausalLM

    # A progress bar for a single file is noise.
    disable_progress_bar()
    _check_is_there(directory)
    model: EnigmaForCausalLM
    model, found = EnigmaForCausalLM.from_pretrained(directory, output_loading_info=True)
    # transformers would replace missing weights by random numbers and carry on.
    if mismatched := sorted(map(str, {*found["missing_keys"], *found["unexpected_keys"]})):
        raise _of_other_code(directory, mismatched[:5])
    model.eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    return model


def load_network(directory: Path) -> "EnigmaLM":
    """Load a published language model on the CPU without transformers, a slow import.

    Args:
        directory: The directory that `train` published.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: If the directory holds no model, or one of another architecture.
    """
    from enigma.language_model.loading import load_lm

    _check_is_there(directory)
    try:
        return load_lm(directory)
    except (RuntimeError, ValueError) as error:
        raise _of_other_code(directory, error) from None


def _check_is_there(directory: Path) -> None:
    if not (directory / "model.safetensors").is_file():
        raise UserError(
            f"expected a language model in {directory}, found no model.safetensors",
            "run `dvc repro train`, which makes it",
        )


def _of_other_code(directory: Path, found: object) -> UserError:
    return UserError(
        f"{directory}: the weights do not fit this version of enigma: {found}",
        "use the version of the code that they were trained with, or train again",
    )
