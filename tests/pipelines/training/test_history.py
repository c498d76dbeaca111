"""Decisions from a history; patience and the best step: see runs/test_checkpoints.py."""

import random

from pipelines.training.history import best_step, evaluations, patience_is_over, rise_nats


def test_a_loss_rises_above_the_lowest_of_its_own_kind() -> None:
    history = [
        {"step": 1, "train_loss_nats": 2.0},
        {"step": 2, "validation_loss_nats": 5.0},
        {"step": 2, "train_loss_nats": 3.0},
    ]
    assert rise_nats(history, {"step": 3, "validation_loss_nats": 5.5}) == 0.5
    assert rise_nats(history, {"step": 3, "train_loss_nats": 5.5}) == 3.5
    assert rise_nats(history, {"step": 3, "train_loss_nats": 1.5}) == -0.5


def test_a_counter_that_no_resume_lost_decides_the_same() -> None:
    generator = random.Random(0)
    for _ in range(50):
        patience = generator.randrange(1, 5)
        history, best, worse = [], (float("inf"), 0), 0
        for step in range(1, 15):
            loss = float(generator.randrange(1, 8))
            history.append({"step": step, "train_loss_nats": 0.0})
            history.append({"step": step, "validation_loss_nats": loss})
            worse = 0 if loss < best[0] else worse + 1
            best = min(best, (loss, step))
            assert best_step(history) == best[1]
            assert patience_is_over(history, patience) == (worse >= patience)
        assert len(evaluations(history)) == 14
