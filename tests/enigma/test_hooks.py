"""Every module that owns parameters is called: hooks fire, and offloaded weights are loaded."""

import copy
from collections import Counter

import accelerate
import pytest
import torch
from accelerate.utils import send_to_device
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from enigma.bijections.base import TokenContext
from enigma.bijections.machine import Enigma
from enigma.jacobian_logdet import EnigmaFlow
from enigma.reversible import undo_steps
from tests.enigma.every_bijection import BIJECTIONS
from tests.enigma.stored_bytes import stored_bytes

IDS = torch.randint(1, 120, (2, 9), generator=torch.Generator().manual_seed(0))
VARIANTS = {
    "reversed": {},
    "untied": {"return_path": "untied", "kernel_size": 3},
    "inverse": {"return_path": "inverse", "rotor_form": "lifting"},
    "learned": {"learnable_plugboard": True, "use_alibi": False},
    "exact": {"exact": True, "rotor_form": "lifting"},
}


def counted(model):
    """Count the forward hooks that fire, by the name of the module."""
    fired = Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.update([name]))
    return fired


def uses(model, prefix=""):
    """How often the path of the signal uses each module that is called, by the design."""
    core = model.get_submodule(prefix)
    both_ways = {"reversed": ("blocks",), "inverse": ("blocks", "rotors"), "untied": ()}
    found = {}
    for name, module in core.named_modules():
        if type(module).__name__ == "ModuleList":
            continue
        part = name.split(".")[0]
        times = 2 if part in (*both_ways[core.return_path], "plugboard") else 1
        if name == "plugboard.permutation":
            times = 4
        found[".".join(filter(None, (prefix, name)))] = times
    return found


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("memory", ["plain", "checkpoint", "reversible"])
def test_hooks_fire_once_per_use(make_causal_lm, name, memory):
    model = make_causal_lm(memory=memory, **VARIANTS[name]).train()
    fired = counted(model)
    logits = model(IDS).logits
    expected = {
        module_name: 1
        for module_name, module in model.named_modules()
        if type(module).__name__ != "ModuleList"
    }
    expected |= uses(model, "lm.core")
    assert dict(fired) == expected
    fired.clear()
    logits.square().sum().backward()
    once_more = {n for n, m in model.named_modules() if list(m.parameters(recurse=False))}
    once_more -= {"lm.embedding.tokens", "lm.embedding.positions", "lm.head"}
    if memory == "plain":
        assert not fired
    else:
        assert fired
        assert all(fired[n] <= expected[n] for n in once_more)
        # A checkpoint, and a hooked part of the machine is one in every mode, stops as soon as it
        # has recomputed what it needs. The rest is computed once more for the gradient.
        whole = {n for n in once_more if memory == "reversible" and n.startswith("lm.layers")}
        assert all(fired[n] == expected[n] for n in whole)


@pytest.mark.parametrize("name", VARIANTS)
def test_hooks_fire_once_per_use_on_the_way_back(make_lm, name):
    lm = make_lm(**VARIANTS[name])
    fired = counted(lm)
    steps = lm.steps(torch.arange(4))
    with torch.no_grad():
        undo_steps(steps, (torch.zeros(1, 4, 32), torch.zeros(1, 4, 32)))
    expected = {n: 1 for n, m in lm.named_modules() if type(m).__name__ != "ModuleList" and n}
    expected |= uses(lm, "core")
    for part in ("head", "embedding", "embedding.tokens", "embedding.positions"):
        expected.pop(part, None)
    assert dict(fired) == expected


@pytest.mark.parametrize("name", BIJECTIONS)
@pytest.mark.parametrize(
    "direction", ["forward", "inverse", "forward_with_log_det", "inverse_with_log_det"]
)
def test_every_method_of_a_bijection_is_a_call(name, direction):
    module = BIJECTIONS[name]()
    fired = counted(module)
    method = module if direction == "forward" else getattr(module, direction)
    method(torch.randn(2, 5, module.num_channels))
    assert fired[""] == 1
    assert {n for n, m in module.named_modules() if list(m.parameters(recurse=False))} <= set(fired)
    if isinstance(module, Enigma) and not module.rotors_between_blocks:
        assert dict(fired) == uses(module)


