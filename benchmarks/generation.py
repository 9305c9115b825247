"""How fast the padded engine generates on the CPU, next to plain ``model.generate`` and without its prefix cache.

``python -m benchmarks.generation`` loads the quickstart's model twice, as the engine does and as the library does, and
measures three things, in turns within one run:

1. A mixed corpus: texts of 50 to 900 tokens, 128 new tokens each, no early stop, so that both sides generate the same
   number. Plain generation takes the texts in the order of arrival, padded, at the engine's batch size. The share of
   equal tokens is told too: both are greedy, and differ where rounding decides.
2. What the engine's decoding reaches of the steady rate of its batch size: the tokens of a full batch over the median
   time of one step.
3. Chains of three rounds by the quickstart's chat prompt and in the wire format: rounds 2 and 3 with the prefix cache
   and without it. What all prompts of a batch begin with is computed once in both.

Text comes from the folder that ``IPT_SHARED`` names, if it is there, or else from Python's own manual. Cost: about ten
minutes on 2 cores, a minute with ``--quick``. Not measured here: loading, and runs through Beam.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from contracts.record_files import Record, read_records
from contracts.records import Document, Example, InstructionPair
from contracts.seeding import stable_hash
from synth_model.chat_prompt import load_wording
from synth_model.engines import EngineConfig
from synth_model.engines.padded_generation import PaddedGeneration
from synth_model.engines.transformers_engine import TransformersEngine
from synth_model.generation import Completion, Prompt, Sampling
from synth_model.synthesizer import ChatSynthesizer, Synthesizer, WireFormatSynthesizer

SHARED_CORPORA = ("openstax_psychology.jsonl.gz", "rust_book.jsonl.gz", "fed_documents.jsonl.gz")


def prose() -> Iterator[str]:
    """Long texts, again and again."""
    folder = os.path.join(os.environ.get("IPT_SHARED", "../shared"), "data", "corpora")
    if os.path.isdir(folder):
        texts = [
            str(record.values.get("text", ""))
            for name in SHARED_CORPORA
            for record, _ in zip(read_records(os.path.join(folder, name)), range(200), strict=False)
            if isinstance(record, Record)
        ]
    else:
        from pydoc_data.topics import topics

        texts = list(topics.values())
    while True:
        yield from texts


def texts_of_lengths(lengths: Sequence[int], *, tokenizer: Any) -> list[str]:
    """Texts of so many tokens, in the lengths' order; a token more or less where decoding joins two."""
    source = prose()
    texts = []
    for length in lengths:
        ids: list[int] = []
        while len(ids) < length:
            ids += tokenizer(next(source) + "\n\n", add_special_tokens=False)["input_ids"]
        texts.append(tokenizer.decode(ids[:length]))
    return texts


def spread(first: int, last: int, *, count: int) -> list[int]:
    """``count`` numbers evenly from first to last, in an order given by hashes."""
    numbers = [first + (last - first) * index // max(1, count - 1) for index in range(count)]
    return sorted(numbers, key=lambda number: stable_hash("benchmark order", number))


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Time passed, and what the work returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def plain_generation(
    model: Any, prompts: Sequence[list[int]], *, batch_size: int, max_new_tokens: int
) -> list[list[int]]:
    """New tokens of each prompt by the library's own loop, in batches in the order of the prompts."""
    import torch

    completions: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        longest = max(map(len, batch))
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor([[0] * (longest - len(ids)) + ids for ids in batch]),
                attention_mask=torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch]),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        completions += output[:, longest:].tolist()
    return completions


class StepTimes:
    """Times the calls of a `PaddedGeneration`: ``prompts`` and ``steps`` in seconds, steps with their rows."""

    def __init__(self, generation: PaddedGeneration) -> None:
        self.prompts: list[float] = []
        self.steps: list[tuple[int, float]] = []
        self._compute_prompts, self._next_logits = generation._compute_prompts, generation._next_logits
        generation._compute_prompts = self._timed_prompts  # type: ignore[method-assign]
        generation._next_logits = self._timed_step  # type: ignore[method-assign]

    def _timed_prompts(self, *args: Any) -> Any:
        taken, logits = seconds(partial(self._compute_prompts, *args))
        self.prompts.append(taken)
        return logits

    def _timed_step(self, tokens: list[int], **kwargs: Any) -> Any:
        taken, logits = seconds(partial(self._next_logits, tokens, **kwargs))
        self.steps.append((len(tokens), taken))
        return logits


