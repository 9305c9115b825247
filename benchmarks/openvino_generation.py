r"""How fast OpenVINO's int8 pipeline completes the quickstart's prompts, and how well, next to the CPU engine.

``python -m benchmarks.openvino_generation --openvino_python ENV/bin/python --openvino_model FOLDER`` takes the
quickstart's first documents through two rounds of its chat prompt, greedy. The exporter and the project need different
releases of transformers, so each side runs in a process of its own, with its own packages; the sides take turns. Each
loads its model, completes round 1 and round 2, and says how long each took; what round 2's prompts show is the engine's
round 1 on both sides. Told are new tokens a second, how many completions are the same, and how many hold a valid pair.

The environment and the model, once::

    python3.11 -m venv ENV
    ENV/bin/pip install optimum-intel nncf openvino-genai
    ENV/bin/optimum-cli export openvino --model .cache/models/smollm2-135m-instruct \
        --task text-generation-with-past --weight-format int8 FOLDER

Cost: two minutes a turn on 2 cores. Not measured here: loading, and drawn completions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

# Only the standard library above: one side has nothing of the project.


def complete_with_openvino(
    model: str, rounds: list[list[list[int]]], *, max_new_tokens: int, num_threads: int
) -> dict[str, Any]:
    """Seconds and new tokens of each round's prompts (token ids) in a process that has openvino-genai."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.enable_prefix_caching = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": num_threads}
    )
    config = openvino_genai.GenerationConfig(os.path.join(model, "generation_config.json"))
    config.max_new_tokens = max_new_tokens
    config.do_sample = False
    seconds, cpu_seconds, completions = [], [], []
    for prompts in rounds:
        inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        start, cpu_start = time.perf_counter(), time.process_time()
        results = pipeline.generate(inputs, [config] * len(inputs))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        completions.append([list(result.m_generation_ids[0]) for result in results])
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "completions": completions}


def complete_with_engine(
    model: str, rounds: list[list[list[int]]], *, max_new_tokens: int, num_threads: int
) -> dict[str, Any]:
    """The same with the engine."""
    import torch

    from synth_model.engines import EngineConfig
    from synth_model.engines.padded_generation import EncodedPrompt
    from synth_model.engines.transformers_engine import TransformersEngine, length_sorted_batches
    from synth_model.generation import Sampling

    torch.set_num_threads(num_threads)
    config = EngineConfig(model=model, device="cpu")
    engine = TransformersEngine(config)
    seconds, cpu_seconds, completions = [], [], []
    for prompts in rounds:
        done: dict[int, list[int]] = {}
        start, cpu_start = time.perf_counter(), time.process_time()
        for batch in length_sorted_batches(
            [len(ids) for ids in prompts],
            num_new_tokens=max_new_tokens,
            max_batch_size=config.max_batch_size,
            max_batch_tokens=config.max_batch_tokens,
        ):
            encoded = [EncodedPrompt(ids=prompts[index], seed=0) for index in batch]
            done.update(zip(batch, engine._generate(encoded, Sampling(max_new_tokens=max_new_tokens)), strict=True))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        completions.append([done[index] for index in range(len(prompts))])
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "completions": completions}


