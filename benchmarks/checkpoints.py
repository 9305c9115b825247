"""Saving, verifying and loading checkpoints: seconds, GB/s, and what share of a run they take.

``python -m benchmarks.checkpoints --model FOLDER [--folder DIR] [--repeats 5]``

The model's weights in float32 and AdamW's two means are saved as the trainer does it, gathered and sharded in turn
within each repeat, and compared with what any program would need: the same tensors by safetensors in one file, flushed
to the disk. Files are in the page cache when they are verified and loaded, as after a restart on the same machine; the
first reading after a reboot is bound by the disk. Medians and ranges over the repeats are printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import safetensors.torch
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from trainer.checkpoint_files import verify_checkpoint
from trainer.checkpoints import RunState, open_checkpoint, restore_checkpoint, save_checkpoint
from trainer.config import CheckpointConfig
from trainer.folders import flush_folder
from trainer.row_sampler import Position

SECONDS_OF_A_STEP = 2.0
STEPS_BETWEEN_SAVES = (100, 500, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    parser.add_argument("--folder", help="where to write; by default the folder for temporary files")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = {f"weights.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{name}.{key}": value for key, value in optimizer.state[parameter].items() if value.ndim}
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[what].append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        for repeat in range(options.repeats):
            plain = os.path.join(root, "plain")
            os.makedirs(plain)
            with timed("safetensors alone: save"):
                safetensors.torch.save_file(tensors, os.path.join(plain, "all.safetensors"))
                flush_folder(plain)
            shutil.rmtree(plain)
            for kind, sharded in (("gathered", False), ("sharded", True)):
                state = RunState(
                    position=Position(step=repeat),
                    seed=0,
                    shards_fingerprint="",
                    tokenizer_sha256="",
                    model_identity="",
                    config={},
                )
                config = CheckpointConfig(keep=1, sharded=sharded)
                with timed(f"{kind}: save"):
                    url = save_checkpoint(
                        os.path.join(root, kind),
                        state=state,
                        accelerator=accelerator,
                        model=model,
                        optimizer=optimizer,
                        config=config,
                    )
                with timed(f"{kind}: verify"):
                    verify_checkpoint(url)
                checkpoint = open_checkpoint(url)
                with timed(f"{kind}: load"):
                    if not sharded:
                        AutoModelForCausalLM.from_pretrained(os.path.join(url, "model"), dtype=torch.float32)
                    restore_checkpoint(checkpoint, accelerator=accelerator, model=model, optimizer=optimizer)

    print(f"{num_bytes / 1e9:.2f} GB, {os.cpu_count()} cores, {options.repeats} repeats; seconds: median (range)")
    baseline = seconds["safetensors alone: save"]
    for what, values in seconds.items():
        median = statistics.median(values)
        ratio = statistics.median(value / plain for value, plain in zip(values, baseline, strict=True))
        print(
            f"{what:24} {median:7.2f} ({min(values):.2f} to {max(values):.2f})  {num_bytes / median / 1e9:5.2f} GB/s"
            f"  {ratio:5.2f} times safetensors alone"
        )
    save = statistics.median(seconds["gathered: save"])
    for num_steps in STEPS_BETWEEN_SAVES:
        share = save / (save + num_steps * SECONDS_OF_A_STEP)
        print(f"a save every {num_steps:4} steps of {SECONDS_OF_A_STEP:.0f} s: {share:.2%} of the run")
    resume = statistics.median(map(sum, zip(seconds["gathered: verify"], seconds["gathered: load"], strict=True)))
    print(f"going on from a checkpoint takes {resume:.2f} s more than starting")


if __name__ == "__main__":
    main()
