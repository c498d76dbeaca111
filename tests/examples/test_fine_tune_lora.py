"""The example runs on a tiny model, and what it prints is what happened."""

import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, BertTokenizerFast

from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from tests.support import REPOSITORY

LINES = ["天下大势分久必合", "合久必分", "势大必分天下"]
LOSSES = r"nats per token, trained lines ([\d.]+), held out ([\d.]+)"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_adapter_learns_the_lines_and_the_model_stays(tmp_path):
    peft = pytest.importorskip("peft")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"".join(LINES)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    config = EnigmaConfig(
        vocab_size=len(vocabulary), d=32, num_rev_blocks=1, num_rotors=1, num_heads=2, max_len=16,
        num_transformer_layers=2, conv1x1_positions=4, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model = EnigmaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "lines.txt").write_text("\n\n".join(LINES * 10), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "fine_tune_lora.py", tmp_path / "model",
         tmp_path / "lines.txt", "--prompt", "天下", "--out", tmp_path / "lora",
         "--learning-rate", "0.02"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = ([float(x) for x in pair] for pair in re.findall(LOSSES, done.stdout))
    assert after[0] < before[0] - 0.5
    assert after[1] < before[1] - 0.5, "the held-out lines are among the trained ones here"
    assert done.stdout.count("天下") >= 2
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(base(ids).logits, model(ids).logits)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    assert (adapted(ids).logits - model(ids).logits).abs().max() > 0.1


def test_too_few_lines_are_refused(tmp_path):
    pytest.importorskip("peft")
    (tmp_path / "lines.txt").write_text("天下\n", encoding="utf-8")
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("example", REPOSITORY / "examples" / "fine_tune_lora.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match="expected at least 10 lines, got 1"):
        module.read_lines(tmp_path / "lines.txt")
