"""What a synthesis costs beside the model: Beam's share, starting again, growth with the corpus, padding.

``python -m benchmarks.synthesis`` runs whole syntheses, each in a process of its own, on FnApiRunner (or what
``--runner`` names), and prints four tables:

1. *Beam's share*, with the quickstart's model (``--model``, left out where it is absent) on passages of Python's own
   manual: the time of ``synthesize`` that is not spent in the engine's ``generate``, loading the model apart; how much
   of it comes before the first prompt is told, since that does not grow with the corpus.
2. *Starting again*, with the fake engine taking a set time a prompt: a whole run, then one that is killed at 90 % and
   started again. The overhead is what the second start takes beyond a tenth of the whole run, as a share of the whole.
   Prompts that were done when the process was killed and are asked for again are counted.
3. *Growth*, with the fake engine taking no time: N documents and ten times N in files of one size, two turns: the
   ratio of the times less the time of an empty corpus of one document, and the peak memory of the process tree.
   FnApiRunner and Prism keep all elements of a stage in memory between two stages, so memory a document is told beside
   what a runner alone takes to shuffle the same bytes once.
4. *Batches* over 3,000 lengths from 50 to 900 tokens: padding and fill by how many batches' worth are sorted together.

Cost: about eight minutes on 2 cores, most of it the model; two with ``--quick``. Not measured here: the engines
(``benchmarks/generation.py``), clusters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from contracts.seeding import rng
from synth_model.engines import EngineConfig, load_engine
from synth_model.engines.fake_engine import FakeOptions
from synth_model.generation import Outcome, Prompt, Sampling

WORDS = ("river", "stone", "engine", "paper", "winter", "garden", "signal", "copper", "market", "letter", "shadow")
WORDS_A_DOCUMENT = 150


class TimedEngine:
    """An engine, and how long it was asked in all."""

    def __init__(self, config: EngineConfig) -> None:
        started = time.monotonic()
        self._engine = load_engine(config)
        self.load_seconds = time.monotonic() - started
        self.first_asked = float("inf")
        self.seconds = 0.0
        self.num_prompts = 0

    def generate(self, prompts: list[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """What the engine says."""
        started = time.monotonic()
        self.first_asked = min(self.first_asked, started)
        outcomes = self._engine.generate(prompts, sampling=sampling)
        self.seconds += time.monotonic() - started
        self.num_prompts += len(prompts)
        return outcomes


@dataclass(kw_only=True)
class Run:
    """A run in a process of its own; times in seconds (wall and CPU of its process), memory in bytes."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    engine_seconds: float = 0.0
    load_seconds: float = 0.0
    start_seconds: float = 0.0
    num_prompts: int = 0
    peak_bytes: int = 0


