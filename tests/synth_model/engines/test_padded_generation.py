from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from contracts.records import Document, Example, InstructionPair
from synth_model.chat_prompt import load_wording
from synth_model.engines import EngineConfig, padded_generation
from synth_model.engines.padded_generation import (
    EncodedPrompt,
    PaddedGeneration,
    generate_with_library,
    keeps_only_keys_and_values,
)
from synth_model.engines.prompt_encoding import make_completion
from synth_model.engines.transformers_engine import TransformersEngine
from synth_model.generation import Sampling
from synth_model.synthesizer import ChatSynthesizer
from tests.conftest import REPOSITORY

VOCABULARY = 64
GREEDY = Sampling(max_new_tokens=10)
SAMPLINGS = {
    "greedy": GREEDY,
    "penalty": replace(GREEDY, frequency_penalty=1.5),
    "penalty on presence": replace(GREEDY, presence_penalty=1.5),
    "drawn": replace(GREEDY, temperature=1.3, top_p=0.9),
    "drawn with a penalty": replace(GREEDY, temperature=0.8, frequency_penalty=0.7),
}
# About one token in six ends a completion, so rows leave at different times.
EOS_IDS = tuple(range(10))
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Wide apart, so that no rounding decides between two tokens.
    "initializer_range": 0.6,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def make_model(name, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = transformers.GenerationConfig()
    return model


@pytest.fixture(scope="module")
def llama():
    return make_model("Llama")


def make_prompts(*lengths, seed=0, start=()):
    random = np.random.default_rng(seed)
    return [
        EncodedPrompt(ids=[*start, *random.integers(10, VOCABULARY, length).tolist()], seed=index)
        for index, length in enumerate(lengths)
    ]


PROMPTS = make_prompts(40, 33, 33, 20, 7, 1)


def run(model, prompts, *, sampling=GREEDY, prefix_cache_bytes=0, eos_ids=EOS_IDS):
    generation = PaddedGeneration(model, prefix_cache_bytes=prefix_cache_bytes)
    return generation.generate(prompts, sampling=sampling, eos_ids=eos_ids)


def alone(model, prompts, *, sampling=GREEDY):
    """The oracle: the library's own loop for each prompt by itself; what follows the end is padding."""
    return [generate_with_library(model, [prompt], sampling=sampling, eos_ids=EOS_IDS)[0] for prompt in prompts]


def spy_on_calls(model, monkeypatch):
    """The shape of the tokens of every call of the model."""
    shapes = []
    forward = model.forward

    def watched(**call):
        shapes.append(tuple(call["input_ids"].shape))
        return forward(**call)

    monkeypatch.setattr(model, "forward", watched)
    return shapes


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_tokens_are_those_of_the_library_for_each_prompt_alone(llama, sampling):
    expected = alone(llama, PROMPTS, sampling=sampling)
    assert run(llama, PROMPTS, sampling=sampling) == expected
    assert run(llama, PROMPTS[::-1], sampling=sampling)[::-1] == expected
    lengths = {len(completion) for completion in expected}
    assert len(lengths) > 2, "rows should leave at different times"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {"num_key_value_heads": 4}),
        ("Mistral", {"sliding_window": 8}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        (
            "Gemma3Text",
            {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
        ),
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("Phi", {}),
    ],
)
def test_models_of_other_kinds_give_their_own_tokens_too(name, changes):
    model = make_model(name, **changes)
    assert keeps_only_keys_and_values(model)
    prompts = [*PROMPTS, *make_prompts(12, 3, seed=1, start=PROMPTS[0].ids)]
    expected = alone(model, prompts)
    assert run(model, prompts, prefix_cache_bytes=1 << 20) == expected
    assert len({tuple(completion) for completion in expected}) > 3


