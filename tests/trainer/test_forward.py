"""From a batch to the losses of its rows: masks, checkpointing, compilation, adapters."""

import copy
import itertools
import os
import shutil
from dataclasses import replace

import peft
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer import forward
from trainer.config import BatchConfig, LossConfig, ModelConfig, PretrainConfig
from trainer.forward import Forward, prepare_model
from trainer.loss import IGNORED_LABEL, Losses
from trainer.shard_dataset import Batch

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}
CPU = torch.device("cpu")
# Two rows of 24 tokens; padding is the last segment of the second.
SEGMENT_LENGTHS = [[5, 1, 11, 7], [14, 6, 4]]
REAL_MODEL = ".cache/models/smollm2-135m-instruct"


def make_model(kind):
    torch.manual_seed(0)
    return {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
        "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
    }[kind]()


def make_batch(*, segment_lengths=SEGMENT_LENGTHS, vocab_size=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(segment_lengths), sum(segment_lengths[0]))
    input_ids = torch.randint(0, vocab_size, shape, generator=generator)
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in segment_lengths])
    labels = torch.where(position_ids == 0, IGNORED_LABEL, input_ids)
    labels[-1, -segment_lengths[-1][-1] :] = IGNORED_LABEL
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        component_ids=torch.zeros(len(segment_lengths), dtype=torch.int64),
        num_tokens=int((labels != IGNORED_LABEL).sum()),
    )


def configure(
    *, document_masks=False, compile="none", checkpointing=False, micro_batch_rows=2, attention="auto", **loss
):
    return PretrainConfig(
        shards="",
        output="",
        model=ModelConfig(
            init="scratch", preset="tiny", document_masks=document_masks, compile=compile, attention=attention
        ),
        batch=BatchConfig(micro_batch_rows=micro_batch_rows, gradient_checkpointing=checkpointing),
        loss=LossConfig(**loss),
    )


def losses_and_gradients(model, batch, config):
    """Of a copy of a model, so that one model can be tried with several configs."""
    model = copy.deepcopy(model).train()
    prepare_model(model, config=config, device=CPU)
    losses = Forward(config)(model, batch)
    weights = torch.arange(1.0, len(losses.cross_entropy) + 1)
    (losses.cross_entropy * weights).sum().add(losses.z.sum()).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    return losses, gradients