def test_hooks_fire_in_a_flow_both_ways():
    flow = EnigmaFlow.build(d=6, num_rev_blocks=2, hidden_channels=8)
    fired = counted(flow)
    for use in (lambda: flow.log_prob(torch.randn(3, 6)), lambda: flow.sample((3,))):
        fired.clear()
        use()
        parts = {n: k for n, k in fired.items() if n.startswith(("enigma", "marginals"))}
        assert fired[""] == parts["enigma"] == parts["marginals"] == 1
        named = {n for n, m in flow.named_modules() if list(m.parameters(recurse=False))}
        assert named <= set(parts)


def test_what_a_hook_changes_counts(make_lm):
    lm = make_lm()
    before = lm(IDS)
    for part in ("core", "core.blocks.0", "core.rotors.layers.1", "core.reflector", "layers.0"):
        handle = lm.get_submodule(part).register_forward_hook(
            lambda module, args, y: (y[0] + 1, y[1]) if isinstance(y, tuple) else y + 1
        )
        assert not torch.allclose(lm(IDS), before, atol=1e-3), part
        handle.remove()
        assert torch.equal(lm(IDS), before)


def adding(vector):
    return lambda module, args, y: (y[0], y[1] + vector) if isinstance(y, tuple) else y + vector


def change_output(module, vector):
    return module.register_forward_hook(adding(vector))


def change_input(module, vector):
    return module.register_forward_pre_hook(lambda module, args: (args[0] + vector, *args[1:]))


def change_gradient(module, vector):
    return module.register_full_backward_hook(
        lambda module, grad_x, grad_y: tuple(g if g is None else 1.5 * g for g in grad_x)
    )


def change_output_for_all(module, vector):
    hook = adding(vector)
    return nn.modules.module.register_module_forward_hook(
        lambda called, args, y: hook(called, args, y) if called is module else None
    )


PARTS = ("rotor_layers.0", "layers.0", "core", "core.blocks.1", "core.reflector", "core.rotors")
PARTS += ("core.plugboard", "layers.2.attention", "core.blocks.0.f.network")


@pytest.mark.parametrize(
    "change", [change_output, change_input, change_gradient, change_output_for_all]
)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["reversed", "inverse"])
def test_what_a_hook_changes_has_its_gradient_in_every_mode(make_lm, name, part, change):
    lm = make_lm(num_driven_rotors=1, **VARIANTS[name]).double().train()
    module = lm.get_submodule(part)
    # A branch may read no tensor that learns, other than its module's.
    learns = not part.endswith(("attention", "network"))
    width = 16 if part.endswith("network") else 32
    vector = torch.linspace(-1, 1, width, dtype=torch.float64).requires_grad_(learns)

    def gradients(memory):
        lm.zero_grad()
        vector.grad = None
        lm.hidden_states(IDS, memory=memory)[..., :5].sum().backward()
        return {"vector": vector.grad, **{name: p.grad for name, p in lm.named_parameters()}}

    handle = change(module, vector)
    try:
        expected, *others = map(gradients, ("plain", "checkpoint", "reversible"))
    finally:
        handle.remove()
    first = "embedding.tokens.weight"
    assert not torch.allclose(expected[first], gradients("plain")[first])
    for found in others:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("part", ["layers.1", "core", "core.blocks.0"])