def load(model: str, *, batch_size: int, prefix_cache_bytes: int) -> TransformersEngine:
    """An engine on the CPU."""
    return TransformersEngine(
        EngineConfig(model=model, device="cpu", max_batch_size=batch_size, prefix_cache_bytes=prefix_cache_bytes)
    )


def measure_mixed_corpus(model: str, *, num_prompts: int, batch_size: int, max_new_tokens: int, num_turns: int) -> None:
    """Parts 1 and 2."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    engine = load(model, batch_size=batch_size, prefix_cache_bytes=0)
    # Nothing ends a completion early.
    engine._eos_ids = ()
    assert engine._padded_generation is not None
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    plain.generation_config = GenerationConfig()
    tokenizer = engine._tokenizer.tokenizer
    prompts = [Prompt(text=text) for text in texts_of_lengths(spread(50, 900, count=num_prompts), tokenizer=tokenizer)]
    ids = engine._tokenizer.encode(prompts)
    num_tokens = num_prompts * max_new_tokens
    sampling = Sampling(max_new_tokens=max_new_tokens)
    times = StepTimes(engine._padded_generation)
    plain_seconds, engine_seconds, decode_seconds = [], [], []
    outcomes: list[Any] = []
    completions: list[list[int]] = []
    # Allocators and the tokenizer's caches are filled first.
    engine.generate(prompts[:2], sampling=Sampling(max_new_tokens=2))
    plain_generation(plain, ids[:2], batch_size=2, max_new_tokens=2)
    for _ in range(num_turns):
        times.prompts.clear()
        taken, outcomes = seconds(partial(engine.generate, prompts, sampling=sampling))
        engine_seconds.append(taken)
        decode_seconds.append(taken - sum(times.prompts))
        taken, completions = seconds(
            partial(plain_generation, plain, ids, batch_size=batch_size, max_new_tokens=max_new_tokens)
        )
        plain_seconds.append(taken)
        print(f"turn: engine {engine_seconds[-1]:.1f} s, plain {plain_seconds[-1]:.1f} s", flush=True)
    num_equal = sum(
        outcome.text == tokenizer.decode(completion, clean_up_tokenization_spaces=False)
        for outcome, completion in zip(outcomes, completions, strict=True)
    )
    ratio = statistics.median(plain / ours for plain, ours in zip(plain_seconds, engine_seconds, strict=True))
    full = [taken for rows, taken in times.steps if rows == batch_size]
    steady = batch_size / statistics.median(full)
    overall = statistics.median(num_tokens / taken for taken in engine_seconds)
    decoding = statistics.median(num_tokens / taken for taken in decode_seconds)
    print(
        f"\n{num_prompts} texts of {min(map(len, ids))} to {max(map(len, ids))} tokens, {max_new_tokens} new each, "
        f"batches of {batch_size}, {num_turns} turns"
    )
    print(f"engine                  {overall:8.1f} new tokens/s")
    print(f"plain generate          {statistics.median(num_tokens / taken for taken in plain_seconds):8.1f}")
    print(f"ratio                   {ratio:8.2f} times as fast")
    print(f"equal completions       {num_equal:8} of {num_prompts}")
    print(f"steady decode rate      {steady:8.1f} new tokens/s: {batch_size} rows a step of the median time")
    print(f"while decoding          {decoding:8.1f}, {decoding / steady:.2f} of the steady rate")
    print(f"with computing prompts  {overall:8.1f}, {overall / steady:.2f} of the steady rate")


def chain_prompt(synthesizer: Synthesizer, examples: Sequence[Example], text: str, *, engine: Any) -> Prompt:
    """The prompt of a chain's next text."""
    document = Document(doc_id="d", source="s", text=text)
    return synthesizer.build_prompt(examples, document=document, special_tokens=engine._tokenizer.special_tokens)


