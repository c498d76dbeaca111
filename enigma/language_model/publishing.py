"""Saving a model with its code and a card, for users without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.hub_card import write_hub_card
from enigma.language_model.remote_code import write_remote_code

__all__ = ["Publishing"]


class Publishing(PreTrainedModel):  # type: ignore[misc]  # transformers ships no types
    """What the models of the adapter have beside the saving of transformers."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None) -> None:
        """Let `save_pretrained` write the code too, for users without this package.

        They load the model with `trust_remote_code=True`, or with this package installed as before.

        Args:
            auto_class: "AutoModel" or "AutoModelForCausalLM"; None takes that of the class.
        """
        default = "AutoModelForCausalLM" if cls.__name__ == "EnigmaForCausalLM" else "AutoModel"
        super().register_for_auto_class(auto_class or default)
        EnigmaConfig.register_for_auto_class()

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; after `register_for_auto_class` with code and model card."""
        if self._auto_class is not None:  # transformers adds the registered class and the config
            self.config.auto_map = {"AutoModel": "modeling_enigma.EnigmaModel"}
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
