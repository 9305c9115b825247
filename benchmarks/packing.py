"""How fast ``pack`` is next to the tokenizer alone, its memory, how both grow, and how well rows are filled.

``python -m benchmarks.packing TOKENIZER_FOLDER --corpus FOLDER`` makes raw text of ``--megabytes`` out of the documents
of a folder of ``.jsonl`` and ``.jsonl.gz`` files, taken in turn from each file and again from the beginning where they
do not suffice; with ``--characters`` cut at paragraph ends into texts of about so many. Then, ``--turns`` times one
after the other, each in a process of its own with two cores:

- *threads*: ``encode_batch_fast`` on batches of 1 MB with two threads of the library's own, the answer thrown away;
- *processes*: the same in two processes of one thread, each with half of the batches;
- *pack*: the whole job as users call it, from reading JSON Lines to ``COMPLETED``; without loading the tokenizer, which
  the other two do before the clock starts, and which is shown beside it. ``--runner`` names the runner;
- *datatrove*, where ``--datatrove-python`` names the Python of an environment that has it (``python -m venv DIR`` and
  ``DIR/bin/pip install 'datatrove[io,processing]'``): ``JsonlReader`` and ``DocumentTokenizer`` with two tasks on two
  workers, each with half of the texts, imports not counted. It neither packs nor mixes.

The tokenizer's limit is the faster of the first two, and pack is held against the mean of the limits before and behind
it. Beside the ratio of times stands that of CPU time: what pack adds to tokenizing, on a machine however busy. Memory
is the largest sum of the resident memory of the process and those that it started, sampled every 20 ms; pages that
processes share count in each.

``--chains`` packs an augmented corpus instead, chains of three of these texts with pairs made of their words; the limit
is then that of the rendered texts. ``--growth`` packs ten times the text as well, into ten times as many shards, since
memory follows from what a shard holds. ``--quality`` packs the lengths of these documents, and of their paragraphs, by
either strategy into rows of 512 to 8192 tokens.

Cost: about four times the time of tokenizing the text a turn; with ``--growth`` ten times that of packing it once.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH_BYTES = 1 << 20
NUM_CORES = 2
MIN_RATIO = 0.90
SHARD_MEGABYTES = 24
CHAIN_LENGTH = 3
MAX_MEGABYTES = 600

_DATATROVE = """
import json, sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    folder, tokenizer, output, eos = sys.argv[1:]
    executor = LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder),
            DocumentTokenizer(output, tokenizer, eos_token=eos, seed=0, batch_size=100, shuffle_documents=True),
        ],
        tasks=2, workers=2, logging_dir=output + "/logs",
    )
    start = time.perf_counter()
    executor.run()
    print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def documents(folder: str) -> Iterator[dict[str, str]]:
    """The documents of all files in turn, again and again with ids of their own."""
    paths = sorted(path for path in Path(folder).iterdir() if path.name.endswith((".jsonl", ".jsonl.gz")))
    if not paths:
        raise SystemExit(f"{folder} holds no file that ends in .jsonl or .jsonl.gz.")
    for number in itertools.count():
        for records in itertools.zip_longest(*map(records_of, paths)):
            for record in records:
                if record is not None:
                    yield {"id": f"{record.get('id', '')}#{number}", "text": record["text"]}


