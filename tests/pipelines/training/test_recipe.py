"""What a recipe can choose: optimiser, schedule, average; and what ends a run."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.checkpoints import AVERAGED, checkpoint_path, newest_complete, steps_on_disk
from pipelines.runs.directory import Outcome
from pipelines.training.history import evaluations
from pipelines.training.ranks import ExplodedError, SaveError
from tests.support import TINY_NGRAMS, TINY_RUN

pytestmark = pytest.mark.slow

LAST = TINY_RUN["train.max_steps"]
EVERYTHING = {
    "count_ngrams": TINY_NGRAMS,
    "train.optimiser": "muon",
    "train.schedule": "trapezoid",
    "train.cooldown_fraction": 0.5,
    "train.ema_decay": 0.5,
    "train.gradient_accumulation_steps": 2,
}


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "model.safetensors").read_bytes()


def test_muon_trapezoid_and_average_resume_bit_for_bit(
    one_rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr("transformers.trainer.logger.warning", warned.append)
    rank = one_rank(EVERYTHING)
    assert rank.train() == Outcome("finished", LAST)
    last = checkpoint_path(rank.run.checkpoints, LAST)
    expected = [weights(last), weights(last / AVERAGED)]
    history = rank.run.metrics.read()
    assert expected[0] != expected[1]
    # As after a kill halfway.
    shutil.rmtree(last)
    assert newest_complete(rank.run.checkpoints) == 4
    assert rank.train() == Outcome("finished", LAST)
    assert [weights(last), weights(last / AVERAGED)] == expected
    assert not [line for line in warned if "missing keys" in line], "the head is the embedding"
    for before, after in zip(history, rank.run.metrics.read(), strict=True):
        for name in ("train_loss_nats", "validation_loss_nats", "learning_rate"):
            assert before.get(name) == after.get(name)


def test_the_averaged_weights_are_evaluated(one_rank: Any) -> None:
    import torch

    from enigma.modeling_enigma import EnigmaForCausalLM
    from pipelines.data.order import evenly_spaced
    from pipelines.data.shards import ShardReader
    from pipelines.language_model.scoring import model_nll_nats

    rank = one_rank({"train.ema_decay": 0.9})
    rank.train()
    reader = ShardReader(rank.config.shards, "validation")
    subset = evenly_spaced(len(reader), TINY_RUN["train.max_validation_sequences"])
    recorded = evaluations(rank.run.metrics.read())[-1]["validation_loss_nats"]
    checkpoint = checkpoint_path(rank.run.checkpoints, LAST)
    torch.manual_seed(0)
    losses = []
    for directory in (checkpoint / AVERAGED, checkpoint):
        model = EnigmaForCausalLM.from_pretrained(directory)
        tokens = len(subset) * (reader.sequence_length - 1)
        losses.append(model_nll_nats(model, reader, [subset]) / tokens)
    assert losses[0] == pytest.approx(recorded, abs=1e-6)
    assert abs(losses[1] - recorded) > 1e-4


def test_muon_updates_the_linear_layers_and_each_optimiser_steps_as_it_does_alone() -> None:
    import torch
    from torch.optim import AdamW, Muon

    from pipelines.training.optimisers import BETAS, MuonWithAdamW

    def parameters() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(6, 4), (8, 4), (5,)]
        made = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        for parameter in made:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        return made

    ours, alone = parameters(), parameters()

    def groups_of(made: list[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
        matrix, vector = made[1:2], made[2:]
        return [
            {"params": matrix, "weight_decay": decay},
            {"params": vector, "weight_decay": 0.0},
        ]

    both = MuonWithAdamW(ours[:1], groups_of(ours, 0.5), lr=0.1, weight_decay=0.5)
    muon = Muon(alone[:1], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW(groups_of(alone, 0.5), lr=0.1, betas=BETAS, fused=True)
    for turn in range(4):
        if turn == 2:
            # As on a resume: a new optimiser with the state of the old one.
            state = both.state_dict()
            both = MuonWithAdamW(ours[:1], groups_of(ours, 0.1), lr=0.7, weight_decay=0.1)
            both.load_state_dict(state)
        both.step()
        muon.step()
        adamw.step()
        for one, two in zip(ours, alone, strict=True):
            # torch's Muon orthogonalises in bfloat16, this one in float32.
            close = {"rtol": 0, "atol": 0.02} if one is ours[0] else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(one, two, **close)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 6, 10), (3, 10, 6)])
def test_muon_equalises_the_singular_values_and_keeps_the_singular_vectors(
    shape: tuple[int, ...],
) -> None:
    import torch

    from pipelines.training.muon import orthogonalise

    defaults = torch.optim.Muon([torch.nn.Parameter(torch.zeros(1, 1))]).defaults
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrices[1] *= 1e-3
    found = orthogonalise(
        matrices, defaults["ns_coefficients"], defaults["ns_steps"], defaults["eps"]
    )
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    levelled = torch.diagonal(u.mT @ found @ v.mT, dim1=-2, dim2=-1)
    wanted = values / values.amax(dim=-1, keepdim=True) > 0.05
    assert bool(((levelled > 0.5) & (levelled < 1.5))[wanted].all())
    torch.testing.assert_close(u @ torch.diag_embed(levelled) @ v, found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("form", ["plu", "lifting"])
def test_every_parameter_has_one_optimiser_and_rotors_learn_slowly(name: str, form: str) -> None:
    import torch

    from enigma.configuration_enigma import EnigmaConfig
    from enigma.language_model.memory.ngram_counts import count_ngrams
    from enigma.modeling_enigma import EnigmaForCausalLM
    from pipelines.training.optimisers import GATE_LR, ROTOR_LR_FRACTION, make_optimiser

    sizes = {"d": 16, "num_rev_blocks": 1, "num_heads": 2, "conv1x1_positions": 4}
    config = EnigmaConfig(
        vocab_size=50,
        num_transformer_layers=1,
        num_rotors=1,
        rotor_form=form,
        num_driven_rotors=1,
        pointer_channels=4,
        **sizes,
    )
    model = EnigmaForCausalLM(config)
    model.lm.set_ngrams(count_ngrams(torch.arange(50).view(2, 25), 50, 2))
    groups = make_optimiser(name, model, lr=0.1, weight_decay=0.2).param_groups
    names = {id(value): name for name, value in model.named_parameters()}
    members = [[names[id(value)] for value in group["params"]] for group in groups]
    assert sorted(n for mine in members for n in mine) == sorted(names.values())
    *common, rotors, gate = groups
    assert [group["lr"] for group in common] == [0.1] * len(common)
    assert rotors["lr"] == pytest.approx(0.1 * ROTOR_LR_FRACTION)
    assert gate["lr"] == GATE_LR
    assert [group["weight_decay"] for group in groups[-4:]] == [0.2, 0.0, 0.2, 0.0]
    assert members[-2]
    assert all("rotors" in n or ".rotor." in n for n in members[-2])
    driven = {"lm.rotor_layers.0.rotor.drive.weight", "lm.rotor_layers.0.rotor.start"}
    assert driven < set(members[-2])
    assert {"lm.ngrams.gate.weight", "lm.pointer.project.weight"} < set(members[-1])
    assert all(n.startswith(("lm.ngrams.gate.", "lm.pointer.")) for n in members[-1])
    assert all("norm" in n for n in members[-3])
    assert "lm.embedding.tokens.weight" in members[-4]
    if name == "muon":
        assert members[0]
        assert all("layers" in n or "blocks" in n for n in members[0])
    else:
        assert len(groups) == 4


def test_the_trapezoid_rises_stays_level_and_falls(one_rank: Any) -> None:
    rank = one_rank(
        {
            "train.schedule": "trapezoid",
            "train.warmup_fraction": 0.2,
            "train.cooldown_fraction": 0.4,
            "train.max_steps": 10,
            "train.learning_rate": 1.0e-3,
        }
    )
    rank.train()
    rates = [r["learning_rate"] for r in rank.run.metrics.read() if "learning_rate" in r]
    # A record holds the rate that its step used.
    expected = [0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert rates == pytest.approx([1e-3 * part for part in expected])


def test_accumulation_learns_what_one_batch_learns(one_rank: Any) -> None:
    histories = []
    for batch_size, parts in ((8, 1), (2, 4)):
        rank = one_rank(
            {
                "train.batch_size": batch_size,
                "train.gradient_accumulation_steps": parts,
                "model.attention_dropout": 0.0,
            }
        )
        rank.train()
        histories.append(rank.run.metrics.read())
        shutil.rmtree(rank.run.checkpoints)
    one, many = ([r["train_loss_nats"] for r in h if "train_loss_nats" in r] for h in histories)
    assert many == pytest.approx(one, abs=1e-5)


def test_a_loss_that_explodes_ends_the_run_and_is_never_saved(one_rank: Any) -> None:
    # Finite all the way: each step moves every weight by about 3; an exact model leaves its grid.
    recipe = {
        "model.exact": False,
        "train.learning_rate": 3.0,
        "train.warmup_fraction": 0.4,
        "train.evaluate_every_steps": 1,
        "train.max_loss_rise_nats": 1.0,
        "train.max_steps": 20,
        "train.epochs": 4,
    }
    rank = one_rank(recipe)
    with pytest.raises(ExplodedError, match=r"at most 1 nats above the lowest so far") as error:
        rank.train()
    assert error.value.fix.startswith("lower train.learning_rate: that is another run")
    exploded = int(rank.run.metrics.read()[-1]["step"])
    assert newest_complete(rank.run.checkpoints) == exploded - 1, "the last good one is kept"
    with pytest.raises(ExplodedError):
        rank.train()
    assert one_rank({**recipe, "train.learning_rate": 3.0e-3}).train().status == "finished"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 7 MB: room for one checkpoint of 4 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_it_usable(
    one_rank: Any, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENIGMA_RUNS_DIR", str(tiny_disk / "runs"))
    rank = one_rank({})
    with pytest.raises(SaveError, match=r"step 4 could not be written \(\d MB are free\)"):
        rank.train()
    good = newest_complete(rank.run.checkpoints)
    assert good is not None
    assert steps_on_disk(rank.run.checkpoints)[-1] == good, "nothing half written"
    subprocess.run(["mount", "-o", "remount,size=64m", str(tiny_disk)], check=True)
    assert rank.train() == Outcome("finished", LAST)


def test_an_evaluation_that_a_stop_interrupts_runs_after_the_resume(
    one_rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.training.trainer import EnigmaTrainer

    settings = {"train.max_validation_sequences": 8, "train.evaluate_every_steps": 3}
    rank = one_rank(settings)
    rank.train()
    expected = rank.run.metrics.read()
    shutil.rmtree(rank.run.checkpoints)

    scored = EnigmaTrainer._nll_nats
    with monkeypatch.context() as patch:

        def stop_after_this_batch(self: Any, index_batches: Any) -> float:
            rank.run.ask_to_stop()
            return scored(self, index_batches)

        patch.setattr(EnigmaTrainer, "_nll_nats", stop_after_this_batch)
        assert rank.train() == Outcome("stopped", 3)
    assert newest_complete(rank.run.checkpoints) == 3
    assert evaluations(rank.run.metrics.read()) == []
    rank.run.begin()
    assert rank.train() == Outcome("finished", LAST)
    names = ("step", "train_loss_nats", "validation_loss_nats")
    for before, after in zip(expected, rank.run.metrics.read(), strict=True):
        assert [before.get(name) for name in names] == [after.get(name) for name in names]


def test_records_hold_the_waiting_time_and_the_peak_memory(one_rank: Any) -> None:
    rank = one_rank({})
    rank.train()
    records = [r for r in rank.run.metrics.read() if "train_loss_nats" in r]
    assert len(records) == LAST
    for record in records:
        assert 0.0 < record["data_wait_fraction"] < 1.0
        assert 100 < record["peak_memory_mib"] < 100_000
        assert record["tokens_per_s"] > 0
        assert "mfu" not in record, "no peak is known for a CPU"
    assert all(one["step"] < two["step"] for one, two in pairwise(records))


def test_training_takes_six_flops_per_multiplied_weight() -> None:
    import torch

    from pipelines.runs.hardware import peak_flops, training_flops_per_token

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Embedding(30, 8)
            self.head = torch.nn.Linear(8, 30, bias=False)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.head(self.rows(input_ids)) @ self.head.weight)

    # The head multiplies three times.
    assert training_flops_per_token(Head(), 16) == 6 * 3 * 30 * 8
    assert peak_flops(torch.device("cpu")) is None
