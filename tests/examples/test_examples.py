"""Every example runs, and shows what it says."""

import importlib.util

import pytest

from tests.support import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))

pytestmark = pytest.mark.slow


def example(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_posterior_of_the_two_moons_comes_near_the_truth():
    before, after = example("two_moons_inference").main(steps=250)
    assert before > 2
    assert after < 0.8


def test_a_flow_is_a_better_prior():
    bounds = example("vae_prior").main()
    assert bounds["flow"] > bounds["normal, fitted"] + 0.3
    assert bounds["normal, fitted"] > bounds["standard normal"] + 0.2


def test_the_mixer_learns_and_its_memory_is_flat():
    mixer = example("reversible_mixer")
    assert mixer.stored_mib(64, "reversible") == mixer.stored_mib(4, "reversible")
    assert mixer.stored_mib(64, "plain") > 10 * mixer.stored_mib(4, "plain")
    assert mixer.main(steps=60) > 0.9


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_has_a_test(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    tests = "".join(file.read_text() for file in (REPOSITORY / "tests/examples").glob("test_*.py"))
    assert f'example("{path.stem}")' in tests or f'"{path.name}"' in tests
