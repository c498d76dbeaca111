"""The flow as MLflow serves it; this file is logged with the model.

It imports only what the logged model carries: the package `enigma` and transformers.
`mlflow.pyfunc.log_model` gets its path, so nothing is pickled.

Shape legend: L tokens, D dimensions.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from enigma.generation import Sampling, check_prompt
from enigma.jacobian_logdet import load_flow
from enigma.modeling_enigma import EnigmaForCausalLM


class Flow(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # untyped base
    """Column `prompt` in, column `nll_nats_per_dim` out: how atypical the states of a text are."""

    def load_context(self, context: Any) -> None:
        """Load flow, whitening and the language model from the version's own files."""
        directory = Path(context.artifacts["model"])
        self._flow = load_flow(directory).eval()
        self._whitening = load_file(directory / "whitening.safetensors")
        facts = json.loads((directory / "flow_training.json").read_text(encoding="utf-8"))
        self._noise_std = float(facts["noise_std"])
        language_model = Path(context.artifacts["language_model"])
        self._tokenizer = AutoTokenizer.from_pretrained(language_model)
        self._model = EnigmaForCausalLM.from_pretrained(language_model).eval()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score every prompt.

        Args:
            context: MLflow's; not needed.
            model_input: Column `prompt`.
            params: `seed` of the noise, which is part of the density's definition.

        Returns:
            Column `nll_nats_per_dim`: negative log density of the final hidden states,
            averaged over tokens and dimensions; with the index of the input.

        Raises:
            ValueError: If a prompt or the seed is out of bounds, as for the language model.
        """
        del context
        seed = Sampling(**(params or {})).seed
        scores = [self._nll_nats_per_dim(prompt, seed) for prompt in model_input["prompt"]]
        return pd.DataFrame({"nll_nats_per_dim": scores}, index=model_input.index)

    @torch.no_grad()
    def _nll_nats_per_dim(self, prompt: str, seed: int) -> float:
        check_prompt(prompt)
        ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids_1L = torch.tensor([ids or [self._tokenizer.eos_token_id]])
        states_LD = self._model.lm.hidden_states(ids_1L)[0]
        noise_LD = torch.randn(states_LD.shape, generator=torch.Generator().manual_seed(seed))
        noisy_LD = (states_LD + self._noise_std * noise_LD).double()
        factor_DD = self._whitening["factor"].double()
        centred_DL = (noisy_LD - self._whitening["mean"].double()).T
        white_LD = torch.linalg.solve_triangular(factor_DD, centred_DL, upper=False).T.float()
        log_prob_L = self._flow.log_prob(white_LD).double() - factor_DD.diagonal().log().sum()
        return float(-log_prob_L.mean() / states_LD.shape[1])


mlflow.models.set_model(Flow())