def assert_equal(actual, expected, *, tolerance):
    for one, other in zip(actual[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in actual[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=tolerance, atol=tolerance, msg=name)


def losses_text_by_text(model, batch, segment_lengths):
    """The definition: every text alone in the model, token by token."""
    sums = []
    for row, lengths in enumerate(segment_lengths):
        total, start = 0.0, 0
        for length in lengths:
            ids = batch.input_ids[row, start : start + length]
            with torch.no_grad():
                log_probabilities = model(ids[None]).logits[0].double().log_softmax(-1)
            for index in range(1, length):
                if batch.labels[row, start + index] != IGNORED_LABEL:
                    total -= log_probabilities[index - 1, ids[index]].item()
            start += length
        sums.append(total)
    return sums


@pytest.mark.parametrize("kind", ["llama", "mistral", "mistral with a window"])
def test_with_document_masks_a_packed_text_is_as_if_alone(kind):
    model, batch = make_model(kind), make_batch()
    expected = losses_text_by_text(model.eval(), batch, SEGMENT_LENGTHS)
    masked, _ = losses_and_gradients(model, batch, configure(document_masks=True))
    assert masked.cross_entropy.tolist() == pytest.approx(expected, rel=1e-5)
    # And the masks are needed for it.
    plain, _ = losses_and_gradients(model, batch, configure())
    assert plain.cross_entropy.tolist() != pytest.approx(expected, rel=1e-4)


def test_with_document_masks_no_logit_depends_on_another_text():
    """Changing the texts before one, their lengths included, changes nothing in it."""
    model = make_model("mistral").eval()
    first = make_batch(segment_lengths=[[5, 9, 10]])
    second = make_batch(segment_lengths=[[8, 6, 10]], seed=1)
    second.input_ids[0, -10:] = first.input_ids[0, -10:]

    def last_logits(batch, **positions):
        with torch.no_grad():
            return model(input_ids=batch.input_ids, use_cache=False, **positions).logits[0, -10:]

    masked = [last_logits(batch, position_ids=batch.position_ids) for batch in (first, second)]
    torch.testing.assert_close(*masked, rtol=1e-5, atol=1e-5)
    plain = [last_logits(batch) for batch in (first, second)]
    assert (plain[0] - plain[1]).abs().max() > 1e-2


@pytest.mark.real_model
def test_document_masks_in_a_real_model():
    if not os.path.isdir(REAL_MODEL):
        pytest.skip("the quickstart model is not there: make pretrain fetches it")
    model = AutoModelForCausalLM.from_pretrained(REAL_MODEL, dtype=torch.float32).eval()
    batch = make_batch(vocab_size=model.config.vocab_size)
    with torch.no_grad():
        packed = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        plain = model(input_ids=batch.input_ids, use_cache=False).logits
        for row, lengths in enumerate(SEGMENT_LENGTHS):
            for start, length in zip(itertools.accumulate(lengths, initial=0), lengths, strict=False):
                alone = model(input_ids=batch.input_ids[row : row + 1, start : start + length]).logits[0]
                torch.testing.assert_close(packed[row, start : start + length], alone, rtol=1e-4, atol=1e-3)
                if start:
                    assert (plain[row, start : start + length] - alone).abs().max() > 0.1


@pytest.fixture
def flash_attention_stand_in():
    """A name under which the trainer takes attention for flash attention, and sdpa does the work."""
    AttentionInterface.register("flash_attention_stand_in", sdpa_attention_forward)
    AttentionMaskInterface.register("flash_attention_stand_in", sdpa_mask)
    yield "flash_attention_stand_in"
    del AttentionInterface._global_mapping["flash_attention_stand_in"]
    del AttentionMaskInterface._global_mapping["flash_attention_stand_in"]


def test_flash_attention_gets_all_rows_as_one(flash_attention_stand_in):
    model, batch = make_model("llama"), make_batch()
    expected = losses_and_gradients(model, batch, configure(document_masks=True))
    # The setter would look for the package.
    model.config._attn_implementation_internal = flash_attention_stand_in
    shapes = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    assert_equal(losses_and_gradients(model, batch, configure(document_masks=True)), expected, tolerance=1e-5)
    losses_and_gradients(model, batch, configure())
    assert [shape for shape in shapes if shape != (1, 8)] == [(1, 48), (2, 24)]  # but for the probe's


VARIANTS = {
    "checkpointing": {"checkpointing": True},
    "chunks": {"chunk_tokens": 10},
    "checkpointing, chunks and z-loss": {"checkpointing": True, "chunk_tokens": 10, "z_loss": 0.01},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("document_masks", [False, True])
def test_what_saves_memory_changes_nothing(variant, document_masks):
    model, batch = make_model("mistral"), make_batch()
    options = VARIANTS[variant]
    expected = losses_and_gradients(
        model, batch, configure(document_masks=document_masks, z_loss=options.get("z_loss", 0.0))
    )
    actual = losses_and_gradients(model, batch, configure(document_masks=document_masks, **options))
    assert_equal(actual, expected, tolerance=1e-4)
    assert (expected[0].z > 0).all() == ("z_loss" in options)


def few_targets(batch, *, share=0.3):
    """The batch with a random part of its targets; the first row of them has none."""
    generator = torch.Generator().manual_seed(2)
    keep = torch.rand(batch.labels.shape, generator=generator) < share
    keep[0] = False
    return replace(batch, labels=batch.labels.where(keep, IGNORED_LABEL))


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.01}, {"chunk_tokens": 4, "checkpointing": True}])
def test_logits_of_targets_alone_give_the_same(options, monkeypatch):
    model, batch = make_model("llama"), few_targets(make_batch(segment_lengths=[*SEGMENT_LENGTHS, [12, 8, 4]]))
    num_targets = int((batch.labels[:, 1:] != IGNORED_LABEL).sum())
    num_computed = []
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: num_computed.append(logits[..., 0].numel()))
    actual = losses_and_gradients(model, batch, configure(**options))
    # A first call compares the output layer with the model's own; chunks are computed twice.
    assert sum(num_computed) in (2 * 8 + num_targets, 2 * 8 + 2 * num_targets)
    monkeypatch.setattr(forward, "_MAX_PICKED_SHARE", 0.0)
    num_computed.clear()
    expected = losses_and_gradients(model, batch, configure(**options))
    assert sum(num_computed) > 2 * 8 + 2 * num_targets
    assert_equal(actual, expected, tolerance=1e-5)
    assert actual[0].cross_entropy[0] == 0
    assert (actual[0].cross_entropy[1:] > 0).all()


@pytest.mark.parametrize("document_masks", [False, True])
def test_what_stands_behind_the_last_target_is_left_out(document_masks):
    model, batch = make_model("mistral"), make_batch(segment_lengths=[[9, 6, 9], [14, 2, 8]])
    batch.labels[0, -9:] = batch.labels[1, -8:] = IGNORED_LABEL
    shapes = []
    hook = model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    config = configure(document_masks=document_masks)
    actual = losses_and_gradients(model, batch, config)
    assert shapes[-1] == (2, 16)
    hook.remove()
    # With a later target that weighs nothing, nothing is left out.
    longer = copy.deepcopy(model).train()
    prepare_model(longer, config=config, device=CPU)
    padded = F.pad(batch.labels[:1], (0, 0, 0, 2), value=IGNORED_LABEL)
    padded[1], padded[2, -1] = batch.labels[1], 1
    rows = [0, 1, 1]
    every = replace(
        batch,
        input_ids=batch.input_ids[rows],
        position_ids=batch.position_ids[rows],
        component_ids=batch.component_ids[rows],
        labels=padded,
    )
    losses = Forward(config)(longer, every)
    (losses.cross_entropy[:2] * torch.tensor([1.0, 2.0])).sum().backward()
    gradients = {name: value.grad for name, value in longer.named_parameters()}
    expected = (Losses(*(values[:2] for values in losses)), gradients)
    assert_equal(actual, expected, tolerance=1e-5)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([[-100, -100]], 2), ([[-100, 5], [-100, -100]], 2), ([[4, -100], [3, -100]], 1), ([[-100, 3, -100]], 2)],
)
def test_used_length(labels, expected):
    assert forward.used_length(torch.tensor(labels)) == expected