def next_example(synthesizer: Synthesizer, completion: Completion, text: str, *, engine: Any) -> Example:
    """A text with the pairs of its completion; one without any gets a pair all the same, so that no chain breaks."""
    pairs = synthesizer.parse(completion, special_tokens=engine._tokenizer.special_tokens)
    return Example(
        document=Document(doc_id="d", source="s", text=text),
        pairs=tuple(pairs) or (InstructionPair(instruction="How does it begin?", response=text[:100]),),
    )


def measure_rounds(
    model: str, *, synthesizer: Synthesizer, name: str, num_chains: int, num_turns: int, max_new_tokens: int
) -> None:
    """Part 3 for one kind of prompt."""
    engines = {
        "without": load(model, batch_size=num_chains, prefix_cache_bytes=0),
        "with": load(model, batch_size=num_chains, prefix_cache_bytes=4 << 30),
    }
    some = engines["with"]
    sampling = Sampling(max_new_tokens=max_new_tokens, frequency_penalty=0.1)
    ratios: dict[int, list[float]] = {2: [], 3: []}
    num_equal = num_compared = 0
    for turn in range(num_turns):
        texts = texts_of_lengths(
            spread(100 + turn, 300 + turn, count=3 * num_chains), tokenizer=some._tokenizer.tokenizer
        )
        examples: list[list[Example]] = [[] for _ in range(num_chains)]
        for number in (1, 2, 3):
            current = texts[(number - 1) * num_chains : number * num_chains]
            prompts = [
                chain_prompt(synthesizer, done, text, engine=some) for done, text in zip(examples, current, strict=True)
            ]
            taken = {
                key: seconds(partial(engine.generate, prompts, sampling=sampling)) for key, engine in engines.items()
            }
            outcomes = taken["without"][1]
            for chain, outcome, text in zip(examples, outcomes, current, strict=True):
                assert isinstance(outcome, Completion), outcome
                chain.append(next_example(synthesizer, outcome, text, engine=some))
            num_compared += num_chains
            num_equal += sum(one == other for one, other in zip(outcomes, taken["with"][1], strict=True))
            mean_tokens = statistics.mean(outcome.num_prompt_tokens for outcome in outcomes)
            if number > 1:
                ratios[number].append(taken["without"][0] / taken["with"][0])
            print(
                f"turn: {name}, round {number}, prompts of {mean_tokens:.0f} "
                f"tokens: without {taken['without'][0]:.1f} s, with {taken['with'][0]:.1f} s",
                flush=True,
            )
    print(f"\n{name}: {num_chains} chains, texts of 100 to 300 tokens, {max_new_tokens} new at most, {num_turns} turns")
    for number, values in ratios.items():
        print(f"round {number}                 {statistics.median(values):8.2f} times as fast with the prefix cache")
    print(f"equal completions       {num_equal:8} of {num_compared}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation")
    parser.add_argument("--model", default=".cache/models/smollm2-135m-instruct", help="hub name or folder")
    parser.add_argument("--part", choices=("corpus", "rounds"), help="measure one part alone")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a minute: 8 prompts, 32 new tokens, one turn")
    args = parser.parse_args()
    num_prompts, batch_size, num_turns = (8, 4, 1) if args.quick else (args.prompts, args.batch_size, args.turns)
    if args.part != "rounds":
        measure_mixed_corpus(
            args.model,
            num_prompts=num_prompts,
            batch_size=batch_size,
            max_new_tokens=32 if args.quick else 128,
            num_turns=num_turns,
        )
    if args.part != "corpus":
        for name, synthesizer in (
            ("chat prompt", ChatSynthesizer(wording=load_wording("english"))),
            ("wire format", WireFormatSynthesizer()),
        ):
            measure_rounds(
                args.model,
                synthesizer=synthesizer,
                name=name,
                num_chains=4 if args.quick else batch_size,
                num_turns=1,
                max_new_tokens=32 if args.quick else 104,
            )


if __name__ == "__main__":
    main()
