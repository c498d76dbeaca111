"""The language model leaves PyTorch: dynamic shapes in torch.export, and ONNX Runtime."""

import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from transformers import CompileConfig, GenerationConfig

from enigma.language_model.memory.ngram_counts import count_ngrams

POSSIBLE = torch.arange(120) < 110
SIZES = ((1, 5), (3, 30), (2, 300))
SHAPES = {name: {0: Dim("batch"), 1: Dim("length")} for name in ("input_ids", "attention_mask")}


class Logits(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits


def left_padded(batch, length):
    ids = torch.randint(1, 120, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return ids, mask


def give_memory(model):
    """Give a model a reachable vocabulary, an n-gram memory and a pointer."""
    model.set_reachable(torch.arange(60), POSSIBLE)
    counted = torch.randint(1, 110, (40, 20), generator=torch.Generator().manual_seed(1))
    model.set_ngrams(count_ngrams(model.lm.classes(counted), model.lm.num_classes, order=3))
    model.set_pointer(4)


def check(run, model):
    for size in SIZES:
        ids, mask = left_padded(*size)
        with torch.no_grad():
            expected = model(ids, attention_mask=mask).logits
        real = mask.bool()
        torch.testing.assert_close(run(ids, mask)[real], expected[real], rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_export_with_dynamic_shapes_gives_the_same_logits(make_causal_lm):
    model = make_causal_lm()
    give_memory(model)
    program = export(Logits(model).eval(), left_padded(2, 12), dynamic_shapes=SHAPES)
    check(program.module(), model)


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_logits(make_causal_lm, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = make_causal_lm()
    model.set_reachable(torch.arange(60), POSSIBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own libraries
        program = torch.onnx.export(
            Logits(model).eval(), left_padded(2, 12), dynamo=True, dynamic_shapes=SHAPES
        )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )

    def run(ids, mask):
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        return torch.from_numpy(session.run(None, inputs)[0])

    check(run, model)


class Recorder:
    """A backend of torch.compile that runs graphs as they are, and knows their operations."""

    def __init__(self):
        self.operations = []

    def __call__(self, graph, inputs):
        self.operations.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    def __deepcopy__(self, memo):
        return self


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"rotor_form": "lifting", "use_alibi": False}])
def test_decoding_into_a_static_cache_is_one_graph(make_causal_lm, changes):
    """A configuration is enough, on a CPU too; no rotor is formed in the graph."""
    model = make_causal_lm(**changes)
    if changes:
        give_memory(model)
    ids, mask = left_padded(2, 12)
    settings = {
        "attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None,
        "pad_token_id": 0,
    }  # fmt: skip
    expected = model.generate(ids, **settings)
    for place in ("keyword", "generation_config"):
        recorder = Recorder()
        whole = {"compile_config": CompileConfig(fullgraph=True, backend=recorder, mode=None)}
        if place == "generation_config":
            whole = {"generation_config": GenerationConfig(**whole)}
        static = {"cache_implementation": "static", **settings}
        assert torch.equal(model.generate(ids, **whole, **static), expected)
        # A second one has the mask with a dynamic length.
        programs = len(recorder.operations)
        assert programs in {1, 2}
        assert not any("triu" in name for names in recorder.operations for name in names)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        expected = model.generate(ids, **settings)
        assert torch.equal(model.generate(ids, **whole, **static), expected)
        assert len(recorder.operations) == programs, "new weights need no new program"