def test_models_with_other_states_go_through_the_library():
    model = make_model("Mamba", state_size=4, num_hidden_layers=2)
    assert not keeps_only_keys_and_values(model)
    expected = alone(model, PROMPTS)
    together = generate_with_library(model, PROMPTS, sampling=GREEDY, eos_ids=EOS_IDS)
    ends = [next((i + 1 for i, token in enumerate(row) if token in EOS_IDS), len(row)) for row in together]
    assert [row[:end] for row, end in zip(together, ends, strict=True)] == expected


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_later_rounds_compute_only_what_is_new(llama, monkeypatch, sampling):
    generation = PaddedGeneration(llama, prefix_cache_bytes=1 << 24)
    prompts = make_prompts(30, 25, 20)
    shapes = spy_on_calls(llama, monkeypatch)
    num_known = []
    for number in range(3):
        shapes.clear()
        completions = generation.generate(prompts, sampling=sampling, eos_ids=EOS_IDS)
        computed = [columns for rows, columns in shapes if rows == 1][: len(prompts)]
        if number:
            assert computed == [len(prompt.ids) - known for prompt, known in zip(prompts, num_known, strict=True)]
        assert completions == run(llama, prompts, sampling=sampling)
        # The last token of a completion was never read.
        num_known = [len(p.ids) + len(completion) - 1 for p, completion in zip(prompts, completions, strict=True)]
        # The next round: the prompt, the completion as it is, a new text.
        prompts = [
            EncodedPrompt(ids=prompt.ids + completion + new.ids, seed=prompt.seed + 10)
            for prompt, completion, new in zip(
                prompts, completions, make_prompts(17, 9, 12, seed=number + 1), strict=True
            )
        ]


def test_what_a_prompt_has_in_common_with_another_of_its_batch_is_computed_once(llama, monkeypatch):
    start = make_prompts(24, seed=5)[0].ids
    prompts = make_prompts(9, 6, 6, 1, start=start)
    # The last has the beginning and a token that another one has too: one token is left to compute.
    prompts.append(EncodedPrompt(ids=prompts[0].ids[:25], seed=9))
    expected = alone(llama, prompts)
    shapes = spy_on_calls(llama, monkeypatch)
    assert run(llama, prompts) == expected
    assert shapes[:5] == [(1, 33), (1, 6), (1, 6), (1, 1), (1, 1)]
    monkeypatch.setattr(padded_generation, "_MIN_KNOWN_TOKENS", 25)
    shapes.clear()
    assert run(llama, prompts) == expected
    assert shapes[:4] == [(1, 33), (1, 30), (1, 30), (1, 25)]


def test_finished_rows_leave_the_batch(llama, monkeypatch):
    expected = alone(llama, PROMPTS)
    shapes = spy_on_calls(llama, monkeypatch)
    run(llama, PROMPTS)
    sizes = [rows for rows, _ in shapes[len(PROMPTS) :]]
    longest = max(map(len, expected))
    assert sizes == [sum(len(completion) > step for completion in expected) for step in range(1, longest)]
    assert sizes[0] > sizes[-1]


