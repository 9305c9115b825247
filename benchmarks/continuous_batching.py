"""Continuous batching against padded batches, and both against what the memory's bandwidth allows.

``python -m benchmarks.continuous_batching`` makes models of random weights in the shape of SmolLM2-135M and of
Mistral-7B on the device, and prompts of random tokens, 50 to 900 of them, evenly spread on a log scale, each with
exactly ``--new-tokens`` new ones (nothing ends a completion). For each batch size B both engines complete all prompts,
in turns; a row of the table is tokens/s, new ones over all of the time, the median of the turns, and the median of each
turn's ratio. ``--quick`` does all of it with a tiny model in under a minute on a CPU.

Roofline: a step of decoding B sequences reads every weight once, and the keys and values of all B, so that with W bytes
of weights, K bytes of keys and values a token, L tokens in a sequence on average (prompt and half of the completion)
and a bandwidth of M bytes a second, no more than ``B * M / (W + B * L * K)`` tokens a second can come out. It counts
decoding alone: the prompts' own reading, which is arithmetic, takes its share from what can be reached. M is measured:
twice the bytes of a large copy on the device by its time.

The second table is a second round: prompts that begin with those of a first round and go on for 300 tokens, with 16
new ones, right after the first round (its pages are in the cache) and after a start anew.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import is_flash_attn_2_available

from contracts.seeding import rng
from synth_model.engines import EngineConfig
from synth_model.engines.continuous_batching_engine import ContinuousBatchingEngine
from synth_model.engines.continuous_batching_session import ContinuousBatchingOptions
from synth_model.engines.model_loading import LoadedModel
from synth_model.engines.transformers_engine import TransformersEngine
from synth_model.generation import Prompt, Sampling

CONTEXT_LENGTH = 2048
FOLLOWING_TOKENS = 300
FOLLOWING_NEW_TOKENS = 16
SHAPES = {
    "tiny": LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "mistral-7b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
    ),
}


class RandomTokens:
    """Stands for a tokenizer: a prompt's text names random tokens, as numbers of tokens behind the prompt's own name.

    ``vocab_size`` bounds the tokens.
    """

    def __init__(self, *, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=None, decode=lambda ids, **_: "")

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt; prompts of one name begin alike."""
        encoded = []
        for prompt in prompts:
            name, *lengths = prompt.text.split()
            parts = [
                rng(0, name, part).integers(1, self._vocab_size, int(length)) for part, length in enumerate(lengths)
            ]
            encoded.append([int(token) for part in parts for token in part])
        return encoded


def mixed_lengths(num_prompts: int, *, shortest: int = 50, longest: int = 900) -> list[int]:
    """Lengths evenly spread on a log scale, in an order that is not that of length."""
    spread = [
        round(shortest * (longest / shortest) ** (index / max(1, num_prompts - 1))) for index in range(num_prompts)
    ]
    return [spread[int(index)] for index in rng(0, "order").permutation(num_prompts)]


