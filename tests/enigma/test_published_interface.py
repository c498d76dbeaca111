"""The published names work as written, and a fresh process can use a saved model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast

from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.presets import PRESETS, build_preset, count_parameters
from enigma.modeling_enigma import EnigmaForCausalLM

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "presets.md"


def test_the_published_keywords():
    from enigma.invertible_conv1x1 import (
        DynamicInvertibleConv1x1Stack,
        InvertibleConv1x1,
        InvertibleConv1x1Stack,
    )
    from enigma.jacobian_logdet import EnigmaFlow
    from enigma.model import Enigma, EnigmaLM

    x = torch.randn(2, 8, 512)
    for layer in (
        InvertibleConv1x1(num_channels=512),
        InvertibleConv1x1Stack(num_channels=512, num_layers=4),
        DynamicInvertibleConv1x1Stack(num_channels=512, num_layers=4, positions=16),
    ):
        torch.testing.assert_close(layer.inverse(layer(x)), x)

    model = EnigmaLM(
        vocab_size=21128,
        d=512,
        num_rev_blocks=4,
        num_rotors=4,
        num_transformer_layers=6,
        num_heads=8,
        max_len=256,
        use_alibi=True,
        use_dynamic_conv1x1=True,
        conv1x1_positions=16,
    )
    logits = model(torch.randint(0, 21128, (1, 4)))
    assert logits.shape == (1, 4, 21128)

    flow = EnigmaFlow(Enigma(d=64), prior="gaussian")
    assert flow.log_prob(torch.randn(3, 64)).shape == (3,)
    assert flow.sample((5,)).shape == (5, 64)


def test_the_table_of_the_presets_agrees_with_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        counts = count_parameters(preset)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d", row.split("|", 2)[2])]
        assert numbers[: len(counts)] == list(counts.values())
    small = build_preset("512-wide-6-layer", d=64, vocab_size=50, num_transformer_layers=1)
    assert sum(p.numel() for p in small.parameters()) > 0
    assert EnigmaConfig(**PRESETS["768-wide-12-layer"]).hidden_size == 768
    with pytest.raises(ValueError, match="preset must be one of"):
        build_preset("huge")


@pytest.mark.slow
def test_a_fresh_process_loads_and_generates(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天下大势分久必合"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(tmp_path)
    config = EnigmaConfig(
        vocab_size=len(vocabulary),
        d=32,
        num_rev_blocks=1,
        num_rotors=1,
        num_transformer_layers=2,
        num_heads=2,
        conv1x1_positions=4,
        bos_token_id=2,
        eos_token_id=None,
    )
    EnigmaForCausalLM(config).save_pretrained(tmp_path)
    program = f"""
import enigma.modeling_enigma
from transformers import AutoModelForCausalLM, pipeline
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
assert type(model).__name__ == "EnigmaForCausalLM"
write = pipeline("text-generation", model={str(tmp_path)!r})
print(write("天下大势", max_new_tokens=6, do_sample=False)[0]["generated_text"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "天" in done.stdout
