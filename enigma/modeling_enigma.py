"""The Hugging Face adapter, registered with the Auto classes on import.

`EnigmaModel` gives hidden states, `EnigmaForCausalLM` logits and losses. All computation is in
`enigma.model`, except the training loss.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from enigma.configuration_enigma import EnigmaConfig, unknown_keywords
from enigma.language_model.generating import Generating
from enigma.language_model.hub_card import write_hub_card
from enigma.language_model.masks import filled_keys, packed_texts
from enigma.language_model.remote_code import write_remote_code
from enigma.language_model.training_loss import training_loss
from enigma.model import EnigmaLM

__all__ = ["EnigmaForCausalLM", "EnigmaModel"]

_LM_ARGUMENTS = tuple(signature(EnigmaLM).parameters)
"""The configuration has a field for every one of them."""


class EnigmaPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # untyped base
    """What the models of this module share: an `EnigmaLM` with the interface of transformers.

    Args:
        config: sizes and switches.
    """

    config_class = EnigmaConfig
    base_model_prefix = "lm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _no_split_modules: ClassVar[list[str]] = ["AttentionLayer", "RevBlock"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm.head.weight": "lm.embedding.tokens.weight"}

    def __init__(self, config: EnigmaConfig) -> None:
        super().__init__(config)
        self.lm = EnigmaLM(**{name: getattr(config, name) for name in _LM_ARGUMENTS})
        self.gradient_checkpointing = False  # switched by `activation_checkpointing_enable`
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one part; transformers calls it for every module without loaded weights."""
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.lm.embedding.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.lm.embedding.tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the output head."""
        self.lm.head = new_embeddings

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None) -> None:
        """Let `save_pretrained` write the code too, for users without this package.

        They load the model with `trust_remote_code=True`, or with this package installed as before.

        Args:
            auto_class: "AutoModel" or "AutoModelForCausalLM"; None takes that of the class.
        """
        default = "AutoModelForCausalLM" if cls is EnigmaForCausalLM else "AutoModel"
        super().register_for_auto_class(auto_class or default)
        EnigmaConfig.register_for_auto_class()

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; after `register_for_auto_class` with code and model card."""
        if self._auto_class is not None:  # transformers adds the registered class and the config
            self.config.auto_map = {"AutoModel": f"modeling_enigma.{EnigmaModel.__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._auto_class is not None:
            write_remote_code(Path(save_directory))
            write_hub_card(Path(save_directory), self.num_parameters())

    def _upload_modified_files(
        self, working_dir: str | Path, repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Add code and model card to what transformers uploads, in either way of pushing."""
        with_code = self._auto_class is not None
        if with_code:
            write_remote_code(Path(working_dir))
        write_hub_card(Path(working_dir), self.num_parameters(), name=repo_id, with_code=with_code)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @staticmethod
    def create_masks_for_generate(
        config: EnigmaConfig,  # noqa: ARG004 - the signature of transformers
        attention_mask: Tensor | None,
        **_: Any,
    ) -> Tensor | None:
        """Return the mask of the tokens as it is: the model hides padding by itself."""
        return attention_mask

    def _hidden_states(  # noqa: PLR0917 - the order of transformers
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> BaseModelOutputWithPast:
        """Run all of the model but its head; for the arguments see `EnigmaForCausalLM.forward`."""
        given = _one_of(input_ids, inputs_embeds)
        packed = None
        if position_ids is not None and attention_mask is None and past_key_values is None:
            packed = packed_texts(position_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and packed is None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None:
            # Beside the keys of each attention layer, the convolutions cache their inputs.
            while len(past_key_values.layers) < self.lm.num_cache_slots:
                past_key_values.layers.append(DynamicLayer())
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        weights: list[Tensor] | None = [] if output_attentions else None
        states: list[Tensor] | None = [] if output_hidden_states else None
        options = self._places(attention_mask, position_ids, past_key_values, given, packed)
        if self.gradient_checkpointing:
            function = self._gradient_checkpointing_func  # set by transformers
            options |= {"memory": "checkpoint", "checkpoint_function": function}
        hidden = self.lm.hidden_states(
            input_ids,
            rows=inputs_embeds,
            cache=past_key_values,
            weights=weights,
            states=states,
            **options,
        )
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=None if states is None else (*states, hidden),
            attentions=tuple(weights or ()) if output_attentions else None,
        )

    def _places(
        self,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        given: Tensor,
        packed: Tensor | None,
    ) -> dict[str, Any]:
        """Return mask, index and visible keys of the new tokens, see `EnigmaLM.hidden_states`."""
        length = given.shape[1]
        visible = None
        if attention_mask is not None and attention_mask.ndim == 4:
            floating = attention_mask.is_floating_point()
            visible, attention_mask = attention_mask if floating else attention_mask.bool(), None
            self._refuse_if_texts_mix("a mask of 4 dimensions")
        elif packed is not None:
            visible = packed
            self._refuse_if_texts_mix("position_ids of several packed texts")
            if cache is not None:
                raise ValueError(
                    "expected use_cache=False with position_ids of several packed texts, got True"
                )
        elif cache is not None and cache.layers[0].is_compileable:
            visible = filled_keys(cache, length, given.device)
        if attention_mask is not None and position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        # Without a cache all tokens are new, and a slice would fix sizes in an export.
        if cache is not None and attention_mask is not None:
            attention_mask = attention_mask[:, attention_mask.shape[1] - length :]
        if cache is not None and position_ids is not None:
            position_ids = position_ids[..., position_ids.shape[-1] - length :]
        return {"mask": attention_mask, "index": position_ids, "visible": visible}

    def _refuse_if_texts_mix(self, what: str) -> None:
        for name, reads, most in (
            ("kernel_size", "convolutions", 1),
            ("num_driven_rotors", "rotors", 0),
        ):
            if (got := getattr(self.config, name)) > most:
                raise ValueError(
                    f"expected {name}={most} with {what}, got {got}, whose {reads} would read "
                    "across texts; to fix this: pass one text per row with a mask of 2 dimensions"
                )


class EnigmaModel(EnigmaPreTrainedModel):
    """The language model without its head: final hidden states for each token.

    Examples:
        >>> config = EnigmaConfig(vocab_size=111, d=16, num_rev_blocks=1, num_heads=2,
        ...                       num_transformer_layers=2, conv1x1_positions=4)
        >>> EnigmaModel(config)(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0917 - the order of transformers
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        token_type_ids: Tensor | None = None,  # noqa: ARG002 - a BERT tokenizer makes them
        **unknown: Any,
    ) -> BaseModelOutputWithPast:
        """Return the normalised final hidden states; see `EnigmaForCausalLM.forward`."""
        _refuse_unknown(unknown, type(self).forward)
        return self._hidden_states(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )


class EnigmaForCausalLM(EnigmaPreTrainedModel, Generating, GenerationMixin):  # type: ignore[misc]
    """`EnigmaLM` with the interface of transformers.

    It trains under `Trainer`, saves as safetensors, loads through `AutoModelForCausalLM` (after
    `import enigma.modeling_enigma`) and generates with a key-value cache.

    Args:
        config: sizes and switches.

    Examples:
        >>> config = EnigmaConfig(vocab_size=111, d=16, num_rev_blocks=1, num_heads=2,
        ...                       num_transformer_layers=2, conv1x1_positions=4)
        >>> model = EnigmaForCausalLM(config)
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> model(ids, labels=ids).loss.item() > 0
        True
    """

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0917 - the order of transformers
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        token_type_ids: Tensor | None = None,  # noqa: ARG002 - a BERT tokenizer makes them
        **unknown: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits, and the loss if there are labels.

        Args:
            input_ids: int64 `(B, L)`.
            attention_mask: `(B, L)` or, with a cache, `(B, cached + L)`; 0 at padding. Or `(B or
                1, heads or 1, L, cached + L)`: bool, which keys each query sees, or floating, what
                is added to its scores; it then decides alone, also about later tokens.
            position_ids: int64 `(B, L)`, the index of each token in its text; None derives it
                from the mask and the cache. Without mask and cache, a new text starts wherever
                they do not go up by one (packing): no token then sees another text.
            past_key_values: keys and values of earlier tokens, in a dynamic or a static cache.
            inputs_embeds: floating `(B, L, D)`, token embeddings instead of ids.
            labels: int64 `(B, L)`, equal to `input_ids` for the tokens to predict and -100
                elsewhere; they are shifted here.
            use_cache: return a cache; None follows the configuration, except in training.
            logits_to_keep: compute the logits of this many last tokens only, or of the tokens at
                these indices; 0 for all.
            output_attentions: return the attention weights, `(B, heads, L, S)` for each layer.
            output_hidden_states: return what the head would read before every attention layer,
                and what it does read, each `(B, L, D)`.
            shift_labels: int64 `(B, L)`, labels that are shifted already; they replace `labels`.
            num_items_in_batch: the number of targets of an accumulated batch, which makes the
                loss a sum divided by it.
            token_type_ids: ignored; a BERT tokenizer makes them, 0 for a single text.
            **unknown: refused by name; `return_dict` is handled before.

        Returns:
            `logits` `(B, L, V)`, `loss` in nats per token, `past_key_values`. In training with
            labels `logits` is None, since they are never held whole (see `training_loss`), unless
            `config.logits_in_training` is set.

        Raises:
            TypeError: for an unknown keyword.
            ValueError: for neither or both of ids and embeddings, ids that are not `(B, L)`, and
                packed texts or a mask of 4 dimensions in a model with convolutions or rotors that
                the text drives.
        """
        _refuse_unknown(unknown, type(self).forward)
        has_targets = labels is not None or shift_labels is not None
        if use_cache is None and has_targets:
            use_cache = False
        output = self._hidden_states(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        hidden = output.last_hidden_state
        loss, logits = None, None
        if has_targets and self.training and not self.config.logits_in_training:
            loss = training_loss(hidden, self.lm.head, labels, num_items_in_batch, shift_labels)
        else:
            logits = self.lm.logits(_kept(hidden, logits_to_keep))
            if has_targets:
                loss = self.loss_function(
                    logits=logits,
                    labels=labels,
                    vocab_size=self.config.vocab_size,
                    num_items_in_batch=num_items_in_batch,
                    shift_labels=shift_labels,
                )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


def _one_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return the ids or the embeddings; check that there are either, with a batch dimension."""
    if input_ids is None:
        if inputs_embeds is None:
            raise ValueError("expected either input_ids or inputs_embeds, got neither")
        return inputs_embeds
    if inputs_embeds is not None:
        raise ValueError("expected either input_ids or inputs_embeds, got both")
    if input_ids.ndim != 2:
        raise ValueError(
            f"expected input_ids of shape (B, L), got {tuple(input_ids.shape)}; to fix this: give "
            "a single text a batch dimension, input_ids.unsqueeze(0)"
        )
    return input_ids


def _kept(hidden_BLD: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    if isinstance(logits_to_keep, Tensor):
        return hidden_BLD[:, logits_to_keep]
    return hidden_BLD[:, -logits_to_keep:] if logits_to_keep else hidden_BLD


def _refuse_unknown(unknown: dict[str, Any], function: Any) -> None:
    if unknown:
        known = {*signature(function).parameters, "return_dict"} - {"self", "unknown"}
        raise TypeError(unknown_keywords(unknown, known))


AutoConfig.register(EnigmaConfig.model_type, EnigmaConfig, exist_ok=True)
AutoModel.register(EnigmaConfig, EnigmaModel, exist_ok=True)
AutoModelForCausalLM.register(EnigmaConfig, EnigmaForCausalLM, exist_ok=True)
# `Trainer` looks here whether label smoothing has to shift the labels.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[EnigmaConfig.model_type] = EnigmaForCausalLM.__name__