def records_of(path: Path) -> Iterator[dict[str, str]]:
    """The records of a file of JSON Lines."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def passages(document: dict[str, str], *, num_characters: int | None) -> Iterator[dict[str, str]]:
    """A document cut at paragraph ends into texts of about so many characters; None leaves it whole."""
    if num_characters is None:
        yield document
        return
    text = ""
    for number, paragraph in enumerate(document["text"].split("\n\n")):
        text += paragraph + "\n\n"
        if len(text) >= num_characters:
            yield {"id": f"{document['id']}/{number}", "text": text}
            text = ""
    if text.strip():
        yield {"id": f"{document['id']}/end", "text": text}


def write_corpus(folder: str, corpus: str, *, megabytes: float, num_characters: int | None) -> None:
    """Two files of JSON Lines with as much text in all."""
    os.makedirs(folder)
    with contextlib.ExitStack() as stack:
        paths = [f"{folder}/{number}.jsonl" for number in range(NUM_CORES)]
        files = [stack.enter_context(open(path, "w", encoding="utf-8")) for path in paths]
        num_bytes = 0
        texts = (text for document in documents(corpus) for text in passages(document, num_characters=num_characters))
        for number, document in enumerate(texts):
            files[number % NUM_CORES].write(json.dumps(document, ensure_ascii=False) + "\n")
            num_bytes += len(document["text"].encode())
            if num_bytes >= megabytes * 1e6:
                return


def write_chains(folder: str, tokenizer: str) -> dict[str, float]:
    """Makes an augmented corpus of a folder's texts, ``FOLDER-chains``, and ``FOLDER-rendered``: what it renders to."""
    from benchmarks.rendering import pairs_about
    from contracts.accounting import augmented_corpus_manifest, report_chains
    from contracts.manifest import complete_artifact
    from contracts.parquet_files import part_name, write_parquet
    from contracts.records import Chain, Document, Example
    from contracts.schemas import chains_to_table
    from templates import render_chain

    reports = []
    os.makedirs(f"{folder}-rendered")
    paths = sorted(Path(folder).iterdir())
    for index, path in enumerate(paths):
        examples = []
        for record in records_of(path):
            document = Document(doc_id=record["id"], source="raw", text=record["text"])
            has_words = sum(word.isalpha() for word in set(document.text.split())) >= 4
            examples.append(Example(document=document, pairs=pairs_about(document.text) if has_words else ()))
        chains = [
            Chain(
                chain_id=examples[start].document.doc_id,
                source="raw",
                examples=tuple(examples[start : start + CHAIN_LENGTH]),
                synthesizer_id="benchmark",
            )
            for start in range(0, len(examples), CHAIN_LENGTH)
        ]
        part = part_name("part", index=index, count=len(paths))
        entry = write_parquet(f"{folder}-chains", path=part, table=chains_to_table(chains))
        reports.append(report_chains(entry, chains))
        with open(f"{folder}-rendered/{path.name}", "w", encoding="utf-8") as file:
            for chain in chains:
                file.write(json.dumps({"text": render_chain(chain, seed=0).text}, ensure_ascii=False) + "\n")
    manifest = augmented_corpus_manifest(
        num_records=sum(report.num_augmented + report.num_kept_raw for report in reports),
        documents_by_num_parts={},
        chains=reports,
        rejects=[],
        synthesizer_id="benchmark",
        inputs={},
        config={},
    )
    complete_artifact(f"{folder}-chains", manifest)
    return {"num_chains": sum(report.entry.num_rows for report in reports)}


def batches(folder: str) -> list[list[str]]:
    """The texts in batches of `BATCH_BYTES`."""
    found: list[list[str]] = [[]]
    num_bytes = 0
    for path in sorted(Path(folder).iterdir()):
        for line in path.open(encoding="utf-8"):
            text = json.loads(line)["text"]
            found[-1].append(text)
            num_bytes += len(text.encode())
            if num_bytes >= BATCH_BYTES:
                found.append([])
                num_bytes = 0
    return found


def cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """CPU time of all threads of this process, or of its children that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def tokenize_with_threads(folder: str, tokenizer: str) -> dict[str, float]:
    """Seconds and tokens of the tokenizer alone, with its own threads."""
    os.environ.update(TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=str(NUM_CORES))
    from tokenizers import Tokenizer

    loaded, all_batches = Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), batches(folder)
    loaded.encode_batch_fast(all_batches[0][:2], add_special_tokens=False)
    num_tokens = 0
    start, cpu_start = time.perf_counter(), cpu_seconds()
    for batch in all_batches:
        num_tokens += sum(map(len, loaded.encode_batch_fast(batch, add_special_tokens=False)))
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": cpu_seconds() - cpu_start,
        "num_tokens": num_tokens,
    }


def tokenize_with_processes(folder: str, tokenizer: str) -> dict[str, float]:
    """Seconds of the tokenizer alone in two processes of one thread each."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    loaded, all_batches = Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), batches(folder)
    start = time.perf_counter()
    children = []
    for number in range(NUM_CORES):
        child = os.fork()
        if not child:
            for batch in all_batches[number::NUM_CORES]:
                loaded.encode_batch_fast(batch, add_special_tokens=False)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds(resource.RUSAGE_CHILDREN)}


