"""The formula against operations that PyTorch counts while it trains."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from trainer.flops import MatrixSizes, matrix_sizes, peak_flops_of, peak_tokens_per_second, training_flops_per_token
from trainer.models import PRESETS

# That of SmolLM2-135M, whose output layer is its embeddings.
SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
TINY = MistralConfig(**PRESETS["tiny"], vocab_size=512, sliding_window=None)
WIDE_HEADS = MistralConfig(**{**PRESETS["tiny"], "head_dim": 32}, vocab_size=512, sliding_window=None)


def on_meta(config):
    with torch.device("meta"):
        # Attention as plain products of matrices, which the counter sees in full.
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def counted_flops_per_token(model, sequence_length):
    ids = torch.zeros(2, sequence_length, dtype=torch.int64, device="meta")
    # A mask of one's own, since making one looks at values, which there are none of.
    mask = torch.zeros(1, 1, sequence_length, sequence_length, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum().backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize("config", [TINY, WIDE_HEADS, SMOLLM2], ids=["tiny", "wide heads", "smollm2"])
@pytest.mark.parametrize("sequence_length", [16, 256])
def test_formula_is_what_training_takes(config, sequence_length):
    model = on_meta(config)
    expected = counted_flops_per_token(model, sequence_length)
    flops = training_flops_per_token(matrix_sizes(model), config=config, sequence_length=sequence_length)
    # The counter has the table of rotations too, a thousandth of a tiny model.
    assert flops == pytest.approx(expected, rel=2e-3)


def test_frozen_matrices_take_two_thirds():
    """The frozen part of LoRA: no gradient of its own, but one that passes through."""
    model = on_meta(TINY)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed" in name or "self_attn.q_proj" in name)
    sizes = matrix_sizes(model)
    assert sizes.num_trained == 2 * 64 * 64
    flops = training_flops_per_token(sizes, config=TINY, sequence_length=16)
    assert flops == pytest.approx(counted_flops_per_token(model, 16), rel=2e-3)


def test_counts_by_hand():
    """A Llama of two layers: 4 h^2 with half of the keys and values, 3 h i, and the output layer; no embeddings."""
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160
    assert matrix_sizes(on_meta(TINY)).num_elements == 2 * layer + 64 * 512
    # Tied, the embeddings count once: as the output layer.
    assert matrix_sizes(on_meta(SMOLLM2)).num_elements == 134_515_008 - (2 * 30 + 1) * 576
    assert training_flops_per_token(
        MatrixSizes(num_elements=1000, num_trained=1000), config=TINY, sequence_length=10
    ) == 6 * 1000 + 12 * (2 * 4 * 16 * 10)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_of_known_devices(name, tflops):
    assert peak_flops_of(name, dtype=torch.bfloat16) == tflops * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "Tesla T4"]
)
def test_other_devices_are_not_taken_for_their_namesakes(name):
    assert peak_flops_of(name, dtype=torch.bfloat16) is None


def test_peak_rate():
    rate = peak_tokens_per_second(
        flops_per_token=10**9, peak_tflops=2.0, device=torch.device("cpu"), dtype=torch.float32, num_devices=4
    )
    assert rate == 8000
    assert (
        peak_tokens_per_second(
            flops_per_token=10**9, peak_tflops=None, device=torch.device("cpu"), dtype=torch.float32, num_devices=4
        )
        is None
    )
