"""The Hugging Face configuration of `EnigmaForCausalLM`."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import wraps
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PretrainedConfig

from enigma.attention import fitting_heads
from enigma.bijections.machine import ReturnPath
from enigma.invertible_conv1x1 import RotorForm, fitting_positions
from enigma.reversible import MemoryMode

__all__ = ["EnigmaConfig", "unknown_keywords"]

_OF_TRANSFORMERS = frozenset(
    {
        *GenerationConfig().to_dict(),
        *("attn_implementation", "auto_map", "custom_pipelines", "experts_implementation"),
        *("finetuning_task", "name_or_path", "per_layer_config", "prefix", "pruned_heads"),
        *("quantization_config", "sep_token_id", "decoder_start_token_id", "is_decoder"),
        *("task_specific_params", "tie_encoder_decoder", "tokenizer_class", "torchscript"),
        *("add_cross_attention", "cross_attention_hidden_size", "problem_type", "use_bfloat16"),
    }
)
"""Keys that transformers takes, or took, beside the attributes of its `PretrainedConfig`."""


def unknown_keywords(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Return a message that names unknown keywords, and the known ones that are most similar."""
    names = sorted(known)
    hints = []
    for name in sorted(unknown):
        similar = get_close_matches(name, names, n=1)
        hints.append(f"{name} (to fix this: {'write ' + similar[0] if similar else 'remove it'})")
    return f"expected only known keywords, got {', '.join(hints)}"


