"""The adapter takes what transformers' own models take, and refuses unknown keywords by name."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

from enigma.causality import prove_causality
from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.modeling_enigma import EnigmaForCausalLM, EnigmaModel

IDS = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(0))


def trained_loss(model, directory, **settings) -> float:
    """The loss that `Trainer` reports for one batch of equal rows."""
    rows = [{"input_ids": IDS[0], "labels": IDS[0]}] * 2
    arguments = TrainingArguments(
        str(directory), max_steps=1, per_device_train_batch_size=2, learning_rate=0.0,
        report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True,
        **settings,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_label_smoothing_trains_the_shifted_target(make_causal_lm, tmp_path):
    model = make_causal_lm(attention_dropout=0.0)
    logits = model(IDS[:1]).logits[0]

    def smoothed(logits_LV, target_L):
        return functional.cross_entropy(logits_LV, target_L, label_smoothing=0.1).item()

    expected = smoothed(logits[:-1], IDS[0, 1:])
    assert abs(expected - smoothed(logits, IDS[0])) > 0.1, "both targets cost the same here"
    assert trained_loss(model, tmp_path, label_smoothing_factor=0.1) == pytest.approx(
        expected, abs=1e-3
    )


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_logits_that_know_their_targets_are_not_trained(make_causal_lm, tmp_path):
    """Only a loss of labels can take its own target out of the counts."""
    model = make_causal_lm(attention_dropout=0.0)
    model.set_ngrams(count_ngrams(IDS, 120, 3), leave_one_out=True)
    refused = pytest.raises(ValueError, match=r"expected labels in training.*leave_one_out = False")
    with refused:
        trained_loss(model, tmp_path, label_smoothing_factor=0.1)
    model.train()
    for reads_logits in (model, model.lm):
        with refused:
            reads_logits(IDS)
        with torch.no_grad():  # nothing learns
            reads_logits(IDS)
    model.eval()(IDS)
    assert trained_loss(model, tmp_path) > 0
    model.lm.ngrams.leave_one_out = False  # the remedy
    assert trained_loss(model, tmp_path, label_smoothing_factor=0.1) > 0


class Adapted(nn.Module):
    """A head beside which something learns, as LoRA wraps it."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.base = head.requires_grad_(False)
        self.down = nn.Linear(head.in_features, 2, bias=False)
        self.up = nn.Linear(2, head.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("num_items", [None, 7])
def test_an_adapter_on_the_head_learns(make_causal_lm, num_items):
    model = make_causal_lm(attention_dropout=0.0, tie_word_embeddings=False)
    model.lm.head = Adapted(model.lm.head)
    labels = IDS.clone()
    labels[0, :4] = -100
    adapter = [*model.lm.head.down.parameters(), *model.lm.head.up.parameters()]
    expected = model(IDS, labels=labels, num_items_in_batch=num_items).loss
    loss = model.train()(IDS, labels=labels, num_items_in_batch=num_items).loss
    torch.testing.assert_close(loss, expected)
    for ours, plain in zip(
        torch.autograd.grad(loss, adapter), torch.autograd.grad(expected, adapter), strict=True
    ):
        assert plain.abs().max() > 0
        torch.testing.assert_close(ours, plain)


def test_a_hook_on_the_head_fires_in_training(make_causal_lm):
    model = make_causal_lm(attention_dropout=0.0).train()
    plain = model(IDS, labels=IDS).loss
    calls = []
    model.lm.head.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(model(IDS, labels=IDS).loss, plain)
    assert calls == [1]


@pytest.mark.parametrize("training", [False, True])
def test_labels_that_are_shifted_already_are_not_shifted_again(make_causal_lm, training):
    model = make_causal_lm(attention_dropout=0.0).train(training)
    shifted = functional.pad(IDS[:, 1:], (0, 1), value=-100)
    expected = model(IDS, labels=IDS).loss
    torch.testing.assert_close(model(IDS, labels=IDS, shift_labels=shifted).loss, expected)
    torch.testing.assert_close(model(IDS, shift_labels=shifted).loss, expected)
    other = shifted.roll(1, dims=1)
    assert (model(IDS, labels=IDS, shift_labels=other).loss - expected).abs() > 0.01


def test_unknown_keywords_are_refused_by_name(make_causal_lm):
    model = make_causal_lm()
    with pytest.raises(TypeError, match=r"got atention_mask \(to fix this: write attention_mask\)"):
        model(IDS, atention_mask=torch.ones_like(IDS))
    with pytest.raises(TypeError, match="write inputs_embeds"):
        EnigmaModel(model.config)(input_embeds=None)
    with pytest.raises(TypeError, match=r"got num_rotor \(to fix this: write num_rotors\)"):
        EnigmaConfig(num_rotor=3)
    with pytest.raises(TypeError, match=r"qqqq \(to fix this: remove it\)"):
        EnigmaConfig(qqqq=3)
    # The remedy that the messages name.
    model(IDS, attention_mask=torch.ones_like(IDS))
    assert EnigmaConfig(num_rotors=3).num_rotors == 3


def test_keywords_of_transformers_pass_and_old_files_load(make_causal_lm, tmp_path):
    config = EnigmaConfig(
        hidden_size=64, num_attention_heads=4, output_hidden_states=True, torch_dtype="float32",
        num_labels=3, attn_implementation="eager", tokenizer_class="BertTokenizer", top_k=5,
    )  # fmt: skip
    assert (config.d, config.num_heads, config.num_labels) == (64, 4, 3)
    make_causal_lm().save_pretrained(tmp_path)
    written = tmp_path / "config.json"
    old = json.loads(written.read_text(encoding="utf-8"))
    del old["logits_in_training"]
    written.write_text(json.dumps({**old, "my_note": "kept"}), encoding="utf-8")
    loaded = EnigmaConfig.from_pretrained(tmp_path)
    assert loaded.my_note == "kept"
    assert not loaded.logits_in_training
    assert loaded.to_dict()["hidden_size"] == old["d"] == 32
    assert "hidden_size" not in old, "one name per setting in a file"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.my_note == "kept"


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("hidden_size", "d", 64),
        ("num_hidden_layers", "num_transformer_layers", 5),
        ("num_attention_heads", "num_heads", 2),
        ("max_position_embeddings", "max_len", 256),  # the default, given in so many words
    ],
)
def test_a_changed_setting_wins_over_its_alias(tmp_path, alias, name, value):
    config = EnigmaConfig(d=32, max_len=99)
    written = {**config.to_dict(), name: value}
    assert written[alias] != value

    class Derived(EnigmaConfig):
        pass

    for made in (
        EnigmaConfig(**written),
        EnigmaConfig(**dict(reversed(written.items()))),
        EnigmaConfig.from_dict(written),
        Derived.from_dict(written),
        EnigmaConfig.from_dict(config.to_dict(), **{alias: value}),
    ):
        assert getattr(made, name) == getattr(made, alias) == value
        made.save_pretrained(tmp_path)
        again = EnigmaConfig.from_pretrained(tmp_path)
        assert getattr(again, name) == getattr(again, alias) == value
    assert getattr(EnigmaConfig.from_dict({alias: value}), name) == value, "alone, it is the value"