def test_a_model_that_caps_its_logits_computes_all_of_them(monkeypatch):
    model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.5))
    batch = few_targets(make_batch())
    actual, _ = losses_and_gradients(model, batch, configure())
    with torch.no_grad():
        log_probabilities = model(batch.input_ids, use_cache=False).logits.log_softmax(-1)
    taken = log_probabilities[:, :-1].gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    expected = -(taken * (batch.labels[:, 1:] != IGNORED_LABEL)).sum(1)
    torch.testing.assert_close(actual.cross_entropy, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_targets", "is_picked"), [(0, False), (1, True), (80, True), (81, False), (100, False)])
def test_targets_are_picked_out_where_that_saves_something(num_targets, is_picked):
    targets = torch.full((100,), IGNORED_LABEL)
    positions = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:num_targets].sort().values
    targets[positions] = 5
    picked = forward.picked_targets(targets)
    assert picked.tolist() == positions.tolist() if is_picked else picked is None


def test_checkpointing_computes_each_layer_twice():
    calls = []
    for checkpointing in (False, True):
        model = make_model("llama").train()
        prepare_model(model, config=configure(checkpointing=checkpointing), device=CPU)
        model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(checkpointing))  # noqa: B023
        Forward(configure())(model, make_batch()).cross_entropy.sum().backward()
    assert (calls.count(False), calls.count(True)) == (1, 2)


@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 7, "checkpointing": True}])
def test_an_adapter_is_trained_through_the_same_call(options):
    """With one on the output layer too, so that its weight alone would not do."""
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    model, batch = peft.get_peft_model(make_model("llama"), lora), make_batch()
    merged = copy.deepcopy(model).merge_and_unload().requires_grad_()
    losses, gradients = losses_and_gradients(model, batch, configure(**options))
    expected, _ = losses_and_gradients(merged, batch, configure())
    assert losses.cross_entropy.tolist() == pytest.approx(expected.cross_entropy.tolist(), rel=1e-4)
    assert {name.rsplit(".", 3)[-3] for name in gradients} == {"lora_A", "lora_B"}
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_without_labels_the_model_answers_as_ever():
    model, batch = make_model("llama"), make_batch()
    expected = model(input_ids=batch.input_ids).logits
    prepare_model(model, config=configure(chunk_tokens=4), device=CPU)
    assert torch.equal(model(input_ids=batch.input_ids).logits, expected)
    assert model.generate(batch.input_ids[:, :4], max_new_tokens=2, do_sample=False).shape == (2, 6)


def test_a_model_that_caps_its_logits_is_not_computed_in_chunks():
    model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.5))
    with pytest.raises(ValueError, match="Gemma2ForCausalLM does more to its logits"):
        prepare_model(model, config=configure(chunk_tokens=4), device=CPU)
    prepare_model(model, config=configure(), device=CPU)
    assert Forward(configure())(model, make_batch()).cross_entropy.shape == (2,)


def test_what_the_machine_cannot_do_is_refused():
    for config, message in (
        (configure(attention="flash_attention_2"), "no GPU in use or no flash-attn"),
        (configure(kernel="liger"), "there is no GPU in use"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_model(make_model("llama"), config=config, device=CPU)


@pytest.mark.slow
def test_compiled_layers_compute_the_same_under_the_same_names():
    """With document masks, checkpointing and chunks, so that these are seen to go together."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is none")
    options = {"document_masks": True, "checkpointing": True, "chunk_tokens": 24}
    model, batch = make_model("mistral"), make_batch()
    expected = losses_and_gradients(model, batch, configure(**options))
    compiled = copy.deepcopy(model).train()
    # More rows than the batch has, so that empty ones are added.
    config = configure(compile="default", micro_batch_rows=3, **options)
    prepare_model(compiled, config=config, device=CPU)
    torch._dynamo.utils.counters.clear()
    losses = Forward(config)(compiled, batch)
    (losses.cross_entropy * torch.tensor([1.0, 2.0])).sum().backward()
    # Both layers share one, and the loss has one.
    num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert num_graphs == 2
    gradients = {name: value.grad for name, value in compiled.named_parameters()}
    assert_equal((losses, gradients), expected, tolerance=1e-4)
    assert list(compiled.state_dict()) == list(model.state_dict())

    # A shorter batch is filled up to the same shape: nothing is compiled again.
    first = Batch(
        input_ids=batch.input_ids[:1],
        labels=batch.labels[:1],
        position_ids=batch.position_ids[:1],
        component_ids=batch.component_ids[:1],
        num_tokens=0,
    )
    shorter = Forward(config)(compiled, first)
    assert shorter.cross_entropy.tolist() == pytest.approx(losses.cross_entropy[:1].tolist(), rel=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs
