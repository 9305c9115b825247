import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from synth_model.engines.packed_linear import pack_linear_layers

IDS = torch.arange(60).reshape(3, 20)

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN on this machine"
)


def test_a_layer_multiplies_as_before():
    torch.manual_seed(0)
    for bias in (True, False):
        layer = torch.nn.Sequential(torch.nn.Linear(48, 80, bias=bias))
        before = copy.deepcopy(layer)
        assert pack_linear_layers(layer) == 1
        for shape in ((48,), (1, 48), (7, 48), (2, 5, 48), (2, 1, 3, 48), (0, 48)):
            inputs = torch.randn(shape)
            with torch.inference_mode():
                torch.testing.assert_close(layer(inputs), before(inputs), atol=1e-5, rtol=1e-5)


def test_a_model_computes_as_before_and_its_dense_weights_are_freed(model_folder):
    plain, packed = (AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval() for _ in range(2))
    num_linear = sum(isinstance(module, torch.nn.Linear) for module in plain.modules())
    assert pack_linear_layers(packed) == num_linear > 10
    with torch.inference_mode():
        torch.testing.assert_close(packed(IDS).logits, plain(IDS).logits, atol=2e-4, rtol=1e-4)
    assert not any("proj" in name for name, _ in packed.named_parameters())
    assert packed.get_output_embeddings().weight.shape == plain.get_output_embeddings().weight.shape


def test_shared_weights_stay_where_they_are_read_otherwise():
    embedding, head = torch.nn.Embedding(10, 8), torch.nn.Linear(8, 10, bias=False)
    head.weight = embedding.weight
    assert pack_linear_layers(torch.nn.ModuleList([embedding, head])) == 1
    with torch.inference_mode():
        expected = embedding(torch.tensor([3])) @ embedding.weight.T
        torch.testing.assert_close(head(embedding(torch.tensor([3]))), expected)


def test_other_dtypes_and_other_layers_are_left_alone():
    class Scaled(torch.nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    model = torch.nn.ModuleList([torch.nn.Linear(4, 4, dtype=torch.bfloat16), Scaled(4, 4), torch.nn.Embedding(4, 4)])
    weights = [module.weight for module in model]
    assert pack_linear_layers(model) == 0
    assert all(module.weight is weight for module, weight in zip(model, weights, strict=True))


def test_without_onednn_nothing_is_packed(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert pack_linear_layers(torch.nn.ModuleList([torch.nn.Linear(4, 4)])) == 0