class _OwnNamesFirst(PretrainedConfig):  # type: ignore[misc]  # transformers ships no types
    """A configuration whose settings win over their aliases: a dictionary may hold both."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        takes_both = cls.__init__

        @wraps(takes_both)
        def init(self: Any, *args: Any, **settings: Any) -> None:
            chosen = {
                key: value
                for key, value in settings.items()
                if cls.attribute_map.get(key) not in settings
            }
            takes_both(self, *args, **chosen)

        cls.__init__ = init  # type: ignore[method-assign]


@strict
class EnigmaConfig(_OwnNamesFirst):
    """Sizes and switches of the language model.

    transformers' names (`hidden_size`, `num_hidden_layers`, `num_attention_heads`,
    `max_position_embeddings`) are taken too. Beside one, the setting's own name decides.

    Attributes:
        vocab_size: number of token ids.
        d: width.
        num_rev_blocks: reversible blocks of the machine.
        num_rotors: rotors of the machine.
        num_transformer_layers: attention layers.
        num_heads: attention heads; None takes the largest number up to 8 that fits `d`.
        max_len: tokens of the longest training text.
        use_alibi: linear attention biases; False takes learned positions up to `max_len`.
        use_dynamic_conv1x1: step the rotors with the token index.
        conv1x1_positions: positions of a rotor; must divide `d`. None takes the largest up to 16
            that does.
        attention_dropout: probability of dropping an attention weight in training; 0.15 by default,
            where `EnigmaLM` has 0.
        hidden_dropout: probability of dropping a channel of a residual branch in training.
        return_path: "reversed", "untied" or "inverse", see `enigma.model.Enigma`.
        rotor_form: "plu" or "lifting", see `enigma.invertible_conv1x1`.
        exact: compute on a grid, where the model is bit-exactly invertible up to the head, see
            `enigma.bijections.exact`.
        kernel_size: taps of the causal convolution in the coupling networks; 1 for none.
        learnable_plugboard: learn which channels are swapped.
        num_driven_rotors: layers of rotors that the text drives, see `enigma.driven_rotor`.
        rotor_channels: of a driven rotor; must divide `d`.
        rotor_reflections: of a driven rotor per token; even.
        use_cache: keep keys and values while generating.
        tie_word_embeddings: share the output head with the token embedding.
        logits_in_training: return the logits in training too, and hold them whole, as TRL's
            trainers expect.
        memory: what training keeps, "plain", "checkpoint" or "reversible", see
            `enigma.reversible.run_steps`; the result is the same. Read at construction: afterwards
            set `model.lm.memory`.
        num_reachable: ids with a logit of their own, see `EnigmaForCausalLM.set_reachable`, which
            sets it; None for all.
        ngram_sizes: of an n-gram memory, see `EnigmaForCausalLM.set_ngrams`, which sets it; None
            for no memory.
        pointer_channels: of the pointer to earlier places of the text, see
            `enigma.language_model.memory.pointer`; 0 for none.
        pad_token_id: [PAD] of bert-base-chinese.
        bos_token_id: [CLS] of bert-base-chinese.
        eos_token_id: [SEP] of bert-base-chinese.

    Raises:
        ValueError: for an unknown `return_path`, or sizes that do not divide; raised as the
            validation error of `huggingface_hub`.
        TypeError: for a keyword that neither this class nor transformers knows.

    Examples:
        >>> config = EnigmaConfig(d=24)
        >>> config.hidden_size, config.num_heads, config.conv1x1_positions
        (24, 6, 12)
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
    num_heads: int | None = None
    max_len: int = 256
    use_alibi: bool = True
    use_dynamic_conv1x1: bool = True
    conv1x1_positions: int | None = None
    attention_dropout: float | int = 0.15
    hidden_dropout: float | int = 0.0
    return_path: ReturnPath = "reversed"
    rotor_form: RotorForm = "plu"
    exact: bool = False
    kernel_size: int = 1
    learnable_plugboard: bool = False
    num_driven_rotors: int = 0
    rotor_channels: int = 8
    rotor_reflections: int = 4
    use_cache: bool = True
    tie_word_embeddings: bool = True
    logits_in_training: bool = False
    memory: MemoryMode = "plain"
    num_reachable: int | None = None
    ngram_sizes: list[list[int]] | None = None
    pointer_channels: int = 0
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse unknown keywords, continue as transformers does, then fit what is left open."""
        if unknown := [key for key in kwargs if not self._knows(key)]:
            known = {*self.__dataclass_fields__, *self.attribute_map}
            raise TypeError(unknown_keywords(unknown, known))
        super().__post_init__(**kwargs)
        if self.num_heads is None:
            self.num_heads = fitting_heads(self.d, None)
        if self.conv1x1_positions is None:
            self.conv1x1_positions = fitting_positions(self.d, None)

    @classmethod
    def _knows(cls, key: str) -> bool:
        of_class = key.startswith("_") or hasattr(cls, key) or key in cls.attribute_map
        return of_class or key in _OF_TRANSFORMERS

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Make a configuration from a saved one, which may hold attributes that a user added."""
        known = {key: value for key, value in config_dict.items() if cls._knows(key)}
        made = super().from_dict(known, **kwargs)
        config: Self = made[0] if isinstance(made, tuple) else made
        for key in config_dict.keys() - known.keys():
            setattr(config, key, config_dict[key])
        return made  # type: ignore[no-any-return]  # a pair, if unused keywords are asked for

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, by transformers' names too: PEFT looks for `hidden_size` here.

        To change a setting in this dictionary, change it under its own name, which decides.
        """
        settings: dict[str, Any] = super().to_dict()
        return settings | {name: getattr(self, name) for name in self.attribute_map}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what a file holds: every setting under one name."""
        settings: dict[str, Any] = super().to_diff_dict()
        return {key: settings[key] for key in settings if key not in self.attribute_map}

    def validate_architecture(self) -> None:
        """Check fields against each other; called by the base class."""
        if self.num_transformer_layers < 1:
            raise ValueError(
                "num_transformer_layers must be at least 1, as only attention reads earlier "
                f"tokens, got {self.num_transformer_layers}"
            )
        fitting_heads(self.d, self.num_heads)
        if self.use_dynamic_conv1x1:
            fitting_positions(self.d, self.conv1x1_positions, name="conv1x1_positions")
        if self.num_reachable is not None and not 1 <= self.num_reachable < self.vocab_size:
            raise ValueError(
                f"num_reachable must be from 1 to vocab_size - 1 = {self.vocab_size - 1}, or None, "
                f"got {self.num_reachable}"
            )
        if self.exact and self.rotor_form != "lifting":
            raise ValueError(
                f"exact=True needs rotor_form='lifting', got rotor_form={self.rotor_form!r}"
            )