def make_model(config: LlamaConfig, *, device: str) -> LoadedModel:
    """A model of random weights, made on the device, bfloat16 on CUDA and float32 on the CPU."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    tokenizer = cast(Any, RandomTokens(vocab_size=config.vocab_size))
    return LoadedModel(model=model, tokenizer=tokenizer, device=device, eos_ids=())


def measured_bandwidth(device: str) -> float:
    """Bytes a second that the device's memory reads and writes together."""
    source = torch.empty(1 << 30 if device == "cuda" else 1 << 28, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    best: float = math.inf
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return float(2 * source.numel() / best)


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def decode_roofline(model: Any, *, batch_size: int, mean_length: float, bandwidth: float) -> float:
    """Most tokens a second of decoding so many sequences of so many tokens; see the module's description."""
    config, itemsize = model.config, next(model.parameters()).element_size()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        # Of the input embeddings only the rows of the tokens are read.
        weights -= model.get_input_embeddings().weight.numel() * itemsize
    head_size: int = config.hidden_size // config.num_attention_heads
    cache: int = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * itemsize
    return float(batch_size * bandwidth / (weights + batch_size * mean_length * cache))


def load(kind: str, loaded: LoadedModel, config: EngineConfig) -> Any:
    """An engine over weights that are there, or on the CPU, where padded batches rearrange them, made once more."""
    if kind == "padded" and loaded.device == "cpu":
        loaded = make_model(loaded.model.config, device="cpu")
    module, engine = {
        "padded": ("transformers_engine", TransformersEngine),
        "continuous": ("continuous_batching_engine", ContinuousBatchingEngine),
    }[kind]
    with mock.patch(f"synth_model.engines.{module}.load_model", return_value=loaded):
        return engine(config)


def timed(engine: Any, prompts: Sequence[Prompt], *, num_new: int) -> float:
    """Seconds to complete the prompts."""
    started = time.perf_counter()
    outcomes = engine.generate(prompts, sampling=Sampling(max_new_tokens=num_new))
    seconds = time.perf_counter() - started
    assert all(outcome.num_new_tokens == num_new for outcome in outcomes), outcomes
    return seconds


def compare(loaded: LoadedModel, config: EngineConfig, arguments: argparse.Namespace, *, bandwidth: float) -> None:
    """Prints a row for each batch size."""
    lengths = mixed_lengths(arguments.num_prompts)
    prompts = [Prompt(text=f"{index} {length}") for index, length in enumerate(lengths)]
    num_tokens = len(prompts) * arguments.new_tokens
    mean_length = statistics.fmean(lengths) + arguments.new_tokens / 2
    for batch_size in arguments.batch_sizes:
        sized = replace(
            config,
            max_batch_size=batch_size,
            continuous=replace(config.continuous, max_requests=batch_size),
        )
        seconds: dict[str, list[float]] = {"padded": [], "continuous": []}
        for _ in range(arguments.turns):
            for kind, times in seconds.items():
                engine = load(kind, loaded, sized)
                # Starts the batch, and whatever is compiled or captured.
                timed(engine, prompts[:2], num_new=2)
                times.append(timed(engine, prompts, num_new=arguments.new_tokens))
                if kind == "continuous":
                    engine.close()
        padded, continuous = (num_tokens / statistics.median(times) for times in seconds.values())
        ratio = statistics.median(
            before / after for before, after in zip(seconds["padded"], seconds["continuous"], strict=True)
        )
        roof = decode_roofline(loaded.model, batch_size=batch_size, mean_length=mean_length, bandwidth=bandwidth)
        print(
            f"| {batch_size} | {padded:.0f} | {continuous:.0f} | {ratio:.2f} | {roof:.0f} | {padded / roof:.2f} "
            f"| {continuous / roof:.2f} |",
            flush=True,
        )


def compare_rounds(loaded: LoadedModel, config: EngineConfig, arguments: argparse.Namespace) -> None:
    """Prints seconds of a second round, with and without the first one's pages."""
    lengths = mixed_lengths(arguments.num_prompts)
    first = [Prompt(text=f"{index} {length}") for index, length in enumerate(lengths)]
    second = [Prompt(text=f"{prompt.text} {FOLLOWING_TOKENS}") for prompt in first]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(arguments.turns):
        for is_warm, times in seconds.items():
            engine = load("continuous", loaded, config)
            timed(engine, first if is_warm else first[:1], num_new=2)
            times.append(timed(engine, second, num_new=FOLLOWING_NEW_TOKENS))
            engine.close()
    warm, cold = (statistics.median(times) for times in seconds.values())
    ratio = statistics.median(cold / warm for warm, cold in zip(seconds[True], seconds[False], strict=True))
    print(f"| {cold:.2f} | {warm:.2f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few prompts")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2-135m", "mistral-7b"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32, 128, 256])
    parser.add_argument("--num-prompts", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--page-size", type=int, default=256 if is_flash_attn_2_available() else 32)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.batch_sizes = ["tiny"], [1, 4]
        arguments.num_prompts, arguments.new_tokens, arguments.turns = 12, 16, 2
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    bandwidth = measured_bandwidth(arguments.device)
    print(f"{name}, {bandwidth / 1e9:.0f} GB/s; FlashAttention 2: {is_flash_attn_2_available()}")
    for shape in arguments.shapes:
        loaded = make_model(SHAPES[shape], device=arguments.device)
        config = EngineConfig(
            model=shape,
            device=arguments.device,
            context_length=CONTEXT_LENGTH,
            # On the CPU the paged cache is as large, and the masks of its attention grow with it.
            max_batch_tokens=1 << (20 if arguments.device == "cuda" else 14),
            continuous=ContinuousBatchingOptions(
                page_size=arguments.page_size, max_step_tokens=4096 if arguments.device == "cuda" else 512
            ),
        )
        print(f"\n{shape}: {arguments.num_prompts} prompts, {arguments.new_tokens} new tokens each\n")
        print(
            "| batch | padded, tokens/s | continuous | ratio | roofline | padded / roofline | continuous / roofline |"
        )
        print("|---|---|---|---|---|---|---|")
        compare(loaded, config, arguments, bandwidth=bandwidth)
        print("\n| second round from nothing, s | behind the first round | ratio |\n|---|---|---|")
        compare_rounds(loaded, config, arguments)


if __name__ == "__main__":
    main()
