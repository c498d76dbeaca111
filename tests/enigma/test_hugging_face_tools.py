"""PEFT, accelerate, lm-eval, trust_remote_code and the model card, as an outsider uses them."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModelForCausalLM, BertTokenizerFast

from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM, EnigmaModel

IDS = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(0))


# PEFT 0.21 asks transformers 5.23 by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture
def published():
    """Both classes registered as an author does before publishing, and as before afterwards."""
    classes = (EnigmaForCausalLM, EnigmaModel, EnigmaConfig)
    before = [each._auto_class for each in classes]
    EnigmaForCausalLM.register_for_auto_class()
    yield
    for each, auto_class in zip(classes, before, strict=True):
        each._auto_class = auto_class


REMOTE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"enigma", "pipelines"}:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel, AutoModelForCausalLM
bare = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(bare).__name__ == "EnigmaModel"
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.arange(1, 9).unsqueeze(0)
torch.save(model(ids).logits.detach(), sys.argv[2])
print(model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0))
model.save_pretrained(sys.argv[1] + "/again")
again = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/again", trust_remote_code=True)
assert torch.equal(again(ids).logits, model(ids).logits)
assert "enigma" not in sys.modules
"""


@pytest.mark.slow
def test_a_published_model_loads_without_this_package(
    make_causal_lm, published, tmp_path, monkeypatch
):
    model = make_causal_lm(kernel_size=2, rotor_form="lifting")
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, tmp_path / "model", tmp_path / "logits.pt"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    expected = model(torch.arange(1, 9).unsqueeze(0)).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


def test_without_registration_no_code_is_written(make_causal_lm, tmp_path):
    make_causal_lm().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_the_model_card_of_a_published_model_validates(make_causal_lm, published, tmp_path):
    model = make_causal_lm()
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.language == "zh"
    assert card.data.license == "mit"
    (example,) = card.text.split("```python\n")[1:]
    assert "trust_remote_code=True" in example
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


@pytest.fixture
def hub(monkeypatch):
    """The files of a repository by name; transformers does all but send and fetch them."""
    files = {}

    def create_commit(_, *, operations, **__):
        for each in operations:
            files[each.path_in_repo] = Path(each.path_or_fileobj).read_bytes()

    def load(cls, name, **options):
        if Path(name).exists():
            return loaded(name, **options)
        if "README.md" not in files:
            raise EntryNotFoundError("no card")
        return cls(files["README.md"].decode())

    loaded = ModelCard.load
    monkeypatch.setattr(ModelCard, "load", classmethod(load))
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/mine"))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    return files


