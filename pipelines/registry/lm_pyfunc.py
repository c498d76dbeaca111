"""The language model as MLflow serves it; this file is logged with the model.

It imports only what the logged model brings along: the package `enigma`, transformers.
Given by path to `mlflow.pyfunc.log_model`, so nothing is pickled.
"""

import re
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from transformers import AutoTokenizer

from enigma.modeling_enigma import EnigmaForCausalLM

# WordPiece decoding puts a space between any two tokens; Chinese is written without.
_SPACE_BESIDE_CHINESE = re.compile(r" (?=[^\x00-\x7f])|(?<=[^\x00-\x7f]) ")


class LanguageModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # untyped base
    """Column `prompt` in, column `text` out: the prompt and its continuation."""

    def load_context(self, context: Any) -> None:
        """Load weights and tokenizer from the version's own files."""
        directory = Path(context.artifacts["model"])
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = EnigmaForCausalLM.from_pretrained(directory).eval()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Continue every prompt.

        Args:
            context: MLflow's; not needed.
            model_input: Column `prompt`.
            params: `max_new_tokens`, `temperature` (0 takes the likeliest token),
                `top_p` and `seed`, as in the model's signature, which has the defaults.

        Returns:
            Column `text`, with the index of the input.
        """
        del context
        texts = [self._continue(prompt, params or {}) for prompt in model_input["prompt"]]
        return pd.DataFrame({"text": texts}, index=model_input.index)

    def _continue(self, prompt: str, params: dict[str, Any]) -> str:
        ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        prompt_1L = torch.tensor([ids or [self._tokenizer.eos_token_id]])
        choice: dict[str, Any] = {"do_sample": False}
        if params["temperature"] > 0:
            choice = {
                "do_sample": True,
                "temperature": params["temperature"],
                "top_p": params["top_p"],
            }
        torch.manual_seed(params["seed"])
        output_1L = self._model.generate(
            prompt_1L,
            attention_mask=torch.ones_like(prompt_1L),
            max_new_tokens=params["max_new_tokens"],
            **choice,
        )
        added = self._tokenizer.decode(output_1L[0, prompt_1L.shape[1] :], skip_special_tokens=True)
        return prompt + _SPACE_BESIDE_CHINESE.sub("", added)


mlflow.models.set_model(LanguageModel())
