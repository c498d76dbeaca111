"""The Hugging Face adapter, registered with the Auto classes on import.

`EnigmaModel` gives hidden states, `EnigmaForCausalLM` logits and losses. All computation is in
`enigma.model`, except the training loss.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from enigma.configuration_enigma import EnigmaConfig, unknown_keywords
from enigma.language_model.generating import Generating, complete_cache
from enigma.language_model.inputs import Places, find_places, kept, one_of, packed_texts
from enigma.language_model.memory.evidence import Evidence
from enigma.language_model.memory.ngram_counts import NGramCounts
from enigma.language_model.memory.ngram_memory import sizes_of
from enigma.language_model.publishing import Publishing
from enigma.language_model.training_loss import training_loss
from enigma.model import EnigmaLM

__all__ = ["EnigmaForCausalLM", "EnigmaModel"]

_LM_ARGUMENTS = tuple(signature(EnigmaLM).parameters)
"""The configuration has a field for every one of them."""


class EnigmaPreTrainedModel(Publishing):
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
        self.lm.use(self.lm.reachable)

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the output head."""
        self.lm.head = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Embedding:
        """Resize as transformers does; in a reachable vocabulary, ids that are added are reachable.

        So tokens that a fine-tuning adds are learned.

        Raises:
            ValueError: for fewer ids in a model with an n-gram memory, or so few that none is
                reachable, or all are; the model is unchanged.
        """
        if new_num_tokens is not None and new_num_tokens < self.lm.vocab_size:
            self.lm.check_fewer(new_num_tokens)
        embedding: nn.Embedding = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.lm.resize_classes()
        self._keep_parts()
        if self.lm.reachable is not None:
            self.config.num_reachable = self.lm.num_classes - 1
        return embedding

    def set_reachable(self, reachable_ids: Tensor, possible: Tensor) -> None:
        """Say which ids training reaches, see `EnigmaLM.set_reachable`."""
        self.lm.set_reachable(reachable_ids, possible)
        self._keep_parts()
        self.config.num_reachable = len(reachable_ids)

    def set_ngrams(self, counts: NGramCounts | None, *, leave_one_out: bool = False) -> None:
        """Give the model an n-gram memory or take it away, see `EnigmaLM.set_ngrams`."""
        self.lm.set_ngrams(counts, leave_one_out=leave_one_out)
        self._keep_parts()
        self.config.ngram_sizes = None if counts is None else sizes_of(counts)

    def set_pointer(self, channels: int) -> None:
        """Give the model a pointer or take it away, see `EnigmaLM.set_pointer`."""
        self.lm.set_pointer(channels)
        self._keep_parts()
        self.config.pointer_channels = channels

    def _keep_parts(self) -> None:
        """Let `init_weights` keep what was set after construction, as it keeps all else."""
        for part in self.modules():
            part._is_hf_initialized = True  # noqa: SLF001

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
    ) -> tuple[BaseModelOutputWithPast, Places]:
        """Run all of the model but its head; for the arguments see `EnigmaForCausalLM.forward`."""
        given = one_of(input_ids, inputs_embeds)
        packed = None
        if position_ids is not None and attention_mask is None and past_key_values is None:
            packed = packed_texts(position_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and packed is None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None:
            complete_cache(past_key_values, self.lm)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        weights: list[Tensor] | None = [] if output_attentions else None
        states: list[Tensor] | None = [] if output_hidden_states else None
        places = find_places(
            attention_mask,
            position_ids,
            past_key_values,
            given,
            packed=packed,
            kernel_size=self.config.kernel_size,
            num_driven_rotors=self.config.num_driven_rotors,
            reads_ids=self.lm.reads_ids,
        )
        options: dict[str, Any] = {}
        if self.gradient_checkpointing:
            function = self._gradient_checkpointing_func  # set by transformers
            options = {"memory": "checkpoint", "checkpoint_function": function}
        hidden = self.lm.hidden_states(
            input_ids,
            rows=inputs_embeds,
            mask=places.mask,
            index=places.index,
            visible=places.visible,
            cache=past_key_values,
            weights=weights,
            states=states,
            **options,
        )
        output = BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=None if states is None else (*states, hidden),
            attentions=tuple(weights or ()) if output_attentions else None,
        )
        return output, places


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
        output, _ = self._hidden_states(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        return output


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
            ValueError: for neither or both of ids and embeddings, ids that are not `(B, L)`,
                packed texts or a mask of 4 dimensions in a model with convolutions or rotors that
                the text drives; and see `EnigmaLM.refuse_counted_targets` and
                `enigma.language_model.inputs.refuse_padding_inside`.
        """
        _refuse_unknown(unknown, type(self).forward)
        has_targets = labels is not None or shift_labels is not None
        if not has_targets:
            self.lm.refuse_counted_targets()
        if use_cache is None and has_targets:
            use_cache = False
        output, places = self._hidden_states(
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
        evidence = self._evidence(input_ids, output, places, 0 if has_targets else logits_to_keep)
        loss, logits = None, None
        learns = has_targets and self.training
        if learns and (evidence is not None or not self.config.logits_in_training):
            loss = training_loss(
                hidden,
                self.lm,
                labels,
                num_items_in_batch=num_items_in_batch,
                shift_labels_BL=shift_labels,
                evidence=evidence,
            )
        if not learns or self.config.logits_in_training:
            if evidence is not None and has_targets:
                evidence = evidence.at(lambda each: kept(each, logits_to_keep))
            logits = self.lm.logits(kept(hidden, logits_to_keep), evidence)
            if has_targets and loss is None:
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

    def _evidence(
        self,
        input_ids: Tensor | None,
        output: BaseModelOutputWithPast,
        places: Places,
        logits_to_keep: int | Tensor,
    ) -> Evidence | None:
        """Return what the memories find for the tokens that are kept, see `EnigmaLM.evidence`."""
        hidden = output.last_hidden_state
        rows = None
        if isinstance(logits_to_keep, Tensor) or logits_to_keep:
            every_1L = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
            rows = kept(every_1L, logits_to_keep)[0]
        return self.lm.evidence(
            hidden,
            input_ids,
            places.mask,
            output.past_key_values,
            starts_BL=places.starts,
            visible=places.visible,
            rows=rows,
        )


def _refuse_unknown(unknown: dict[str, Any], function: Any) -> None:
    if unknown:
        known = {*signature(function).parameters, "return_dict"} - {"self", "unknown"}
        raise TypeError(unknown_keywords(unknown, known))


AutoConfig.register(EnigmaConfig.model_type, EnigmaConfig, exist_ok=True)
AutoModel.register(EnigmaConfig, EnigmaModel, exist_ok=True)
AutoModelForCausalLM.register(EnigmaConfig, EnigmaForCausalLM, exist_ok=True)
# `Trainer` looks here whether label smoothing has to shift the labels.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[EnigmaConfig.model_type] = EnigmaForCausalLM.__name__
