"""How many nodes a run has, where its agents meet, and what becomes of a rank that stands still."""

import signal
import subprocess
import sys

import pytest

from pipelines.base.errors import UserError
from pipelines.runs.agent import nodes_asked_for, wait_for_ranks


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    def set_variables(nodes: str | None, rendezvous: str | None = None) -> None:
        for name, value in (("ENIGMA_NODES", nodes), ("ENIGMA_RENDEZVOUS", rendezvous)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)

    return set_variables


def test_one_node_needs_no_rendezvous(ask) -> None:
    for nodes in (None, "1"):
        ask(nodes, "node0:29500")
        assert nodes_asked_for(ranks=3) == (1, "")


def test_each_node_takes_the_same_number_of_ranks(ask) -> None:
    for nodes in range(2, 13):
        ask(str(nodes), "[fe80::1]:29500")
        if nodes in {2, 3, 4, 6, 12}:
            assert nodes_asked_for(ranks=12) == (nodes, "[fe80::1]:29500")
        else:
            with pytest.raises(UserError, match="12"):
                nodes_asked_for(ranks=12)


@pytest.mark.parametrize(
    ("nodes", "rendezvous"),
    [
        ("0", "node0:29500"),
        ("-2", "node0:29500"),
        ("two", "node0:29500"),
        ("", "node0:29500"),
        ("2", None),
        ("2", "node0"),
        ("2", ":29500"),
        ("2", "node0:"),
        ("2", "node0:port"),
    ],
)
def test_values_that_cannot_be_are_refused(ask, nodes: str, rendezvous: str | None) -> None:
    ask(nodes, rendezvous)
    with pytest.raises(UserError, match="ENIGMA"):
        nodes_asked_for(ranks=4)


# An agent whose rank someone stops, as SIGSTOP or a hypervisor would.
AGENT = """
import os, signal, subprocess, sys
rank = subprocess.Popen(["sleep", "60"])
os.kill(rank.pid, signal.SIGSTOP)
sys.exit(-rank.wait())
"""


def test_a_rank_that_stands_still_is_killed_so_that_it_can_be_restarted() -> None:
    with subprocess.Popen([sys.executable, "-c", AGENT]) as agent:
        assert wait_for_ranks(agent, timeout_s=0.2) == signal.SIGKILL