def in_a_process(work: Callable[..., dict[str, Any]], *args: Any, until: Callable[[], bool] | None = None) -> Run:
    """Runs ``work`` in a new process, which is killed once ``until`` says so, and watches its memory."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_report, args=(results, work, args))
    process.start()
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, _tree_bytes(process.pid or 0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    while process.is_alive() and not (until is not None and until()):
        process.join(0.01)
    if process.is_alive():
        process.kill()
    process.join()
    done.set()
    watcher.join()
    if until is None and process.exitcode:
        raise RuntimeError(f"the run ended with status {process.exitcode}")
    return Run(peak_bytes=peak, **(results.get() if until is None else {}))


def _report(results: Any, work: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    results.put(work(*args))


def _tree_bytes(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        return sum(part.memory_info().rss for part in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def synthesize_once(settings: dict[str, Any], beam_arguments: list[str]) -> dict[str, Any]:
    """A whole synthesis, as the command does it."""
    from rich.console import Console

    from beam_pipelines import model_handler
    from beam_pipelines.command_line import beam_options
    from beam_pipelines.commands import _quiet_libraries
    from beam_pipelines.synthesize import SynthesizeConfig, synthesize

    _quiet_libraries()
    engines: list[TimedEngine] = []

    def load(config: EngineConfig) -> TimedEngine:
        engines.append(TimedEngine(config))
        return engines[-1]

    model_handler.load_engine = load  # type: ignore[assignment]
    started, cpu_started = time.monotonic(), time.process_time()
    synthesize(SynthesizeConfig(**settings), options=beam_options(beam_arguments), console=Console(quiet=True))
    seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_started,
        "engine_seconds": sum(engine.seconds for engine in engines),
        "load_seconds": sum(engine.load_seconds for engine in engines),
        "start_seconds": min((engine.first_asked for engine in engines), default=started) - started,
        "num_prompts": sum(engine.num_prompts for engine in engines),
    }


def shuffle_once(pattern: str, beam_arguments: list[str]) -> dict[str, Any]:
    """What the runner itself takes: the same lines, read, shuffled and counted."""
    import apache_beam as beam

    from beam_pipelines.command_line import beam_options
    from beam_pipelines.commands import _quiet_libraries
    from contracts.storage import find_input_files, open_input

    def lines(url: str) -> list[bytes]:
        with open_input(url) as file:
            return list(file)

    _quiet_libraries()
    started = time.monotonic()
    urls = [file.url for file in find_input_files([pattern], suffixes=(".jsonl",))]
    with beam.Pipeline(options=beam_options(beam_arguments)) as pipeline:
        _ = pipeline | beam.Create(urls) | beam.FlatMap(lines) | beam.Reshuffle() | beam.combiners.Count.Globally()
    return {"seconds": time.monotonic() - started}


def write_corpus(folder: str, *, num_documents: int, documents_a_file: int = 500) -> str:
    """Documents of random words, as many a file whatever their number."""
    os.makedirs(folder)
    for start in range(0, num_documents, documents_a_file):
        draw = rng(0, "corpus", str(start))
        with open(os.path.join(folder, f"{start:09d}.jsonl"), "w", encoding="utf-8") as file:
            for number in range(start, min(start + documents_a_file, num_documents)):
                words = [WORDS[index] for index in draw.integers(len(WORDS), size=WORDS_A_DOCUMENT)]
                file.write(json.dumps({"id": str(number), "source": "web", "text": " ".join(words) + "."}) + "\n")
    return folder


def fake_settings(corpus: str, output: str, *, num_documents: int, seconds_per_prompt: float = 0.0) -> dict[str, Any]:
    return {
        "input": [corpus],
        "output": output,
        "chain_length": 2,
        # A file is held in memory while it is written, so there are the more of them the larger the corpus.
        "num_files": max(1, num_documents // 500),
        "engine": EngineConfig(kind="fake", fake=FakeOptions(seconds_per_prompt=seconds_per_prompt)),
    }


def measure_share(folder: str, *, model: str, num_documents: int, beam_arguments: list[str]) -> None:
    from beam_pipelines import example_corpus
    from synth_model.synthesizer import SynthesizerConfig

    corpus = os.path.join(folder, "manual.jsonl")
    example_corpus.main(example_corpus.ExampleCorpusConfig(output=corpus, max_documents=num_documents))
    settings = {
        "input": [corpus],
        "output": os.path.join(folder, "share"),
        "chain_length": 2,
        "engine": EngineConfig(model=model, device="cpu"),
        "synthesizer": SynthesizerConfig(kind="chat"),
        "sampling": Sampling(max_new_tokens=104, frequency_penalty=0.1),
    }
    run = in_a_process(synthesize_once, settings, beam_arguments)
    start = run.start_seconds - run.load_seconds
    rest = run.seconds - run.engine_seconds - run.load_seconds
    print(f"\nBeam's share: {run.num_prompts} prompts, {os.path.basename(model)}, CPU")
    print(f"whole run                  {run.seconds:9.1f} s")
    print(f"in the engine              {run.engine_seconds:9.1f} s")
    print(f"loading the model          {run.load_seconds:9.1f} s")
    print(f"the rest                   {rest:9.1f} s  {rest / run.seconds:.1%} of the run (bound: 5 %)")
    print(f"  of it before any prompt  {start:9.1f} s  imports and the first steps; the same for any corpus")
    print(f"  of it later              {rest - start:9.1f} s  {(rest - start) / run.seconds:.1%} of the run")


def measure_resume(folder: str, *, num_documents: int, seconds_per_prompt: float, beam_arguments: list[str]) -> None:
    from beam_pipelines import journal

    corpus = write_corpus(os.path.join(folder, "resume-corpus"), num_documents=num_documents)

    def settings(output: str) -> dict[str, Any]:
        return fake_settings(corpus, output, num_documents=num_documents, seconds_per_prompt=seconds_per_prompt)

    whole = in_a_process(synthesize_once, settings(os.path.join(folder, "whole")), beam_arguments)
    cut = os.path.join(folder, "cut")
    in_a_process(
        synthesize_once,
        settings(cut),
        beam_arguments,
        until=lambda: journal.read_progress(cut).num_done >= 0.9 * num_documents,
    )
    num_kept = journal.read_progress(cut).num_done
    again = in_a_process(synthesize_once, settings(cut), beam_arguments)
    missing_seconds = whole.seconds * (1 - num_kept / num_documents)
    overhead = again.seconds - missing_seconds
    print(f"\nStarting again: {num_documents} documents, fake engine at {1e3 * seconds_per_prompt:g} ms a prompt")
    print(f"whole run                  {whole.seconds:9.1f} s, {whole.engine_seconds:.1f} s of it in the engine")
    print(f"kept by the kill           {num_kept:9} completions, {num_kept / num_documents:.1%}")
    print(f"second start               {again.seconds:9.1f} s, {again.engine_seconds:.1f} s of it in the engine")
    print(f"asked for once more        {again.num_prompts - (num_documents - num_kept):9} prompts that were durable")
    print(f"overhead                   {overhead:9.1f} s  {overhead / whole.seconds:.1%} of a whole run (bound: 5 %)")


def measure_growth(folder: str, *, num_documents: int, num_turns: int, beam_arguments: list[str]) -> None:
    sizes = (1, num_documents, 10 * num_documents)
    corpora = {size: write_corpus(os.path.join(folder, f"corpus-{size}"), num_documents=size) for size in sizes}
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    for turn in range(num_turns):
        for size in sizes:
            output = os.path.join(folder, f"grown-{size}-{turn}")
            settings = fake_settings(corpora[size], output, num_documents=size)
            runs[size].append(in_a_process(synthesize_once, settings, beam_arguments))
            shutil.rmtree(output)
    bare = {size: in_a_process(shuffle_once, corpora[size], beam_arguments) for size in sizes}
    seconds = {size: min(run.seconds for run in runs[size]) for size in sizes}
    cpu_seconds = {size: min(run.cpu_seconds for run in runs[size]) for size in sizes}
    peaks = {size: min(run.peak_bytes for run in runs[size]) for size in sizes}
    print(f"\nGrowth: fake engine, {WORDS_A_DOCUMENT} words a document, best of {num_turns} turns")
    print("documents      time  ms a document  peak memory  KB a document  runner alone, KB a document")
    for size in sizes:
        each = 1e3 * (seconds[size] - seconds[1]) / size
        memory, alone = (
            f"{(peak[size] - peak[1]) / size / 1e3:.1f}"
            for peak in (peaks, {size: run.peak_bytes for size, run in bare.items()})
        )
        print(f"{size:9} {seconds[size]:7.1f} s {each:14.2f} {peaks[size] / 1e6:9.0f} MB {memory:>14} {alone:>28}")
    ratio, cpu_ratio = ((taken[sizes[2]] - taken[1]) / (taken[sizes[1]] - taken[1]) for taken in (seconds, cpu_seconds))
    print(
        f"ten times the documents take {ratio:.2f} times the time, {cpu_ratio:.2f} times the CPU time (bound: 9 to 11)"
    )


def measure_batches() -> None:
    from beam_pipelines.prompt_batching import BatchBounds

    draw = rng(0, "lengths")
    prompts = [Prompt(text="x", num_tokens=int(draw.integers(50, 901))) for _ in range(3000)]
    print("\nBatches: 3,000 prompts of 50 to 900 tokens, 128 new; padding of prompts, fill, number of batches")
    print("batches sorted together   32 prompts, 32,768 tokens   32 prompts, 16,384 tokens")
    for sorted_batches in (0, 1, 2, 4, 8, 16):
        cells = []
        for max_tokens in (32768, 16384):
            bounds = BatchBounds(max_prompts=32, max_tokens=max_tokens, num_new_tokens=128, is_padded=True)
            limit = bounds.gathered_weight(sorted_batches=sorted_batches)
            groups: list[list[Prompt]] = [[]]
            weight = 0
            for prompt in prompts:
                # Without sorting, batches are made by count, as they come.
                is_full = weight + bounds.weight(prompt) > limit if sorted_batches else len(groups[-1]) == 32
                if is_full:
                    groups.append([])
                    weight = 0
                groups[-1].append(prompt)
                weight += bounds.weight(prompt)
            batches = [[group[index] for index in batch] for group in groups for batch in bounds.cut(group)]
            num_padded = sum(len(batch) * max(prompt.num_tokens or 0 for prompt in batch) for batch in batches)
            padding = 1 - sum(prompt.num_tokens or 0 for prompt in prompts) / num_padded
            fill = sum(map(bounds.fill, batches)) / len(batches)
            cells.append(f"{padding:6.0%} {fill:7.0%} {len(batches):10}")
        name = str(sorted_batches) if sorted_batches else "order of arrival"
        print(f"{name:>23}   {cells[0]}   {cells[1]}")


def main() -> None:
    """Measures all four."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthesis")
    parser.add_argument("--model", default=".cache/models/smollm2-135m-instruct", help="folder or hub name")
    parser.add_argument("--runner", default="FnApiRunner", help="a runner on this machine")
    parser.add_argument("--quick", action="store_true", help="fewer documents; the overheads weigh more")
    parser.add_argument("--only", choices=("share", "resume", "growth", "batches"), help="one of the four")
    args, beam_arguments = parser.parse_known_args()
    beam_arguments = [f"--runner={args.runner}", *beam_arguments]
    with tempfile.TemporaryDirectory() as folder:
        if args.only in (None, "batches"):
            measure_batches()
        if args.only in (None, "growth"):
            measure_growth(
                folder,
                num_documents=300 if args.quick else 1000,
                num_turns=1 if args.quick else 2,
                beam_arguments=beam_arguments,
            )
        if args.only in (None, "resume"):
            measure_resume(
                folder,
                num_documents=500 if args.quick else 2000,
                seconds_per_prompt=0.05,
                beam_arguments=beam_arguments,
            )
        if args.only == "share" or (args.only is None and os.path.isdir(args.model)):
            measure_share(
                folder, model=args.model, num_documents=16 if args.quick else 64, beam_arguments=beam_arguments
            )


if __name__ == "__main__":
    main()