WAYS = {
    "push_to_hub": lambda model, _: model.push_to_hub("mine", tags=["my-tag"]),
    "save_pretrained": lambda model, path: model.save_pretrained(path, push_to_hub=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("with_code", [False, True])
def test_a_pushed_model_has_our_card(hub, tmp_path, way, with_code, request):
    if with_code:
        request.getfixturevalue("published")
    model = request.getfixturevalue("make_causal_lm")()
    WAYS[way](model, tmp_path / "mine")
    card = ModelCard(hub["README.md"].decode())
    assert card.data.pipeline_tag == "text-generation"
    assert (card.data.license, card.data.language) == ("mit", "zh")
    assert ("my-tag" in card.data.tags) == (way == "push_to_hub")
    assert ("custom_code" in card.data.tags) == with_code
    assert card.text.strip().startswith("# me/mine")
    assert 'from_pretrained("me/mine"' in card.text
    assert ("trust_remote_code=True" in card.text) == with_code
    assert ("modeling_enigma.py" in hub) == with_code
    assert "model.safetensors" in hub
    hub["README.md"] = b"---\nlicense: mit\n---\nwritten by hand"
    WAYS[way](model, tmp_path / "again")
    assert b"written by hand" in hub["README.md"]


LORA_TARGETS = ["query", "value", "mlp_up", "head"]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_lora_needs_no_extra_words(make_causal_lm, tmp_path):
    peft = pytest.importorskip("peft")
    model = make_causal_lm(attention_dropout=0.0, tie_word_embeddings=False)
    before = model(IDS).logits.detach()
    settings = peft.LoraConfig(r=2, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings).train()
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    up = {name: p.grad for name, p in adapted.named_parameters() if "lora_B" in name}
    assert all(grad is not None and grad.abs().max() > 0 for grad in up.values())
    for target in LORA_TARGETS:
        assert any(target in name for name in up), target
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    optimiser.step()
    adapted.eval()
    trained = adapted(input_ids=IDS).logits
    assert (trained - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        make_causal_lm(attention_dropout=0.0, tie_word_embeddings=False), tmp_path
    ).eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, trained)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, trained, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_prompts_are_tuned_without_extra_words(make_causal_lm, kind):
    peft = pytest.importorskip("peft")
    settings = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    tuned = peft.get_peft_model(make_causal_lm(), settings)
    loss = tuned(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS).loss
    loss.backward()
    (prompt,) = [p for p in tuned.parameters() if p.requires_grad]
    assert prompt.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_lm_eval_scores_a_model(make_causal_lm):
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天下大势分久必合"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    model = make_causal_lm(vocab_size=len(vocabulary), bos_token_id=2, eos_token_id=3)
    scorer = HFLM(pretrained=model, tokenizer=BertTokenizerFast(vocab=vocabulary), batch_size=2)
    context, continuation = [5, 6, 7], [8, 9]
    ((score, _),) = scorer._loglikelihood_tokens([(("", ""), context, continuation)])
    ids = torch.tensor([context + continuation])
    expected = model(ids).logits.log_softmax(-1)[0, 2:4].gather(1, ids[:, 3:].mT).sum()
    assert score == pytest.approx(expected.item(), abs=1e-4)


def test_the_text_generation_pipeline_passes_what_a_bert_tokenizer_makes(make_causal_lm):
    model = make_causal_lm()
    inputs = {"attention_mask": torch.ones_like(IDS), "token_type_ids": torch.zeros_like(IDS)}
    assert torch.equal(model(IDS, **inputs).logits, model(IDS).logits)
    greedy = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **inputs, **greedy), model.generate(IDS, **greedy))


WEIGHTS = {
    "lm.embedding.tokens.weight": (120, 32),
    "lm.layers.0.attention.query.weight": (24, 32),
    "lm.layers.0.attention.key.weight": (24, 32),
    "lm.layers.0.attention.value.weight": (32, 32),
    "lm.layers.0.attention.out.weight": (32, 32),
    "lm.layers.0.mlp_up.weight": (128, 32),
    "lm.layers.2.mlp_down.weight": (32, 128),
    "lm.core.plugboard.partner": (32,),
    "lm.core.rotors.layers.1.packed": (32, 32),
    "lm.core.blocks.0.f.network.hidden.0.weight": (64, 16),
    "lm.core.blocks.1.g.network.out.weight": (16, 64),
    "lm.core.reflector.vectors": (1, 32),
    "lm.head.weight": (120, 32),
}
# What the first version computes from the weights below, without and with left padding.
LOGITS = [[-2.80800406, 2.95365312, -1.84537649], [-0.86198924, -1.93658995, 3.91302118]]
PADDED_LOGITS = [-2.3232967, 0.45865021, 1.60070881]


def test_files_of_the_first_version_give_equal_logits(make_causal_lm, tmp_path):
    state = make_causal_lm().double().state_dict()
    assert len(state) == 34
    assert {name: tuple(state[name].shape) for name in WEIGHTS} == WEIGHTS
    for number, (name, value) in enumerate(sorted(state.items())):
        if value.is_floating_point():
            angle = torch.arange(value.numel(), dtype=torch.float64) * (1 + number)
            state[name] = 0.3 * torch.sin(angle).view(value.shape)
    state["lm.head.weight"] = state["lm.embedding.tokens.weight"]
    first = make_causal_lm().double()
    first.load_state_dict(state)
    first.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids, mask = torch.arange(1, 13).unsqueeze(0), torch.tensor([[0] * 4 + [1] * 8])
    close = {"rtol": 0, "atol": 1e-7}
    expected = torch.tensor(LOGITS, dtype=torch.float64)
    torch.testing.assert_close(loaded(ids).logits[0, [0, 11], :3], expected, **close)
    padded = loaded(ids, attention_mask=mask).logits[0, -1, :3]
    torch.testing.assert_close(padded, padded.new_tensor(PADDED_LOGITS), **close)