def pack_all(folder: str, tokenizer: str, *, runner: str, num_shards: int | None) -> dict[str, float]:
    """Seconds of packing, and of loading the tokenizer, which are not part of them."""
    from rich.console import Console

    from beam_pipelines import pack
    from beam_pipelines.command_line import beam_options
    from beam_pipelines.mixing import ComponentConfig

    loading = 0.0
    load_tokenizer = vars(pack)["load_tokenizer"]

    def timed(*args: Any, **settings: Any) -> Any:
        nonlocal loading
        begin = time.perf_counter()
        loaded = load_tokenizer(*args, **settings)
        loading = time.perf_counter() - begin
        return loaded

    vars(pack)["load_tokenizer"] = timed
    is_corpus = Path(folder, "manifest.json").exists()
    with tempfile.TemporaryDirectory() as output:
        config = pack.PackConfig(
            components=[ComponentConfig(name="raw", kind="chains" if is_corpus else "documents", input=[folder])],
            output=output,
            tokenizer=tokenizer,
            num_shards=num_shards,
        )
        # The tokenizer is loaded by a process of its own, whose CPU time is not this one's.
        start, cpu_start = time.perf_counter(), cpu_seconds()
        manifest = pack.pack(config, options=beam_options([f"--runner={runner}"]), console=Console(quiet=True))
        seconds = time.perf_counter() - start - loading
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu_start,
        "loading": loading,
        "num_tokens": manifest.num_tokens("train"),
    }


_WORK: dict[str, Callable[..., dict[str, float]]] = {
    "threads": tokenize_with_threads,
    "processes": tokenize_with_processes,
    "write_chains": write_chains,
    "pack": pack_all,
}


def measure(command: list[str]) -> dict[str, float]:
    """Runs a command that prints JSON in its last line, and adds the most memory that it and its children held."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        peak = 0.0
        done = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, resident_megabytes(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        output, _ = process.communicate()
        done.set()
        sampler.join()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command[:4])}: status {process.returncode}\n{errors.read()[-2000:]}")
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return {**result, "megabytes": peak}


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process and of all that it started, in 10^6 bytes."""
    try:
        num_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            int(child)
            for path in Path(f"/proc/{pid}/task").iterdir()
            for child in (path / "children").read_text().split()
        ]
    except OSError:
        return 0.0
    return num_pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(map(resident_megabytes, children))


def in_a_process(work: str, folder: str, tokenizer: str, *options: str) -> dict[str, float]:
    """One piece of work of this program."""
    return measure(
        [sys.executable, "-m", "benchmarks.packing", tokenizer, "--work", work, "--folder", folder, *options]
    )


def with_datatrove(python: str, folder: str, tokenizer: str) -> dict[str, float]:
    """The same text through datatrove."""
    with open(f"{tokenizer}/tokenizer_config.json", encoding="utf-8") as file:
        eos = json.load(file)["eos_token"]
    with tempfile.TemporaryDirectory() as output:
        program = Path(output, "program.py")
        program.write_text(_DATATROVE)
        eos = eos if isinstance(eos, str) else eos["content"]
        return measure([python, str(program), folder, f"{tokenizer}/tokenizer.json", f"{output}/out", eos])


def tokenizer_limit(folder: str, tokenizer: str) -> dict[str, float]:
    """Seconds, CPU time and tokens of the tokenizer alone on two cores: the faster of threads and processes."""
    threads = in_a_process("threads", folder, tokenizer)
    processes = in_a_process("processes", folder, tokenizer)
    return {**threads, **{name: min(threads[name], processes[name]) for name in ("seconds", "cpu_seconds")}}


def compare(folder: str, *, packed_folder: str, args: argparse.Namespace) -> None:
    """Prints the times of each turn and the medians of the ratios.

    Args:
        folder: The texts.
        packed_folder: What is packed: these texts, or a corpus that they are rendered from.
        args: The command line.
    """
    ratios, cpu_ratios, datatrove_ratios, megabytes = [], [], [], []
    print("turn  limit before, after  Mtok/s     pack  pack/limit  CPU ratio  loading     MB  datatrove  /limit")
    before = tokenizer_limit(folder, args.tokenizer)
    for turn in range(args.turns):
        packed = in_a_process("pack", packed_folder, args.tokenizer, "--runner", args.runner)
        after = tokenizer_limit(folder, args.tokenizer)
        # The machine may be slower at one time than at another; what was measured on either side stands for the time.
        seconds = (before["seconds"] + after["seconds"]) / 2
        ratios.append(seconds / packed["seconds"])
        cpu_ratios.append((before["cpu_seconds"] + after["cpu_seconds"]) / 2 / packed["cpu_seconds"])
        megabytes.append(packed["megabytes"])
        line = (
            f"{turn:4}  {before['seconds']:11.2f}s  {after['seconds']:5.2f}s  "
            f"{after['num_tokens'] / seconds / 1e6:6.2f}  {packed['seconds']:6.2f}s  {ratios[-1]:10.3f}  "
            f"{cpu_ratios[-1]:9.3f}  {packed['loading']:6.2f}s  {packed['megabytes']:5.0f}"
        )
        if args.datatrove_python:
            other = with_datatrove(args.datatrove_python, folder, args.tokenizer)
            datatrove_ratios.append(seconds / other["seconds"])
            line += f"  {other['seconds']:8.2f}s  {datatrove_ratios[-1]:6.3f}"
        print(line, flush=True)
        before = after
    print(
        f"pack {statistics.median(ratios):.3f} of the tokenizer's limit (at least {MIN_RATIO} is asked for), "
        f"{statistics.median(cpu_ratios):.3f} of its CPU time, {max(megabytes):.0f} MB (under {MAX_MEGABYTES})"
        + (f"; datatrove {statistics.median(datatrove_ratios):.3f}" if datatrove_ratios else "")
    )


