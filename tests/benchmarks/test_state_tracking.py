"""The tasks of state tracking give the answers that a hand or a history book gives."""

import pytest
import torch

from benchmarks.state_tracking.table import lead
from benchmarks.state_tracking.tasks import (
    NO_ANSWER,
    TASKS,
    TRAINED_LENGTH,
    EnigmaMachine,
    FlipFlop,
    Level,
)


def test_the_machine_enciphers_as_the_historical_one_and_deciphers_itself() -> None:
    machine = EnigmaMachine()
    rotors, places = torch.tensor([[0, 1, 2]]), torch.zeros(1, 3, dtype=torch.long)
    no_plugs = torch.zeros(1, 0, dtype=torch.long)
    text = torch.zeros(1, 5, dtype=torch.long)
    cipher = machine.encipher(text, rotors, places, no_plugs)
    assert "".join(machine.LETTERS[i] for i in cipher[0]) == "BDZGO"
    plugs = torch.randperm(26, generator=torch.Generator().manual_seed(0))[None, :20]
    text = torch.arange(100).view(1, 100) % 26
    cipher = machine.encipher(text, rotors, places, plugs)
    assert torch.equal(machine.encipher(cipher, rotors, places, plugs), text)
    assert not (cipher == text).any(), "no letter is ever enciphered as itself"


def test_a_product_is_the_answer_before_times_the_next_permutation() -> None:
    for name, order in (("a5", 60), ("s5", 120)):
        task = TASKS[name]
        assert task.num_tokens == order
        ids, answers = task.draw(200, Level(6), torch.Generator().manual_seed(0))
        assert torch.equal(answers[:, 0], ids[:, 0])
        # The product of the same two is the same everywhere, and each factor decides it.
        pairs = torch.stack((answers[:, :-1], ids[:, 1:], answers[:, 1:]), -1).view(-1, 3)
        assert len(pairs.unique(dim=0)) == len(pairs[:, :2].unique(dim=0))
        assert len(pairs.unique(dim=0)) == len(pairs[:, 1:].unique(dim=0))


def test_what_was_written_last_is_read() -> None:
    ids, answers = FlipFlop().draw(50, Level(60), torch.Generator().manual_seed(0))
    for text, wanted in zip(ids.tolist(), answers.tolist(), strict=True):
        written = None
        for place in range(0, len(text), 2):
            does, bit = text[place : place + 2]
            if does == FlipFlop.WRITE:
                written = bit
            expected = written if does == FlipFlop.READ else NO_ANSWER
            assert wanted[place : place + 2] == [expected, NO_ANSWER]


def test_word_problems_grow_from_two_generators_to_the_whole_group() -> None:
    for name in ("a5", "s5"):
        task = TASKS[name]
        assert task.levels[0] == Level(4, 2)
        assert task.levels[-1] == Level(TRAINED_LENGTH)
        sizes = [(level.length, level.kinds or task.num_tokens) for level in task.levels]
        assert sizes == sorted(sizes)
        assert (19, task.num_tokens) in sizes
        ids, answers = task.draw(500, Level(40, 2), torch.Generator().manual_seed(0))
        assert len(ids.unique()) == 2
        assert len(answers.unique()) == task.num_tokens, "the two generate the group"


@pytest.mark.parametrize(("worst", "met"), [(0.98, False), (0.99, True)])
def test_the_worst_seed_stands_beside_any_peers_best(worst: float, met: bool) -> None:
    def records(*shares: float) -> list[dict[str, dict[str, float]]]:
        return [{"right": {"256": share}} for share in shares]

    peers = {"modern": records(0.1, 0.3), "llama": records(0.2, 0.2), "gpt2": records(0.1)}
    found = lead("s5", {"enigma": records(1.0, worst), **peers})
    assert (found["value"], found["peer"], found["peer_value"]) == (worst, "modern, best seed", 0.3)
    assert found["met"] is met
    assert lead("machine", {"enigma": records(worst), **peers})["met"] is None