def test_embeddings_take_the_place_of_ids(make_causal_lm):
    model = make_causal_lm()
    rows = model.get_input_embeddings()(IDS)
    torch.testing.assert_close(model(inputs_embeds=rows).logits, model(IDS).logits)
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    from_ids = model.generate(IDS, **greedy)[:, IDS.shape[1] :]
    assert torch.equal(model.generate(inputs_embeds=rows, **greedy), from_ids)
    soft = rows.detach().requires_grad_()
    model(inputs_embeds=soft, labels=IDS).loss.backward()
    assert soft.grad.abs().max() > 0, "prompt tuning needs this gradient"
    for wrong in ({}, {"input_ids": IDS, "inputs_embeds": rows}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**wrong)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("memory", ["plain", "reversible"])
def test_hidden_states_are_what_the_head_would_read(make_causal_lm, layers, memory):
    model = make_causal_lm(num_transformer_layers=layers, memory=memory, attention_dropout=0.0)
    output = model(IDS, output_hidden_states=True)
    first, *_, last = output.hidden_states
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    embedded = model.lm.embedding(IDS, torch.arange(IDS.shape[1]))
    torch.testing.assert_close(first, embedded, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.lm.logits(last), output.logits)
    assert model(IDS).hidden_states is None
    model.config.output_hidden_states = True
    training = model.train()(IDS, labels=IDS)
    (gradient,) = torch.autograd.grad(
        training.hidden_states[-2].sum(), [model.lm.embedding.tokens.weight]
    )
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("padded", [False, True])
def test_attention_weights_are_those_that_were_used(make_causal_lm, padded):
    model = make_causal_lm()
    mask = torch.ones_like(IDS)
    if padded:
        mask[0, :4] = 0
    output = model(IDS, attention_mask=mask, output_attentions=True)
    assert len(output.attentions) == model.config.num_hidden_layers
    for weights in output.attentions:
        assert weights.shape == (2, model.config.num_heads, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert weights.triu(1).max() == 0
        if padded:
            assert weights[0, :, 4:, :4].max() == 0
    plain = model(IDS, attention_mask=mask)
    assert plain.attentions is None
    real = mask.bool()
    torch.testing.assert_close(output.logits[real], plain.logits[real], rtol=0, atol=1e-5)
    attention = model.lm.layers[0].attention
    value = attention._heads(attention.value(model.lm.embedding(IDS, torch.arange(12))))
    if not padded:
        seen = []
        attention.register_forward_hook(lambda module, inputs, result: seen.append(result))
        model(IDS)
        ours = attention.out((output.attentions[0] @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(ours, seen[0], rtol=0, atol=1e-4)


def test_the_eager_implementation_gives_the_same_logits_and_cache(make_causal_lm, tmp_path):
    model = make_causal_lm()
    model.save_pretrained(tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(eager(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(eager.generate(IDS, **greedy), model.generate(IDS, **greedy))
    eager.config.output_attentions = True
    assert len(eager(IDS).attentions) == 3
    grown = eager.generate(IDS, return_dict_in_generate=True, output_attentions=True, **greedy)
    assert grown.attentions[3][0].shape == (2, 4, 1, 15)


def test_return_dict_false_gives_a_tuple(make_causal_lm):
    model = make_causal_lm()
    whole = model(IDS, labels=IDS)
    loss, logits = model(IDS, labels=IDS, return_dict=False)
    torch.testing.assert_close((loss, logits), (whole.loss, whole.logits))
    (states,) = EnigmaModel(model.config).eval()(IDS, return_dict=False, use_cache=False)
    assert states.shape == (2, 12, 32)


def test_logits_in_training_by_a_switch(make_causal_lm):
    model = make_causal_lm(attention_dropout=0.0).train()
    without = model(IDS, labels=IDS)
    assert without.logits is None
    model.config.logits_in_training = True
    with_logits = model(IDS, labels=IDS)
    assert with_logits.logits.shape == (2, 12, 120)
    torch.testing.assert_close(with_logits.loss, without.loss)


def test_auto_model_gives_the_hidden_states(make_causal_lm, tmp_path):
    model = make_causal_lm()
    model.save_pretrained(tmp_path)
    bare, found = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(bare) is EnigmaModel
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    torch.testing.assert_close(
        model.lm.logits(bare(IDS).last_hidden_state), model(IDS).logits, rtol=0, atol=1e-6
    )
    bare.save_pretrained(tmp_path / "bare")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "bare")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_logits_are_kept_for_the_tokens_that_are_asked_for(make_causal_lm):
    model = make_causal_lm()
    whole = model(IDS).logits
    torch.testing.assert_close(model(IDS, logits_to_keep=3).logits, whole[:, -3:])
    chosen = torch.tensor([0, 5])
    torch.testing.assert_close(model(IDS, logits_to_keep=chosen).logits, whole[:, chosen])


def test_a_copy_of_a_configuration_and_of_a_model_is_equal(make_causal_lm):
    model = make_causal_lm()
    assert copy.deepcopy(model.config).to_dict() == model.config.to_dict()
    assert EnigmaConfig.from_dict(model.config.to_dict()).to_dict() == model.config.to_dict()
    twin = EnigmaForCausalLM(model.config).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_other_vocabularies_leave_no_trace_of_the_old_size(make_causal_lm, tied):
    model = make_causal_lm(tie_word_embeddings=tied)
    before = model(IDS).logits.detach()
    model.resize_token_embeddings(130)
    assert model.lm.vocab_size == model.config.vocab_size == 130
    torch.testing.assert_close(model(IDS).logits[..., :120], before)
    assert not prove_causality(model.lm, length=4).real.leak
