"""How fast chains are rendered, next to how fast their texts are tokenized, each on one core.

``python -m benchmarks.rendering TOKENIZER_FOLDER`` makes chains of three texts of English prose (the topics of Python's
own manual, about 500 tokens each) with one pair of each kind, and takes turns: it renders all of them in the default
config, then encodes the rendered texts as one batch with ``encode_batch_fast``. With ``--corpus FOLDER`` it takes the
chains of an augmented corpus instead. CPU time is measured, so that other work on the machine counts little. The
figures are MB (10^6 bytes of rendered UTF-8) per second, medians over the turns, and the median of each turn's ratio of
rendering time to tokenizing time. Rendering takes as long for a short text as for a long one, tokenizing takes the
longer the longer the text, so the ratio falls with ``--chars``.

Cost: about a second a turn. Not measured here: reading chains, and a tokenizer with several threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

# Read when the thread pool of the tokenizers library starts, so set before it is imported.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pydoc_data.topics import topics

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from contracts.manifest import read_augmented_corpus_manifest
from contracts.records import Chain, Document, Example, InstructionPair
from contracts.schemas import chain_from_row
from templates import render_chain

NUM_TEXTS = 3
MAX_RATIO = 0.1


def prose(*, num_chars: int) -> Iterator[str]:
    """Passages of whole paragraphs of the manual, each of about ``num_chars`` characters, again and again."""
    paragraphs = [paragraph for topic in topics.values() for paragraph in topic.split("\n\n")]
    while True:
        passage: list[str] = []
        for paragraph in paragraphs:
            passage.append(paragraph)
            if sum(map(len, passage)) >= num_chars:
                yield "\n\n".join(passage)
                passage = []


def pairs_about(text: str) -> tuple[InstructionPair, ...]:
    """A pair of each kind, made of words of the text."""
    words = sorted({word for word in text.split() if word.isalpha()}, key=lambda word: (-len(word), word))[:4]
    options = "".join(f"\n- {word}" for word in words)
    first, last = text.split("\n", 1)[0], text.rsplit("\n", 1)[-1]
    cue = "\nLet's think step by step."
    return (
        InstructionPair(instruction=f"What does the passage say about {words[0]}?", response=first + " " + last),
        InstructionPair(instruction=f"Which word ends it?\nOptions:{options}", response=words[1]),
        InstructionPair(
            instruction=f"How is the passage begun?{cue}",
            response=f"It opens with this line: {first}\nTherefore, the answer is {words[2]}",
        ),
        InstructionPair(
            instruction=f"Which word matters most?\nOptions:{options}{cue}",
            response=f"The end of the passage reads: {last}\nTherefore, the answer is {words[3]}",
        ),
    )


def make_chains(*, num_chains: int, num_chars: int) -> list[Chain]:
    """Chains of `NUM_TEXTS` passages of about ``num_chars`` characters."""
    passages = (text for text in prose(num_chars=num_chars) if sum(word.isalpha() for word in set(text.split())) >= 4)
    chains = []
    for index in range(num_chains):
        examples = []
        for number in range(NUM_TEXTS):
            text = next(passages)
            document = Document(doc_id=f"{index}-{number}", source="manual", text=text)
            examples.append(Example(document=document, pairs=pairs_about(text)))
        chains.append(Chain(chain_id=f"{index}", source="manual", examples=tuple(examples), synthesizer_id="benchmark"))
    return chains


def read_chains(folder: str, *, num_chains: int) -> list[Chain]:
    """The first chains of an augmented corpus."""
    chains: list[Chain] = []
    for entry in read_augmented_corpus_manifest(folder).parts:
        for batch in pq.ParquetFile(os.path.join(folder, entry.path)).iter_batches(batch_size=256):
            chains += map(chain_from_row, batch.to_pylist())
            if len(chains) >= num_chains:
                return chains[:num_chains]
    return chains


def render_all(chains: list[Chain], *, seed: int) -> list[str]:
    """The text of each chain."""
    return [render_chain(chain, seed=seed).text for chain in chains]


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of all threads, and what the work returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rendering")
    parser.add_argument("tokenizer", help="folder with tokenizer.json")
    parser.add_argument("--chains", type=int, default=300)
    parser.add_argument("--chars", type=int, default=2000, help="characters of a passage")
    parser.add_argument("--corpus", help="folder of an augmented corpus to take the chains from")
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(os.path.join(args.tokenizer, "tokenizer.json"))
    if args.corpus:
        chains = read_chains(args.corpus, num_chains=args.chains)
    else:
        chains = make_chains(num_chains=args.chains, num_chars=args.chars)
    rendering, tokenizing, num_megabytes, num_tokens = [], [], 0.0, 0
    # The first turn loads the bank and fills the tokenizer's cache of words; it is not counted.
    for turn in range(args.turns + 1):
        # A seed of its own for each turn, so that no turn repeats the styles of another.
        render_seconds, texts = cpu_seconds(partial(render_all, chains, seed=turn))
        tokenize_seconds, encodings = cpu_seconds(partial(tokenizer.encode_batch_fast, texts, add_special_tokens=False))
        num_megabytes = sum(len(text.encode()) for text in texts) / 1e6
        num_tokens = sum(len(encoding.ids) for encoding in encodings)
        if turn:
            rendering.append(render_seconds)
            tokenizing.append(tokenize_seconds)

    ratio = statistics.median(a / b for a, b in zip(rendering, tokenizing, strict=True))
    num_texts = sum(len(chain.examples) for chain in chains)
    num_pairs = sum(len(example.pairs) for chain in chains for example in chain.examples)
    print(
        f"{len(chains)} chains, {num_texts} texts, {num_pairs} pairs, {num_megabytes:.2f} MB, {num_tokens} tokens, "
        f"{args.turns} turns"
    )
    print(f"rendering   {num_megabytes / statistics.median(rendering):8.2f} MB/s")
    print(f"tokenizing  {num_megabytes / statistics.median(tokenizing):8.2f} MB/s")
    print(f"ratio       {ratio:8.1%} of tokenizing time; at most {MAX_RATIO:.0%} is allowed")
    if ratio > MAX_RATIO:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
