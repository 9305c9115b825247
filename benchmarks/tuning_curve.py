"""How the tuning of a synthesizer pays: valid pairs and answers over the tokens seen.

``python -m benchmarks.tuning_curve FOLDER --checkpoints 5`` takes the output folder of ``synth_model finetune`` (an
adapter, with its checkpoints kept: ``pretrain.checkpoint.keep``) and evaluates the untuned model and so many of the
checkpoints, evenly spread, the last one among them, on the datasets that were left out of tuning: the text alone in the
prompt, ``--texts`` texts of each. It prints a line for each with the tokens that it had seen, the validation loss where
that was taken at the same step, and 95 % intervals by a bootstrap over texts.

The evaluation is ``python -m synth_model evaluate`` on a config that stays in ``--output``, with its page and samples;
interrupted, the same command goes on with it.

Cost: on two cores about a second a prompt, 3 prompts a text and system: 15 minutes for five checkpoints and 48 texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MEASURES = ("valid_pair_rate", "num_pairs", "response_f1", "pair_f1")


def checkpoints_of(run: Path, *, count: int) -> list[Path]:
    """So many checkpoints of a tuning, evenly spread over its steps, the last one among them."""
    found = sorted(path for path in (run / "training" / "checkpoints").glob("step-*") if (path / "COMPLETED").exists())
    if not found:
        raise SystemExit(f"{run} has no complete checkpoint; tune with pretrain.checkpoint.every_steps and keep.")
    number_of = {path: int(path.name.removeprefix("step-")) for path in found}
    last = number_of[found[-1]]
    wanted = [last * number / count for number in range(1, count + 1)]
    chosen = {min(found, key=lambda path: abs(number_of[path] - step)) for step in wanted}
    return sorted(chosen)


def evaluation_config(
    run: Path, checkpoints: Sequence[Path], *, model: str, output: Path, num_texts: int, sampling: dict[str, Any]
) -> dict[str, Any]:
    """The config of the evaluation: the newest checkpoint first, the untuned model last."""
    settings = yaml.safe_load((run / "synthesizer" / "synthesizer.yaml").read_text())
    engine = {"kind": "transformers", "model": model, "context_length": 2048, "max_batch_size": 32}
    systems = [
        {
            "name": path.name,
            "engine": {**engine, "adapter": str(path / "model")},
            "synthesizer": settings["synthesizer"],
        }
        for path in reversed(checkpoints)
    ]
    systems.append({"name": "untuned", "engine": engine, "synthesizer": settings["synthesizer"]})
    return {
        "systems": systems,
        "output": str(output / "evaluation"),
        "unseen": [str(run / "unseen")],
        "tuning_corpora": [str(run / "tasks")],
        "max_texts": num_texts,
        "shots": [1],
        "sampling": sampling,
        "max_response_tokens": 48,
    }


def print_curve(results: dict[str, Any], *, run: Path, checkpoints: Sequence[Path]) -> None:
    """A table in Markdown, a line a checkpoint."""
    figures = {
        (one["system"], one["measure"]): one
        for one in results["figures"]
        if not one["versus"] and not one["dataset"] and one["split"] == "unseen"
    }
    losses = {
        step["step"]: step["losses"]["all"]
        for step in map(json.loads, (run / "training" / "validation.jsonl").read_text().splitlines())
    }
    print("| step | tokens seen | validation loss | texts with a pair, % | pairs a text | response F1 | pair F1 |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for system, path in [("untuned", None), *((path.name, path) for path in checkpoints)]:
        step, tokens = 0, 0
        if path is not None:
            state = json.loads((path / "state.json").read_text())
            step, tokens = state["position"]["step"], state["num_tokens_seen"]
        cells = []
        for measure in MEASURES:
            figure = figures[system, measure]
            scale, digits = (1, 2) if measure == "num_pairs" else (100, 1)
            if figure["low"] is None:
                cells.append(f"{scale * figure['mean']:.{digits}f}")
                continue
            mean, low, high = (f"{scale * figure[name]:.{digits}f}" for name in ("mean", "low", "high"))
            cells.append(f"{mean} ({low} to {high})")
        loss = f"{losses[step]:.3f}" if step in losses else ""
        print(f"| {step} | {tokens:,} | {loss} | {' | '.join(cells)} |")


def main() -> None:
    """Evaluates and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning_curve")
    parser.add_argument("run", type=Path, help="output folder of python -m synth_model finetune")
    parser.add_argument("--model", default=".cache/models/smollm2-135m-instruct", help="the model that was tuned")
    parser.add_argument("--output", type=Path, default=Path("runs/tuning_curve"))
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--texts", type=int, default=6, help="texts of each dataset")
    parser.add_argument("--max_new_tokens", type=int, default=224)
    parser.add_argument("--presence_penalty", type=float, default=2.0)
    args = parser.parse_args()
    checkpoints = checkpoints_of(args.run, count=args.checkpoints)
    config = evaluation_config(
        args.run,
        checkpoints,
        model=args.model,
        output=args.output,
        num_texts=args.texts,
        sampling={"max_new_tokens": args.max_new_tokens, "presence_penalty": args.presence_penalty},
    )
    args.output.mkdir(parents=True, exist_ok=True)
    config_file = args.output / "evaluate.yaml"
    config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    subprocess.run(
        [sys.executable, "-m", "synth_model", "evaluate", "--config", str(config_file)], check=True, stdout=sys.stderr
    )
    results = json.loads((args.output / "evaluation" / "results.json").read_text())
    print_curve(results, run=args.run, checkpoints=checkpoints)


if __name__ == "__main__":
    main()
