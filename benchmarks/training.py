"""How fast training is next to the Trainer of transformers, on the CPU, and what of a step goes to reading rows.

``python -m benchmarks.training [--model FOLDER]`` packs the passages of the Python language reference, which Python
carries, into rows of ``--sequence_length`` tokens with the tokenizer of the model, and trains on the same shards

- a *small* model, a preset with other sizes, drawn at random;
- the model in ``--model`` (SmolLM2-135M where the quickstart has left it); ``--no_model`` leaves it out.

Both trainers do the same in the same precision (float32): AdamW, fused, with clipping and a cosine schedule, rows of
the same length and as many of them a step, in micro-batches with accumulation, a log entry a step, no validation, no
saving. They take turns, ``--turns`` times, each in a process of its own with all cores:

- *ours*, *transformers*: as they are;
- *ours, compiled*: ``model.compile: default``; with ``--compile_both`` the other one with ``torch_compile=True`` too.

The rate is the tokens of a step over the median time from the end of one step to the end of the next, so that it has
everything in it that happens between steps; the first ``--warmup_steps`` steps, which compile and fill caches, are left
out. Memory is the most that the process ever had resident. The loader's share is what the steps waited for rows, from
our own log. What is asked: at least 1.0 of the rate of transformers, 1.1 compiled.

Cost: with the defaults about seven minutes on two cores that have nothing else to do; with other work beside it many
times that, and figures that mean nothing, since all threads wait for the slowest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMOLLM2 = ".cache/models/smollm2-135m-instruct"
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LEARNING_RATE = 1e-4
MIN_RATIO, MIN_RATIO_COMPILED = 1.0, 1.1


def write_shards(folder: str, *, tokenizer: str, sequence_length: int) -> str:
    """Shards of the passages that Python carries; returns their folder."""
    from rich.console import Console

    from beam_pipelines import pack
    from beam_pipelines.command_line import beam_options
    from beam_pipelines.example_corpus import ExampleCorpusConfig, write_example_corpus
    from beam_pipelines.mixing import ComponentConfig

    corpus, shards = f"{folder}/corpus.jsonl", f"{folder}/shards"
    write_example_corpus(ExampleCorpusConfig(output=corpus))
    config = pack.PackConfig(
        components=[ComponentConfig(name="raw", kind="documents", input=[corpus])],
        output=shards,
        tokenizer=tokenizer,
        sequence_length=sequence_length,
    )
    pack.pack(config, options=beam_options([]), console=Console(quiet=True))
    return shards


def train_ours(settings: dict[str, Any]) -> dict[str, float]:
    """Trains with this project's command; the times of its steps."""
    from trainer import metrics_log, pretrain

    ends: list[float] = []
    append = metrics_log.MetricsLog.append

    def timed(self: Any, record: Any) -> None:
        append(self, record)
        ends.append(time.perf_counter())

    vars_of_class: Any = metrics_log.MetricsLog
    vars_of_class.append = timed
    model = (
        ["--model.init", "scratch", "--model.preset", "tiny", "--model.config_overrides", json.dumps(SMALL)]
        if settings["model"] is None
        else ["--model.init", "continual", "--model.name_or_path", settings["model"]]
    )
    with tempfile.TemporaryDirectory() as output:
        status = pretrain.main(
            [
                *("--shards", settings["shards"], "--output", output, "--device", "cpu"),
                *("--max_steps", str(settings["num_steps"]), "--optimizer.learning_rate", str(LEARNING_RATE)),
                *("--batch.rows_per_step", str(settings["rows_per_step"])),
                *("--batch.micro_batch_rows", str(settings["micro_batch_rows"])),
                *("--validation.at_start", "false", "--validation.at_end", "false"),
                *("--checkpoint.every_steps", "null"),
                *("--model.compile", "default" if settings["is_compiled"] else "none"),
                *model,
            ]
        )
        if status:
            raise SystemExit(f"training ended with status {status}")
        log = [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]
    num_warmup = settings["num_warmup_steps"]
    seconds = log[-1]["seconds"] - log[num_warmup - 1]["seconds"]
    waited = sum(record["data_seconds"] for record in log[num_warmup:])
    return {"seconds": median_step(ends, settings), "loader_share": waited / seconds, "loss": log[-1]["loss"]}


