"""The Hugging Face configuration of `EnigmaForCausalLM`."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

from enigma.bijections.machine import ReturnPath
from enigma.invertible_conv1x1 import RotorForm
from enigma.reversible import MemoryMode

__all__ = ["EnigmaConfig"]


@strict
class EnigmaConfig(PretrainedConfig):  # type: ignore[misc]  # transformers ships no types
    """Sizes and switches of the language model.

    Attributes:
        vocab_size: number of token ids.
        d: width.
        num_rev_blocks: reversible blocks of the machine.
        num_rotors: rotors of the machine.
        num_transformer_layers: attention layers.
        num_heads: attention heads.
        max_len: tokens of the longest training text.
        use_alibi: linear attention biases; False takes learned positions up to `max_len`.
        use_dynamic_conv1x1: step the rotors with the token index.
        conv1x1_positions: positions of a rotor; must divide `d`.
        attention_dropout: probability of dropping an attention weight in training.
        hidden_dropout: probability of dropping a channel of a residual branch in training.
        return_path: "reversed", "untied" or "inverse", see `enigma.model.Enigma`.
        rotor_form: "plu" or "lifting", see `enigma.invertible_conv1x1`.
        exact: compute on a grid, where the model is bit-exactly invertible up to the head, see
            `enigma.bijections.exact`.
        kernel_size: taps of the causal convolution in the coupling networks; 1 for none.
        learnable_plugboard: learn which channels are swapped.
        use_cache: keep keys and values while generating.
        tie_word_embeddings: share the output head with the token embedding.
        memory: what training keeps, "plain", "checkpoint" or "reversible", see
            `enigma.reversible.run_steps`; the result is the same.
        pad_token_id: [PAD] of bert-base-chinese.
        bos_token_id: [CLS] of bert-base-chinese.
        eos_token_id: [SEP] of bert-base-chinese.

    Raises:
        ValueError: for an unknown `return_path`, or sizes that do not divide; raised as the
            validation error of `huggingface_hub`.

    Examples:
        >>> EnigmaConfig(d=64, num_heads=4).hidden_size
        64
    """

    model_type = "enigma"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d",
        "num_hidden_layers": "num_transformer_layers",
        "num_attention_heads": "num_heads",
        "max_position_embeddings": "max_len",
    }

    vocab_size: int = 21128
    d: int = 512
    num_rev_blocks: int = 4
    num_rotors: int = 4
    num_transformer_layers: int = 6
    num_heads: int = 8
    max_len: int = 256
    use_alibi: bool = True
    use_dynamic_conv1x1: bool = True
    conv1x1_positions: int = 16
    attention_dropout: float | int = 0.15
    hidden_dropout: float | int = 0.0
    return_path: ReturnPath = "reversed"
    rotor_form: RotorForm = "plu"
    exact: bool = False
    kernel_size: int = 1
    learnable_plugboard: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True
    memory: MemoryMode = "plain"
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102

    def validate_architecture(self) -> None:
        """Check fields against each other; called by the base class."""
        if self.num_transformer_layers < 1:
            raise ValueError(
                "num_transformer_layers must be at least 1, as only attention reads earlier "
                f"tokens, got {self.num_transformer_layers}"
            )
        if self.d % self.num_heads:
            raise ValueError(f"num_heads must divide d={self.d}, got {self.num_heads}")
        if self.use_dynamic_conv1x1 and self.d % self.conv1x1_positions:
            raise ValueError(
                f"conv1x1_positions must divide d={self.d}, got {self.conv1x1_positions}"
            )
        if self.exact and self.rotor_form != "lifting":
            raise ValueError(
                f"exact=True needs rotor_form='lifting', got rotor_form={self.rotor_form!r}"
            )
