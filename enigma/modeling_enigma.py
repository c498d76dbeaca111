"""The Hugging Face adapter: `EnigmaForCausalLM`, registered with the Auto classes on import.

All computation is in `enigma.model`, except the training loss.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from enigma.bijections.constant_weights import constant_weights
from enigma.configuration_enigma import EnigmaConfig
from enigma.model import EnigmaLM

__all__ = ["EnigmaForCausalLM", "training_loss"]

_LOSS_CHUNK = 256
"""Tokens whose logits are held at a time in training; fewer make the products slower."""
_LM_ARGUMENTS = tuple(signature(EnigmaLM).parameters)
"""The configuration has a field for every one of them."""


class EnigmaForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # untyped base
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

    config_class = EnigmaConfig
    base_model_prefix = "lm"
    supports_gradient_checkpointing = True
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

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does; the weights must not change meanwhile."""
        with constant_weights():
            return super().generate(*args, **kwargs)

    def forward(  # noqa: PLR0917 - the order of transformers
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits, and the loss if there are labels.

        Args:
            input_ids: int64 `(B, L)`.
            attention_mask: `(B, L)` or, with a cache, `(B, cached + L)`; 0 at padding.
            position_ids: int64 `(B, L)`, the index of each token in its text; None derives it
                from the mask and the cache.
            past_key_values: keys and values of earlier tokens.
            labels: int64 `(B, L)`, equal to `input_ids` for the tokens to predict and -100
                elsewhere; they are shifted here.
            use_cache: return a cache; None follows the configuration, except in training.
            logits_to_keep: compute the logits of this many last tokens only; 0 for all.
            **kwargs: `num_items_in_batch`, the number of targets of an accumulated batch, makes
                the loss a sum divided by it.

        Returns:
            `logits` `(B, L, V)`, `loss` in nats per token, `past_key_values`. In training with
            labels `logits` is None: they are never held whole (see `training_loss`).
        """
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None:
            # Beside the keys of each attention layer, the convolutions cache their inputs.
            while len(past_key_values.layers) < self.lm.num_cache_slots:
                past_key_values.layers.append(DynamicLayer())
        mask, index = _padding(attention_mask, position_ids, input_ids.shape[1])
        recomputation: dict[str, Any] = {}
        if self.gradient_checkpointing:
            function = self._gradient_checkpointing_func  # set by transformers
            recomputation = {"memory": "checkpoint", "checkpoint_function": function}
        hidden = self.lm.hidden_states(
            input_ids, mask=mask, index=index, cache=past_key_values, **recomputation
        )
        loss = None
        if self.training and labels is not None:
            loss = training_loss(hidden, self.lm.head.weight, labels, **kwargs)
            return CausalLMOutputWithPast(loss=loss, past_key_values=past_key_values)
        logits = self.lm.logits(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


def training_loss(
    hidden_BLD: Tensor,
    head_VD: Tensor,
    labels_BL: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    **_: Any,
) -> Tensor:
    """Return the loss of `EnigmaForCausalLM.forward` without ever holding all logits.

    Args:
        hidden_BLD: floating `(B, L, D)`, final hidden states.
        head_VD: floating `(V, D)`, the output head.
        labels_BL: int64 `(B, L)`, -100 for tokens not to predict; shifted here.
        num_items_in_batch: divide the sum by it; None takes the mean over the targets.
        **_: other arguments that transformers passes to a loss.

    Returns:
        0-d, nats per token, in the dtype of the head.

    The gradients are computed together with the loss, `_LOSS_CHUNK` tokens at a time, so there is
    no second derivative. Autocast is off here: in bf16 the loss itself would be rounded to 3
    digits.
    """
    with torch.autocast(hidden_BLD.device.type, enabled=False):
        loss: Tensor = functional.linear_cross_entropy(
            hidden_BLD[:, :-1].flatten(0, 1).to(head_VD.dtype),
            head_VD,
            labels_BL[:, 1:].flatten(),
            reduction="mean" if num_items_in_batch is None else "sum",
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=_LOSS_CHUNK),
        )
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def _padding(
    attention_mask: Tensor | None, position_ids: Tensor | None, length: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return the mask of the new tokens and their indices; None where there is no padding."""
    if attention_mask is None or bool(attention_mask.all()):
        return None, position_ids
    if position_ids is None:
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return attention_mask[:, -length:], position_ids[:, -length:]


AutoConfig.register(EnigmaConfig.model_type, EnigmaConfig, exist_ok=True)
AutoModelForCausalLM.register(EnigmaConfig, EnigmaForCausalLM, exist_ok=True)