def growth(small: str, large: str, *, args: argparse.Namespace) -> None:
    """Packs the text and ten times as much in turn, the small one before and after."""
    num_shards = max(1, round(args.megabytes / SHARD_MEGABYTES))
    before, grown, after = (
        in_a_process("pack", folder, args.tokenizer, "--runner", args.runner, "--num-shards", str(count))
        for folder, count in ((small, num_shards), (large, 10 * num_shards), (small, num_shards))
    )
    seconds = (before["seconds"] + after["seconds"]) / 2
    print(
        f"ten times the text: {grown['seconds']:.1f}s, {grown['seconds'] / seconds:.2f} times {seconds:.2f}s; "
        f"{grown['megabytes']:.0f} MB, {grown['megabytes'] / max(before['megabytes'], after['megabytes']):.2f} times"
    )


def quality(folder: str, *, tokenizer: str) -> None:
    """Prints padding and truncations of both strategies."""
    import numpy as np
    from tokenizers import Tokenizer

    from beam_pipelines.sequence_packing import pack_rows

    loaded = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    texts = list(itertools.chain.from_iterable(batches(folder)))
    paragraphs = [part for text in texts for part in text.split("\n\n") if part.strip()]
    print("texts        tokens/row  strategy     rows      padding  truncated texts  of those that fit a row  seconds")
    for name, members in (("documents", texts), ("paragraphs", paragraphs)):
        encodings = loaded.encode_batch_fast(members, add_special_tokens=False)
        lengths = np.array([len(encoding) + 1 for encoding in encodings], np.int64)
        for sequence_length in (512, 1024, 2048, 4096, 8192):
            for strategy in ("concatenate", "best_fit"):
                start = time.perf_counter()
                plan = pack_rows(lengths, sequence_length=sequence_length, strategy=strategy, long_texts="continue")
                seconds = time.perf_counter() - start
                num_long = int((lengths > sequence_length).sum())
                print(
                    f"{name:12} {sequence_length:10}  {strategy:11} {plan.num_rows:6}  "
                    f"{plan.num_padding_tokens / (plan.num_rows * sequence_length):9.4%}  "
                    f"{plan.num_truncations / len(lengths):15.2%}  "
                    f"{(plan.num_truncations - num_long) / len(lengths):23.2%}  {seconds:7.2f}"
                )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing")
    parser.add_argument("tokenizer", help="folder with tokenizer.json")
    parser.add_argument("--corpus", help="folder of JSON Lines files with text")
    parser.add_argument("--megabytes", type=float, default=48.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--characters", type=int, help="cut documents into texts of about so many characters")
    parser.add_argument("--chains", action="store_true", help="pack an augmented corpus of the texts")
    parser.add_argument("--runner", default="DirectRunner")
    parser.add_argument("--growth", action="store_true", help="pack ten times the text as well")
    parser.add_argument("--quality", action="store_true", help="show how well rows are filled")
    parser.add_argument("--datatrove-python", help="Python of an environment with datatrove")
    parser.add_argument("--work", choices=sorted(_WORK), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--num-shards", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        settings = {"runner": args.runner, "num_shards": args.num_shards} if args.work == "pack" else {}
        print(json.dumps(_WORK[args.work](args.folder, args.tokenizer, **settings)))
        return
    if not args.corpus:
        parser.error("--corpus is needed")
    with tempfile.TemporaryDirectory() as folder:
        small, large = f"{folder}/small", f"{folder}/large"
        write_corpus(small, args.corpus, megabytes=args.megabytes, num_characters=args.characters)
        if args.turns and args.chains:
            in_a_process("write_chains", small, args.tokenizer)
            compare(f"{small}-rendered", packed_folder=f"{small}-chains", args=args)
        elif args.turns:
            compare(small, packed_folder=small, args=args)
        if args.growth:
            write_corpus(large, args.corpus, megabytes=10 * args.megabytes, num_characters=args.characters)
            growth(small, large, args=args)
        if args.quality:
            quality(small, tokenizer=args.tokenizer)


if __name__ == "__main__":
    main()
