"""What the options of a training step cost in time and memory: masks, checkpointing, chunks, Liger, torch.compile.

``python -m benchmarks.step_options [--model FOLDER] [--preset 500m] [--rows 4] [--sequence_length 512]`` trains on the
same rows of random tokens, three texts a row, with one option after the other:

- *plain*: the defaults;
- *document masks*, *checkpointing*, *chunks* (1024 tokens), *z-loss*, and checkpointing with chunks;
- *compiled*: layer by layer, as ``model.compile: default`` does it, and with document masks;
- *whole model compiled*: for comparison, ``torch.compile`` around the model and its loss;
- on a GPU, in bfloat16: *liger*, where it is installed, and *flash attention* with document masks.

Each option runs in a process of its own, all of them ``--turns`` times in turns. The time is the median of the steps
after the first two (forward, backward, clipping, update); what compiling takes is the time of the first step. Memory is
the peak of the tensors on a GPU, of the process on a CPU. Ratios are to *plain* in the same turn, medians over turns.
Without arguments: a model of 17M parameters with the vocabulary of SmolLM2, which is minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

CHUNK_TOKENS = 1024
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {"loss": {"kernel": "torch"}},
    "document masks": {"model": {"document_masks": True}, "loss": {"kernel": "torch"}},
    "checkpointing": {"batch": {"gradient_checkpointing": True}, "loss": {"kernel": "torch"}},
    "chunks": {"loss": {"kernel": "torch", "chunk_tokens": CHUNK_TOKENS}},
    "checkpointing and chunks": {
        "batch": {"gradient_checkpointing": True},
        "loss": {"kernel": "torch", "chunk_tokens": CHUNK_TOKENS},
    },
    "z-loss": {"loss": {"kernel": "torch", "z_loss": 1e-4}},
    "compiled": {"model": {"compile": "default"}, "loss": {"kernel": "torch"}},
    "compiled, document masks": {
        "model": {"compile": "default", "document_masks": True},
        "loss": {"kernel": "torch"},
    },
    "whole model compiled": {"loss": {"kernel": "torch"}},
}
GPU_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "liger": {"loss": {"kernel": "liger"}},
    "liger, compiled": {"model": {"compile": "default"}, "loss": {"kernel": "liger"}},
    "flash attention, document masks": {
        "model": {"document_masks": True, "attention": "flash_attention_2"},
        "loss": {"kernel": "torch"},
    },
}


def create_model(options: argparse.Namespace) -> Any:
    """The model to train, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

    from trainer.models import PRESETS

    torch.manual_seed(0)
    if options.model:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    shape = {**PRESETS[options.preset], "vocab_size": 32000} if options.preset else SMALL
    return MistralForCausalLM(MistralConfig(**shape, sliding_window=None))


def measure_variant(options: argparse.Namespace) -> dict[str, float]:
    """Runs the steps of one variant in this process."""
    import torch
    from accelerate import Accelerator

    from trainer.config import BatchConfig, LossConfig, ModelConfig, OptimizerConfig, PretrainConfig
    from trainer.forward import Forward, prepare_model
    from trainer.loss import IGNORED_LABEL
    from trainer.optimizer import create_optimizer
    from trainer.shard_dataset import Batch
    from trainer.step_gradients import peak_memory_bytes

    has_gpu = torch.cuda.is_available() and options.device != "cpu"
    accelerator = Accelerator(cpu=not has_gpu, mixed_precision="bf16" if has_gpu else "no")
    parts = {**VARIANTS, **GPU_VARIANTS}[options.variant]
    config = PretrainConfig(
        shards="",
        output="",
        model=replace(ModelConfig(init="scratch", preset="tiny"), **parts.get("model", {})),
        batch=BatchConfig(micro_batch_rows=options.rows, **parts.get("batch", {})),
        loss=LossConfig(**parts["loss"]),
    )
    model = create_model(options).train()
    vocab_size = model.config.vocab_size
    prepare_model(model, config=config, device=accelerator.device)
    model, wrapped = accelerator.prepare(model, create_optimizer(model, optimizer=OptimizerConfig()))
    called = torch.compile(model, dynamic=False) if options.variant == "whole model compiled" else model
    forward = Forward(config)

    third = options.sequence_length // 3
    lengths = torch.tensor([third, third, options.sequence_length - 2 * third])
    position_ids = torch.cat([torch.arange(n) for n in lengths.tolist()]).repeat(options.rows, 1)
    seconds = []
    for step in range(options.steps):
        input_ids = torch.randint(vocab_size, position_ids.shape, generator=torch.Generator().manual_seed(step))
        batch = Batch(
            input_ids=input_ids,
            labels=torch.where(position_ids == 0, IGNORED_LABEL, input_ids),
            position_ids=position_ids,
            component_ids=torch.zeros(options.rows, dtype=torch.int64),
            num_tokens=input_ids.numel(),
        ).to(accelerator.device)
        if has_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        losses = forward(called, batch)
        accelerator.backward((losses.cross_entropy.sum() + losses.z.sum()) / batch.num_tokens)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        wrapped.optimizer.step()
        wrapped.optimizer.zero_grad(set_to_none=True)
        if has_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {
        "first_seconds": seconds[0],
        "seconds": statistics.median(seconds[2:]),
        "gigabytes": peak_memory_bytes(accelerator.device) / 1e9,
    }


def print_table(turns: list[dict[str, dict[str, float]]], *, num_tokens: int) -> None:
    """A Markdown table of medians over turns."""

    def median(name: str, key: str, *, relative: bool = False) -> float:
        return statistics.median(turn[name][key] / (turn["plain"][key] if relative else 1) for turn in turns)

    print("| option | tokens/s | of plain | memory, GB | of plain | first step, s |\n|---|---|---|---|---|---|")
    for name in turns[0]:
        speed = 1 / statistics.median(turn[name]["seconds"] / turn["plain"]["seconds"] for turn in turns)
        print(
            f"| {name} | {num_tokens / median(name, 'seconds'):.0f} | {speed:.2f} | {median(name, 'gigabytes'):.2f} "
            f"| {median(name, 'gigabytes', relative=True):.2f} | {median(name, 'first_seconds'):.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face model folder")
    parser.add_argument("--preset", help="a preset of trainer.models instead, with 32,000 ids")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--sequence_length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--variants", nargs="*", help="only these, beside plain")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure_variant(options)))
        return
    import torch

    uses_gpu = torch.cuda.is_available() and options.device != "cpu"
    names = [*VARIANTS, *(GPU_VARIANTS if uses_gpu else ())]
    names = [name for name in names if options.variants is None or name == "plain" or name in options.variants]
    turns = []
    for turn in range(options.turns):
        results = {}
        for name in names:
            command = [sys.executable, "-m", "benchmarks.step_options", *sys.argv[1:], "--variant", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: left out, {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                names = [other for other in names if other != name]
                turns = [{key: value for key, value in one.items() if key != name} for one in turns]
                continue
            results[name] = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"turn {turn + 1}, {name}: {results[name]}", file=sys.stderr)
        turns.append(results)
    print_table(turns, num_tokens=options.rows * options.sequence_length)


if __name__ == "__main__":
    main()