def train_with_transformers(settings: dict[str, Any]) -> dict[str, float]:
    """Trains with the Trainer of transformers on the rows of the same shards."""
    import numpy as np
    import pyarrow.dataset
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig, Trainer, TrainerCallback, TrainingArguments

    from contracts.manifest import read_shard_manifest

    manifest = read_shard_manifest(settings["shards"])
    files = [f"{settings['shards']}/{shard.path}" for shard in manifest.shards_of("train")]
    column = pyarrow.dataset.dataset(files).to_table(columns=["input_ids"])["input_ids"].combine_chunks()
    ids = column.values.to_numpy().astype(np.int64).reshape(-1, manifest.sequence_length)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(ids)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            row = torch.from_numpy(ids[index])
            return {"input_ids": row, "labels": row}

    torch.manual_seed(0)
    if settings["model"] is None:
        config = MistralConfig(
            **SMALL, vocab_size=manifest.vocab_size, max_position_embeddings=2048, sliding_window=None
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                ends.append(time.perf_counter())
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            max_steps=settings["num_steps"],
            per_device_train_batch_size=settings["micro_batch_rows"],
            gradient_accumulation_steps=settings["rows_per_step"] // settings["micro_batch_rows"],
            learning_rate=LEARNING_RATE,
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            lr_scheduler_type="cosine",
            torch_compile=settings["is_compiled"],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            eval_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    return {"seconds": median_step(ends, settings), "loss": losses[-1]}


def median_step(ends: list[float], settings: dict[str, Any]) -> float:
    """The median seconds of a step after the warm-up, from the ends of all steps."""
    if len(ends) != settings["num_steps"]:
        raise SystemExit(f"{len(ends)} steps were logged, not {settings['num_steps']}")
    ends = ends[settings["num_warmup_steps"] - 1 :]
    return statistics.median(end - start for start, end in itertools.pairwise(ends))


_TRAINERS = {"ours": train_ours, "transformers": train_with_transformers}


def in_a_process(trainer: str, settings: dict[str, Any], *, cache: str) -> dict[str, float]:
    """One training of this program in a process of its own."""
    num_cores = str(len(os.sched_getaffinity(0)))
    environment = {**os.environ, "OMP_NUM_THREADS": num_cores, "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-m", "benchmarks.training", "--trainer", trainer, "--settings", json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{trainer}: status {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(name: str, settings: dict[str, Any], *, args: argparse.Namespace, cache: str) -> list[str]:
    """The lines of the table for one model."""
    kinds = [("ours", False), ("transformers", False)]
    if not args.no_compile:
        kinds += [("ours", True)] + ([("transformers", True)] if args.compile_both else [])
    found: dict[tuple[str, bool], list[dict[str, float]]] = {kind: [] for kind in kinds}
    for turn in range(args.turns):
        # Every other turn the other way round, so that what slows down over time slows down both.
        for kind in kinds if turn % 2 == 0 else reversed(kinds):
            trainer, is_compiled = kind
            found[kind].append(in_a_process(trainer, {**settings, "is_compiled": is_compiled}, cache=cache))
            print(f"{name}, turn {turn}: {kind}: {found[kind][-1]}", file=sys.stderr, flush=True)
    num_tokens = settings["rows_per_step"] * args.sequence_length
    plain = [result["seconds"] for result in found["transformers", False]]
    lines = []
    for (trainer, is_compiled), results in found.items():
        ratios = [other / result["seconds"] for other, result in zip(plain, results, strict=True)]
        shares = [result["loader_share"] for result in results if "loader_share" in result]
        wanted = {("ours", False): MIN_RATIO, ("ours", True): MIN_RATIO_COMPILED}.get((trainer, is_compiled))
        cells = [
            name,
            trainer + (", compiled" if is_compiled else ""),
            f"{num_tokens / statistics.median(result['seconds'] for result in results):.0f}",
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.3f} to {max(ratios):.3f}",
            "" if wanted is None else f"{wanted:.1f}",
            f"{statistics.median(shares):.3%}" if shares else "",
            f"{max(result['megabytes'] for result in results):.0f}",
            f"{results[0]['loss']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("--model", default=SMOLLM2, help="folder of a model and its tokenizer")
    parser.add_argument("--no_model", action="store_true", help="only the small model; --model lends its tokenizer")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of the model; the small one takes 5 times")
    parser.add_argument("--warmup_steps", type=int, default=2)
    parser.add_argument("--sequence_length", type=int, default=256)
    parser.add_argument("--rows_per_step", type=int, default=2)
    parser.add_argument("--micro_batch_rows", type=int, default=1)
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument(
        "--compile_both", action="store_true", help="compile with transformers too, which takes minutes"
    )
    parser.add_argument("--trainer", choices=sorted(_TRAINERS), help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trainer:
        result = _TRAINERS[args.trainer](args.settings)
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**result, "megabytes": megabytes}))
        return
    if args.rows_per_step % args.micro_batch_rows:
        parser.error("--rows_per_step must be a multiple of --micro_batch_rows")
    if args.turns < 1 or args.steps < 1 or args.warmup_steps < 1:
        parser.error("--turns, --steps and --warmup_steps must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        shared = {
            "shards": write_shards(folder, tokenizer=args.model, sequence_length=args.sequence_length),
            "rows_per_step": args.rows_per_step,
            "micro_batch_rows": args.micro_batch_rows,
            "num_warmup_steps": args.warmup_steps,
        }
        models = [("small", {**shared, "model": None, "num_steps": args.warmup_steps + 5 * args.steps})]
        if not args.no_model:
            settings = {**shared, "model": os.path.abspath(args.model), "num_steps": args.warmup_steps + args.steps}
            models.append((os.path.basename(os.path.normpath(args.model)), settings))
        lines = [
            line for name, settings in models for line in compare(name, settings, args=args, cache=f"{folder}/compiled")
        ]
    header = ["model", "trainer", "tok/s", "ratio", "in each turn", "asked", "waiting for rows", "MB", "last loss"]
    print(f"| {' | '.join(header)} |", "|" + " --- |" * len(header), *lines, sep="\n")


if __name__ == "__main__":
    main()