def run_side(python: str, side: str, model: str, rounds: list[list[list[int]]], *, args: argparse.Namespace) -> Any:
    """Runs this file in another process and gives what it found."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = os.path.join(folder, "in.json"), os.path.join(folder, "out.json")
        with open(inputs, "w") as file:
            call = {"max_new_tokens": args.max_new_tokens, "num_threads": args.threads}
            json.dump({"model": model, "rounds": rounds, **call}, file)
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        environment = {**os.environ, "PYTHONPATH": root if side == "engine" else ""}
        command = [python, os.path.abspath(__file__), "--side", side, "--input", inputs, "--output", outputs]
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
        with open(outputs) as file:
            return json.load(file)


def compare(args: argparse.Namespace) -> None:
    """Makes the prompts, lets the sides take turns and prints a table."""
    from beam_pipelines.example_corpus import ExampleCorpusConfig, example_documents
    from contracts.records import Document, Example, InstructionPair
    from synth_model.chat_prompt import load_wording
    from synth_model.generation import Completion
    from synth_model.prompt_tokenizer import ModelTokenizer
    from synth_model.synthesizer import ChatSynthesizer

    synthesizer = ChatSynthesizer(wording=load_wording("english"))
    tokenizer = ModelTokenizer(args.model)
    special_tokens = tokenizer.special_tokens
    eos_id = tokenizer.tokenizer.eos_token_id
    documents = [
        Document(doc_id=fields["id"], source=fields["source"], text=fields["text"], title=fields["title"])
        for fields in example_documents(ExampleCorpusConfig(output="", max_documents=2 * args.prompts))
    ]

    def pairs_of(new_ids: list[int]) -> tuple[InstructionPair, ...]:
        kept = new_ids[: new_ids.index(eos_id)] if eos_id in new_ids else new_ids
        completion = Completion(
            text=tokenizer.tokenizer.decode(kept, clean_up_tokenization_spaces=False),
            finish_reason="length" if len(kept) == args.max_new_tokens else "stop",
            num_prompt_tokens=0,
            num_new_tokens=len(kept),
        )
        return tuple(synthesizer.parse(completion, special_tokens=special_tokens))

    first, second = documents[: args.prompts], documents[args.prompts :]
    prompts = [synthesizer.build_prompt((), document=document, special_tokens=special_tokens) for document in first]
    rounds = [tokenizer.encode(prompts)]
    engine = run_side(sys.executable, "engine", args.model, rounds, args=args)
    no_pair = (InstructionPair(instruction="What is it about?", response="It is about the text."),)
    rounds.append(
        tokenizer.encode(
            [
                synthesizer.build_prompt(
                    (Example(document=earlier, pairs=pairs_of(new_ids) or no_pair),),
                    document=document,
                    special_tokens=special_tokens,
                )
                for earlier, new_ids, document in zip(first, engine["completions"][0], second, strict=True)
            ]
        )
    )
    found: dict[str, list[Any]] = {"engine": [], "openvino": []}
    for _ in range(args.turns):
        for side, python, model in (
            ("engine", sys.executable, args.model),
            ("openvino", args.openvino_python, args.openvino_model),
        ):
            found[side].append(run_side(python, side, model, rounds, args=args))
            print(f"turn: {side}: " + ", ".join(f"{taken:.1f} s" for taken in found[side][-1]["seconds"]), flush=True)
    print(
        f"\n{args.prompts} prompts a round, {args.max_new_tokens} new tokens at most, {args.threads} threads, "
        f"{args.turns} turns"
    )
    for number in (0, 1):
        rates, cpu_rates = (
            {
                side: statistics.median(
                    sum(map(len, result["completions"][number])) / result[clock][number] for result in results
                )
                for side, results in found.items()
            }
            for clock in ("seconds", "cpu_seconds")
        )
        ours, theirs = (found[side][-1]["completions"][number] for side in ("engine", "openvino"))
        num_equal = sum(map(list.__eq__, ours, theirs))
        print(f"round {number + 1}")
        print(f"  engine, new tokens/s      {rates['engine']:8.1f}")
        print(f"  openvino int8             {rates['openvino']:8.1f}, {rates['openvino'] / rates['engine']:.2f} times")
        print(f"  by CPU time               {cpu_rates['openvino'] / cpu_rates['engine']:8.2f} times")
        print(f"  equal completions         {num_equal:8} of {args.prompts}")
        for side, completions in (("engine", ours), ("openvino", theirs)):
            pairs = [pairs_of(new_ids) for new_ids in completions]
            print(
                f"  {side:8} with a valid pair  {sum(map(bool, pairs)):6} of {args.prompts}, "
                f"{sum(map(len, pairs)) / args.prompts:.2f} pairs a text"
            )


def main() -> None:
    """Compares, or is one of the sides."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.openvino_generation")
    parser.add_argument("--model", default=".cache/models/smollm2-135m-instruct", help="folder of the model")
    parser.add_argument("--openvino_python", help="interpreter of an environment with openvino-genai")
    parser.add_argument("--openvino_model", help="folder that optimum-cli wrote")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=104)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=("engine", "openvino"), help=argparse.SUPPRESS)
    parser.add_argument("--input", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is None:
        if not args.openvino_python or not args.openvino_model:
            parser.error("--openvino_python and --openvino_model are needed; see the module's description")
        compare(args)
        return
    with open(args.input) as file:
        call = json.load(file)
    complete = complete_with_engine if args.side == "engine" else complete_with_openvino
    result = complete(**call)
    with open(args.output, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
