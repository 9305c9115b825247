import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.inference_config import InferenceConfig
from beam_pipelines.model_handler import EngineModelHandler
from beam_pipelines.prompt_batching import BatchBounds
from contracts.seeding import rng
from synth_model.engines import EngineConfig
from synth_model.generation import Prompt, Sampling, completion_key, prompt_seed


def prompts_of(lengths):
    return [Prompt(text=f"{number}", num_tokens=length) for number, length in enumerate(lengths)]


def handler():
    return EngineModelHandler(
        engine=EngineConfig(kind="fake", context_length=400, max_batch_size=4, max_batch_tokens=400),
        sampling=Sampling(max_new_tokens=10),
        model_id="m",
        model_identifier="m",
        journal_writer=None,
        inference=InferenceConfig(sorted_batches=2),
    )


def test_a_prompt_weighs_its_tokens_and_at_least_its_share_of_a_batch_full_by_count():
    bounds = BatchBounds(max_prompts=4, max_tokens=400, num_new_tokens=10, is_padded=True)
    assert [bounds.weight(prompt) for prompt in prompts_of([1, 90, 91, 390, 4000])] == [100, 100, 101, 400, 400]


def test_fill_and_padding_by_hand():
    bounds = BatchBounds(max_prompts=4, max_tokens=400, num_new_tokens=10, is_padded=True)
    assert bounds.fill(prompts_of([10, 20])) == pytest.approx(0.5)  # 2 of 4 prompts; 60 of 400 tokens
    assert bounds.fill(prompts_of([140, 20])) == pytest.approx(0.75)  # 2 x 150 of 400 tokens
    assert bounds.padding_share(prompts_of([10, 20, 40])) == pytest.approx(1 - 70 / 120)
    assert bounds.padding_share(prompts_of([7])) == 0


def test_an_engine_that_does_not_pad_gets_one_batchs_worth_as_it_comes():
    bounds = BatchBounds(max_prompts=4, max_tokens=400, num_new_tokens=10, is_padded=False)
    assert bounds.cut(prompts_of([10, 300, 20])) == [[0, 1, 2]]
    assert bounds.fill(prompts_of([10, 300])) == (310 + 20) / 400
    assert bounds.padding_share(prompts_of([10, 300])) == 0
    assert bounds.gathered_weight(sorted_batches=8) == 400
    kinds = {
        "fake": {"kind": "fake"},
        "padded": {"device": "cuda", "batching": "padded"},
        "on the CPU": {"device": "cpu"},
        "open": {},
        "continuous": {"device": "cpu", "batching": "continuous"},
        "on CUDA": {"device": "cuda"},
        "vllm": {"kind": "vllm"},
        "endpoint": {"kind": "endpoint"},
    }
    pads = {name: EngineConfig(model="m", **settings).pads_batches for name, settings in kinds.items()}
    assert [name for name, is_padded in pads.items() if is_padded] == ["fake", "padded", "on the CPU", "open"]


lengths_of_prompts = st.lists(st.integers(1, 390), min_size=1, max_size=60)


@given(lengths_of_prompts, st.integers(1, 8))
def test_batches_hold_every_prompt_once_within_both_bounds(lengths, max_prompts):
    bounds = BatchBounds(max_prompts=max_prompts, max_tokens=400, num_new_tokens=10, is_padded=True)
    prompts = prompts_of(lengths)
    batches = bounds.cut(prompts)
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    for batch in batches:
        assert bounds.fill([prompts[index] for index in batch]) <= 1 + 1e-9
    # What is as long as the longest of the next batch, or longer, has gone before.
    sorted_lengths = [lengths[index] for batch in batches for index in batch]
    assert sorted_lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("lengths", [[5] * 33, [390] * 9, [1, 390, 1, 390, 390, 20, 30] * 3, [390, 5, 5, 5, 5]])
def test_beam_gathers_the_weight_of_several_batches_and_loses_no_prompt(lengths):
    bounds = BatchBounds(max_prompts=4, max_tokens=400, num_new_tokens=10, is_padded=True)

    def check(groups):
        assert sorted(length for group in groups for length in group) == sorted(lengths)
        weights = [sum(map(bounds.weight, prompts_of(group))) for group in groups]
        assert all(0 < weight <= 2 * 400 for weight in weights)
        if lengths == [5] * 33:
            assert sorted(map(len, groups)) == [1, 8, 8, 8, 8], "two batches of four"

    with beam.Pipeline("FnApiRunner") as pipeline:
        groups = (
            pipeline
            | beam.Create([[(None, prompt) for prompt in prompts_of(lengths)]])
            | "OneBundle" >> beam.FlatMap(lambda prompts: prompts)
            | beam.BatchElements(**handler().batch_elements_kwargs())
            | beam.Map(lambda group: [prompt.num_tokens for _, prompt in group])
        )
        assert_that(groups, check)


def share_of_padding(lengths, *, bounds, group_size):
    batches = []
    prompts = prompts_of(lengths)
    for start in range(0, len(prompts), group_size):
        group = prompts[start : start + group_size]
        batches += [[group[index] for index in batch] for batch in bounds.cut(group)]
    num_tokens = sum(lengths)
    return 1 - num_tokens / sum(len(batch) * max(prompt.num_tokens for prompt in batch) for batch in batches)


def test_four_batches_worth_leaves_half_of_the_padding_of_arrival_order():
    draw = rng(0, "lengths")
    lengths = [int(draw.integers(50, 900)) for _ in range(2000)]
    bounds = BatchBounds(max_prompts=32, max_tokens=32768, num_new_tokens=128, is_padded=True)
    in_order = share_of_padding(lengths, bounds=bounds, group_size=32)
    gathered = share_of_padding(lengths, bounds=bounds, group_size=4 * 32)
    assert in_order > 0.4
    assert gathered < in_order / 2


def test_the_length_of_a_prompt_is_no_part_of_its_identity():
    bare, counted = Prompt(text="a", draw=3), Prompt(text="a", draw=3, num_tokens=7)
    sampling = Sampling(temperature=1.0)
    assert bare == counted
    assert completion_key(bare, model_id="m", sampling=sampling) == completion_key(
        counted, model_id="m", sampling=sampling
    )
    assert prompt_seed(bare, sampling=sampling) == prompt_seed(counted, sampling=sampling)
    other = Prompt(text="a", draw=4, num_tokens=7)
    assert completion_key(other, model_id="m", sampling=sampling) != completion_key(
        counted, model_id="m", sampling=sampling
    )