def test_attention_reads_grouped_keys_and_values_where_they_are(llama, monkeypatch):
    attention = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def watched(query, key, value, **kwargs):
        calls.append((query.shape, key.shape, key.untyped_storage().data_ptr(), value.untyped_storage().data_ptr()))
        return attention(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    run(llama, PROMPTS, eos_ids=())
    decoding = [call for call in calls if call[1][0] == len(PROMPTS)]
    assert len(decoding) == 3 * (GREEDY.max_new_tokens - 1)
    # Two key-value heads, not four, and for each layer the same two buffers from the first token to the last.
    assert {shape[1] for _, shape, *_ in decoding} == {2}
    assert len({keys for *_, keys, _ in decoding} | {values for *_, values in decoding}) == 2 * 3


def test_memory_of_kept_keys_and_values_is_bounded(llama):
    bytes_a_token = 3 * 2 * 2 * 8 * 4
    generation = PaddedGeneration(llama, prefix_cache_bytes=200 * bytes_a_token)
    for seed in range(5):
        generation.generate(make_prompts(40, 30, 20, 10, seed=seed), sampling=GREEDY, eos_ids=EOS_IDS)
    entries = [value for _, value, _ in generation._prefixes._entries.values()]
    # The memory itself, not what views of it show.
    kept = sum(tensor.untyped_storage().nbytes() for layers in entries for layer in layers for tensor in layer)
    assert kept == generation._prefixes.num_bytes <= 200 * bytes_a_token
    assert kept > 100 * bytes_a_token

    nothing = PaddedGeneration(llama, prefix_cache_bytes=0)
    nothing.generate(PROMPTS, sampling=GREEDY, eos_ids=EOS_IDS)
    assert len(nothing._prefixes) == 0


def test_a_batch_that_fails_leaves_nothing_behind(llama, monkeypatch):
    generation = PaddedGeneration(llama, prefix_cache_bytes=1 << 24)
    expected = alone(llama, PROMPTS)
    steps = []

    def fail_in_the_third_step(*args, **kwargs):
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("in the middle")
        return PaddedGeneration._next_logits(generation, *args, **kwargs)

    monkeypatch.setattr(generation, "_next_logits", fail_in_the_third_step)
    with pytest.raises(RuntimeError, match="in the middle"):
        generation.generate(PROMPTS, sampling=GREEDY, eos_ids=EOS_IDS)
    assert generation.generate(PROMPTS, sampling=GREEDY, eos_ids=EOS_IDS) == expected


def test_one_new_token_needs_no_step(llama, monkeypatch):
    expected = alone(llama, PROMPTS)
    shapes = spy_on_calls(llama, monkeypatch)
    assert run(llama, PROMPTS, sampling=replace(GREEDY, max_new_tokens=1)) == [row[:1] for row in expected]
    assert len(shapes) == len(PROMPTS)


@pytest.mark.real_model
def test_the_real_model_writes_what_the_library_writes():
    folder = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the quickstart's model is not there; make model fetches it")
    config = EngineConfig(model=str(folder), device="cpu", max_batch_size=4)
    engine = TransformersEngine(config)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    synthesizer = ChatSynthesizer(wording=load_wording("english"))
    texts = ["The tide turns twice a day.", "Bread rises because yeast makes gas from sugar in the dough, slowly."]
    sampling = Sampling(max_new_tokens=24, frequency_penalty=0.1)
    examples = [()] * len(texts)
    num_known = []
    known = engine._padded_generation._known
    engine._padded_generation._known = lambda *call: num_known.append(known(*call)) or num_known[-1]
    for _ in range(2):
        documents = [Document(doc_id="d", source="s", text=text) for text in texts]
        prompts = [
            synthesizer.build_prompt(earlier, document=document, special_tokens=engine._tokenizer.special_tokens)
            for earlier, document in zip(examples, documents, strict=True)
        ]
        encoded = [EncodedPrompt(ids=ids, seed=0) for ids in engine._tokenizer.encode(prompts)]
        expected = [
            make_completion(
                generate_with_library(plain, [prompt], sampling=sampling, eos_ids=engine._eos_ids)[0],
                num_prompt_tokens=len(prompt.ids),
                eos_ids=engine._eos_ids,
                tokenizer=engine._tokenizer,
            )
            for prompt in encoded
        ]
        outcomes = engine.generate(prompts, sampling=sampling)
        assert outcomes == expected
        examples = [
            (
                Example(
                    document=document,
                    pairs=tuple(synthesizer.parse(outcome, special_tokens=()))
                    or (InstructionPair(instruction="What is it about?", response="It is about this."),),
                ),
            )
            for document, outcome in zip(documents, outcomes, strict=True)
        ]
    # Of each prompt of round 2 at least its prompt of round 1 was known, of round 1 what the other had.
    lengths = [known[0][0].shape[1] if known else 0 for known in num_known]
    assert lengths[0] == 0 < lengths[1] < min(lengths[2:])