@pytest.mark.parametrize("number", [0, -1])
def test_a_hook_that_writes_into_a_stream_is_an_error_in_reversible_mode(make_lm, part, number):
    lm = make_lm().train()
    module = lm.get_submodule(part)

    def double(streams):
        (streams[number] if isinstance(streams, tuple) else streams).mul_(2)

    for register in (
        lambda: module.register_forward_hook(lambda module, args, y: double(y)),
        lambda: module.register_forward_pre_hook(lambda module, args: double(args)),
    ):
        handle = register()
        # torch itself refuses to write into what a custom function returns as a view.
        with pytest.raises(RuntimeError, match=r"writes into a stream|is being modified inplace"):
            lm.hidden_states(IDS, memory="reversible")
        handle.remove()
    lm.hidden_states(IDS, memory="reversible").sum().backward()


def test_hooks_that_only_look_store_no_streams(make_lm):
    lm = make_lm().train()

    def stored():
        return stored_bytes(lm, lambda: lm.hidden_states(IDS, memory="reversible"))

    alone, seen = stored(), []
    for module in (*lm.layers, *lm.core.blocks, lm.core):
        module.register_forward_hook(lambda module, args, y: seen.append(module))
        module.register_forward_pre_hook(lambda module, args: seen.append(module))
    assert stored() == alone
    assert seen
    lm.layers[1].register_forward_hook(lambda module, args, y: tuple(2 * x for x in y))
    assert stored() - alone == 2 * 4 * IDS.numel() * 32


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_give_the_same_logits(make_causal_lm, tmp_path, name, where):
    model = make_causal_lm(**VARIANTS[name])
    with torch.no_grad():
        expected = model(IDS).logits
    prompt, settings = IDS[:1, :4], {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    continued = model.generate(prompt, **settings)
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model.generate(prompt, **settings), continued)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_an_offloaded_bijection_works_both_ways(name):
    module = BIJECTIONS[name]()
    x = torch.randn(2, 5, module.num_channels)
    expected = [*module.forward_with_log_det(x), *module.inverse_with_log_det(x)]
    accelerate.cpu_offload(module, execution_device="cpu")
    again = [*module.forward_with_log_det(x), *module.inverse_with_log_det(x)]
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))


@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("d", [1, 4])
def test_an_offloaded_flow_works_both_ways_with_its_buffers(d, features):
    flow = EnigmaFlow.build(d, 1, hidden_channels=8, context_features=features)
    x, context = torch.randn(5, d), torch.randn(5, features) if features else None
    flow.standardise(2 * x + 1, context)
    with torch.no_grad():
        expected = [*flow.transform(x, context), *flow.inverse(x, context)]
        accelerate.cpu_offload(flow, execution_device="cpu", offload_buffers=True)
        assert flow.shift.is_meta
        again = [*flow.transform(x, context), *flow.inverse(x, context)]
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))


def test_a_hook_of_all_modules_sees_the_head_in_training(make_causal_lm):
    model = make_causal_lm().train()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model(IDS, labels=IDS)
    finally:
        handle.remove()
    assert model.lm.head in seen


def test_a_token_context_moves_with_the_arguments():
    context = TokenContext(torch.arange(3), torch.ones(1, 3, 1))
    moved = send_to_device(context, torch.device("meta"))
    assert moved.index.is_meta
    assert moved.mask.is_meta
    assert send_to_device(TokenContext.of(torch.ones(3, 2)), torch.device("meta")).mask is None


@pytest.fixture
def one_rank():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("memory", ["plain", "checkpoint"])
def test_fully_sharded_layers_give_the_same_loss_and_gradients(make_causal_lm, one_rank, memory):
    whole = make_causal_lm(memory=memory, attention_dropout=0.0).train()
    sharded = copy.deepcopy(whole)
    for part in (*sharded.lm.layers, *sharded.lm.core.blocks):
        fully_shard(part, mesh=one_rank)
    fully_shard(sharded.lm.core, mesh=one_rank)
    fully_shard(sharded, mesh=one_rank)
    losses = []
    for model in (whole, sharded):
        logits = model(IDS).logits
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten()))
        losses[-1].backward()
    assert torch.equal(*losses)
    for (name, ours), theirs in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, msg=name)
