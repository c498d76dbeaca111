"""The language model as MLflow serves it; this file is logged with the model.

It imports only what the logged model carries: the package `enigma` and transformers.
`mlflow.pyfunc.log_model` gets its path, so nothing is pickled.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from transformers import AutoTokenizer

from enigma.generation import Sampling, continue_text
from enigma.modeling_enigma import EnigmaForCausalLM


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
        """Continue every prompt, as `enigma generate` does.

        Args:
            context: MLflow's; not needed.
            model_input: Column `prompt`.
            params: The fields of `Sampling`; the model's signature has the same defaults.

        Returns:
            Column `text`, with the index of the input.

        Raises:
            ValueError: If a prompt or a setting is out of bounds, as for `enigma generate`.
        """
        del context
        sampling = Sampling(**(params or {}))
        texts = [
            prompt + continue_text(self._model, self._tokenizer, prompt, sampling)
            for prompt in model_input["prompt"]
        ]
        return pd.DataFrame({"text": texts}, index=model_input.index)


mlflow.models.set_model(LanguageModel())
