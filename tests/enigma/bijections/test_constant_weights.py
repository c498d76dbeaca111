"""What is formed of the weights follows them, unless the caller says that they are constant."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from enigma.bijections.constant_weights import constant_weights
from enigma.invertible_conv1x1 import InvertibleConv1x1
from enigma.simple_permutation import SimplePermutation
from tests.enigma.every_bijection import BIJECTIONS, D

FORMED = {"conv1x1": "_form_departure", "permutation": "_form_order"}


def drawn(name, seed):
    """A module in evaluation mode whose weights are far from those of other seeds."""
    torch.manual_seed(seed)
    module = BIJECTIONS[name]().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def outputs(module, x):
    with torch.no_grad():
        y = module(x)
        return torch.stack((y, module.inverse(x)))


def test_input(module):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, module.num_channels, generator=generator)


test_input.__test__ = False


@pytest.mark.parametrize("name", BIJECTIONS)
def test_each_call_uses_the_weights_of_that_call(name):
    module = drawn(name, seed=0)
    x = test_input(module)
    others = [drawn(name, seed) for seed in range(1, 4)]
    expected = [outputs(other, x) for other in others]
    outputs(module, x)
    for other, wanted in zip(others, expected, strict=True):
        weights = {**dict(other.named_parameters()), **dict(other.named_buffers())}
        # Dropped at once, so that the next weights may lie at the same address.
        with torch.no_grad():
            y = functional_call(module, {k: v.clone() for k, v in weights.items()}, (x,))
        torch.testing.assert_close(y, wanted[0], rtol=0, atol=1e-5)
    for other, wanted in zip(others, expected, strict=True):
        for parameter, value in zip(module.parameters(), other.parameters(), strict=True):
            parameter.data.copy_(value.data)
        torch.testing.assert_close(outputs(module, x), wanted, rtol=0, atol=1e-5)
    for other, wanted in zip(others, expected, strict=True):
        for parameter, value in zip(module.parameters(), other.parameters(), strict=True):
            parameter.data = value.data.clone()
        torch.testing.assert_close(outputs(module, x), wanted, rtol=0, atol=1e-5)


# Splines look up bins in ways that torch.func cannot follow.
COMPOSED = [name for name in BIJECTIONS if "spline" not in name and name != "block, odd"]


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("gradients", [False, True])
def test_an_ensemble_in_one_call(name, gradients):
    modules = [drawn(name, seed) for seed in range(3)]
    x = test_input(modules[0])
    weights, buffers = stack_module_state(modules)

    def call(weights, buffers):
        return functional_call(modules[0], (weights, buffers), (x,))

    with torch.set_grad_enabled(gradients):
        # No weights (a plugboard) leave nothing to map over but the buffers.
        together = vmap(call)(weights, buffers) if weights or buffers else None
    for k, module in enumerate(modules):
        torch.testing.assert_close(together[k], module(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_models_made_in_inference_mode(name):
    with torch.inference_mode():
        module = drawn(name, seed=0).double()
        x = test_input(module).double()
        y = module(x)
        torch.testing.assert_close(module.inverse(y), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", COMPOSED)
def test_an_exported_program_computes_the_same(name):
    module = drawn(name, seed=0)
    x = test_input(module)
    with torch.no_grad():
        program = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(program(x), module(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["conv1x1", "permutation", "machine, reversed"])
def test_a_compiled_module_follows_its_weights(name):
    module, other = drawn(name, seed=0), drawn(name, seed=1)
    x = test_input(module)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-5)
            with constant_weights():
                torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-5)
            for parameter, value in zip(module.parameters(), other.parameters(), strict=True):
                parameter.data.copy_(value.data)


@pytest.mark.parametrize("name", FORMED)
def test_a_compiled_module_reads_what_is_formed_until_the_block_ends(name):
    """Weights that change against the declaration show whose are used."""
    module, other = drawn(name, seed=0), drawn(name, seed=1)
    x = test_input(module)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        first, second = module(x), other(x)
        torch.testing.assert_close(compiled(x), first, rtol=0, atol=1e-5)
        with constant_weights():
            # Alone it keeps nothing: it is traced once, for any weights.
            torch.testing.assert_close(compiled(x), first, rtol=0, atol=1e-5)
            with constant_weights():
                module(x)
            for parameter, value in zip(module.parameters(), other.parameters(), strict=True):
                parameter.data.copy_(value.data)
            torch.testing.assert_close(compiled(x), first, rtol=0, atol=1e-5)
        torch.testing.assert_close(compiled(x), second, rtol=0, atol=1e-5)
        with constant_weights():
            module(x)
            torch.testing.assert_close(compiled(x), second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FORMED)
def test_a_compiled_module_notices_other_weights_within_constant_weights(name):
    module, other = drawn(name, seed=0), drawn(name, seed=1)
    x = test_input(module)

    def call(weights):
        return functional_call(module, weights, (x,))

    compiled = torch.compile(call, backend="eager")
    with torch.no_grad(), constant_weights():
        for each in (module, other, module):
            expected = each(x)
            found = compiled(dict(each.named_parameters()))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FORMED)
def test_what_is_formed_is_in_no_state_copy_or_file_and_ends_with_the_block(name):
    module = drawn(name, seed=0)
    x = test_input(module)
    keys = list(module.state_dict())
    with constant_weights():
        outputs(module, x)
        assert module.formed
        assert list(module.state_dict()) == keys
        assert copy.deepcopy(module).formed is None
        assert pickle.loads(pickle.dumps(module)).formed is None
    assert module.formed is None
    with suppress(KeyError), constant_weights():
        outputs(module, x)
        raise KeyError
    assert module.formed is None


def test_each_thread_takes_away_what_it_formed_alone():
    module = drawn("conv1x1", seed=0)
    x = test_input(module)

    def in_another_thread():
        with constant_weights():
            outputs(module, x)
            return module.formed

    with ThreadPoolExecutor(1) as pool, constant_weights():
        outputs(module, x)
        mine = module.formed
        assert pool.submit(in_another_thread).result() is not mine
        assert module.formed is None
        outputs(module, x)
    assert module.formed is None


@pytest.mark.parametrize("name", FORMED)
def test_within_constant_weights_it_is_formed_once(name, monkeypatch):
    module = drawn(name, seed=0)
    formed = []
    form = getattr(type(module), FORMED[name])
    monkeypatch.setattr(
        type(module), FORMED[name], lambda self, *given: formed.append(1) or form(self, *given)
    )
    x = test_input(module)
    for _ in range(3):
        outputs(module, x)
    assert len(formed) == 6
    formed.clear()
    with constant_weights():
        expected = outputs(module, x)
        with constant_weights():
            assert torch.equal(outputs(module, x), expected)
        assert torch.equal(outputs(module, x), expected)
    assert len(formed) == 1
    outputs(module, x)
    assert len(formed) == 3


@pytest.mark.parametrize("shape", [(), (1,), (2, 5)])
@pytest.mark.parametrize("name", BIJECTIONS)
def test_what_a_caller_does_to_results_changes_no_later_result(name, shape):
    module = drawn(name, seed=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, module.num_channels, generator=generator)

    def results():
        yield from module.forward_with_log_det(x)
        yield from module.inverse_with_log_det(x)
        for each in module.modules():
            if isinstance(each, InvertibleConv1x1):
                yield from (each.log_scale(), each.weight(), *each.factors())
            if isinstance(each, SimplePermutation):
                yield each.order()

    with torch.no_grad(), constant_weights():
        expected = [result.clone() for result in results()]
        for result in results():
            result.add_(1)
        for result, wanted in zip(results(), expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=0, atol=0)


def test_within_constant_weights_each_set_of_weights_and_each_thread_has_its_own():
    x = torch.randn(3, D)
    first, second = drawn("conv1x1", seed=0), drawn("conv1x1", seed=1)
    with torch.no_grad(), constant_weights():
        for module in (first, second, first):
            swapped = functional_call(first, dict(module.named_parameters()), (x,))
            torch.testing.assert_close(swapped, module(x))
        with ThreadPoolExecutor(1) as pool, torch.no_grad():
            first.packed.data.zero_()
            assert torch.equal(pool.submit(lambda: outputs(first, x)[0]).result(), x)


def test_within_constant_weights_gradients_still_flow():
    for name in FORMED:
        module = drawn(name, seed=0).train()
        x = test_input(module)
        with constant_weights():
            with torch.no_grad():
                module(x)
            (module(x) ** 3).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_noise_is_drawn_anew_within_constant_weights():
    permutation = SimplePermutation(D).train()
    orders = set()
    with torch.no_grad(), constant_weights():
        for seed in range(9):
            permutation.set_progress(0.0, seed=seed)
            orders.add(tuple(permutation.order().tolist()))
    assert len(orders) > 1


def test_a_generation_forms_the_rotors_once(make_causal_lm, monkeypatch):
    formed = []
    form = InvertibleConv1x1._form_departure
    monkeypatch.setattr(
        InvertibleConv1x1,
        "_form_departure",
        lambda self, *given: formed.append(self) or form(self, *given),
    )
    model = make_causal_lm(num_rotors=3)
    ids = torch.randint(1, 120, (1, 4))
    model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert len(formed) == 3
    before = model(ids).logits
    average = copy.deepcopy(model)
    for parameter in average.parameters():
        parameter.data.mul_(0.5)
    model.load_state_dict(average.state_dict())
    assert not torch.allclose(model(ids).logits, before)
