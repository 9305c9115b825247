"""What the gates would reject: of pairs written by people, which are good, and of pairs spoilt on purpose.

``IPT_SHARED=FOLDER python -m benchmarks.gates`` takes pairs from the sets of texts with questions under
``FOLDER/data/context_tasks`` (gzip JSON Lines with ``context`` and ``pairs``), the same number from each set, chosen by
hash.
Four kinds of pairs are judged by each gate at several bounds:

- *human*: as they are; what is rejected of them is a false reject;
- *mismatched*: each instruction with the response to another text's instruction of the same set;
- *echo*: the instruction as its own response;
- *foreign*: a response in another language: one of a few sentences about nothing in the texts.

With ``--model FOLDER`` a model scores ``--scored`` of the human and the mismatched pairs, in the chat format, for the
gate on context dependence. Printed for each gate and bound: the share rejected of each kind; and what a pair costs.

Cost: half a minute for 2,000 pairs, and with SmolLM2-135M on two cores about a second a scored pair.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from contracts.records import Document, InstructionPair
from contracts.seeding import stable_hash
from synth_model.engines import EngineConfig, load_engine, load_tokenizer
from synth_model.gates.config import PairGateConfig
from synth_model.gates.context_dependence import add_context_dependence, scoring_requests
from synth_model.gates.judging import JudgedPair, judge_pairs
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer

BOUNDS = {
    "min_grounding": (0.2, 0.35, 0.5),
    "max_instruction_overlap": (0.5, 0.6, 0.8),
    "max_similarity_in_text": (0.7, 0.8, 0.9),
    "max_same_responses_in_text": (1, 2, 3),
    "min_language_probability": (0.01, 0.05, 0.2),
    "max_instruction_characters": (1000, 2000),
    "max_response_characters": (2000, 4000),
}
CONTEXT_BOUNDS = (-0.25, 0.0, 0.1, 0.25, 0.5)
FOREIGN = (
    "Das wurde erst im folgenden Jahr entschieden, nachdem der Rat lange darüber beraten hatte.",
    "Personne ne le savait encore, mais la réponse se trouvait déjà dans la première lettre.",
    "Lo decidieron los vecinos después de una larga reunión en la plaza del pueblo.",
    "그 결정은 이듬해에 가서야 내려졌고 아무도 그 이유를 묻지 않았다.",
    "直到第二年才作出决定，之后再也没有人问过其中的原因。",
    "Решение было принято только на следующий год, после долгого обсуждения.",
    "Não.",
    "두 번",
    "从不",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A text with some of its pairs."""

    dataset: str
    document: Document
    pairs: tuple[InstructionPair, ...]


def read_samples(folder: str, *, num_pairs: int) -> list[Sample]:
    """Texts of every set, those with the lowest hashes, until each set has given its share of the pairs."""
    paths = sorted(glob.glob(os.path.join(folder, "*.jsonl.gz")))
    samples: list[Sample] = []
    for path in paths:
        dataset = os.path.basename(path).partition(".")[0]
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = sorted(map(json.loads, file), key=lambda record: stable_hash(0, record["id"]))
        left = num_pairs // len(paths)
        for record in records:
            pairs = tuple(
                InstructionPair(instruction=pair["instruction"], response=pair["response"])
                for pair in record["pairs"][: min(left, 8)]
                if pair["instruction"].strip() and pair["response"].strip()
            )
            if pairs:
                document = Document(doc_id=record["id"], source=dataset, text=record["context"])
                samples.append(Sample(dataset=dataset, document=document, pairs=pairs))
            left -= len(pairs)
            if left <= 0:
                break
    return samples


def mismatched(samples: Sequence[Sample]) -> list[Sample]:
    """Each instruction with the response to that of the same place in the next text of the same set."""
    result = []
    for index, sample in enumerate(samples):
        others = [other for other in samples[index + 1 :] + samples[:index] if other.dataset == sample.dataset]
        if not others:
            continue
        responses = [pair.response for pair in others[0].pairs]
        pairs = tuple(
            replace(pair, response=responses[place % len(responses)]) for place, pair in enumerate(sample.pairs)
        )
        result.append(replace(sample, pairs=pairs))
    return result


def respond(samples: Iterable[Sample], responses: Sequence[str] | None) -> list[Sample]:
    """Each instruction with one of the responses in turn, or with itself when there are none."""
    result = []
    for number, sample in enumerate(samples):
        pairs = tuple(
            replace(pair, response=responses[(number + place) % len(responses)] if responses else pair.instruction)
            for place, pair in enumerate(sample.pairs)
        )
        result.append(replace(sample, pairs=pairs))
    return result


def share_rejected(judged: Sequence[JudgedPair]) -> str:
    """As a percentage of the pairs."""
    return f"{sum(item.refusal is not None for item in judged) / max(1, len(judged)):8.1%}"


def judge_all(samples: Iterable[Sample], gates: PairGateConfig) -> list[JudgedPair]:
    return [item for sample in samples for item in judge_pairs(sample.pairs, document=sample.document, gates=gates)]


def measure_cheap_gates(kinds: dict[str, list[Sample]]) -> None:
    """Prints the shares for the gates that need no model, and what they cost."""
    human = kinds["human"]
    num_pairs = sum(len(sample.pairs) for sample in human)
    print(f"{len(human)} texts, {num_pairs} pairs\n")
    print(f"{'gate and bound':34}" + "".join(f"{kind:>11}" for kind in kinds) + "   µs a pair")
    judge_all(human[:1], PairGateConfig(min_language_probability=0.1))
    for name, bounds in BOUNDS.items():
        for bound in bounds:
            gates = PairGateConfig(**{name: bound})
            started = time.process_time()
            judged = {"human": judge_all(human, gates)}
            microseconds = 1e6 * (time.process_time() - started) / num_pairs
            judged |= {kind: judge_all(samples, gates) for kind, samples in kinds.items() if kind != "human"}
            shares = "".join(f"{share_rejected(judged[kind]):>11}" for kind in kinds)
            print(f"{name + ' ' + str(bound):34}{shares}{microseconds:12.0f}")


def measure_context_dependence(kinds: dict[str, list[Sample]], *, model: str, num_scored: int) -> None:
    """Prints the shares for the gate that asks the model, and what it costs."""
    engine_config = EngineConfig(model=model, device="cpu", max_batch_size=16)
    engine = load_engine(engine_config)
    special_tokens = load_tokenizer(engine_config).special_tokens
    synthesizer = make_synthesizer(SynthesizerConfig(kind="chat"))
    gains: dict[str, list[float]] = {}
    for kind in ("human", "mismatched"):
        samples = sorted(kinds[kind], key=lambda sample: stable_hash(1, sample.document.doc_id))[:num_scored]
        gates = PairGateConfig(min_context_dependence=0.0)
        requests, places = [], []
        for sample in samples:
            (pair, *_) = sample.pairs
            requests += scoring_requests(
                [pair], document=sample.document, synthesizer=synthesizer, special_tokens=special_tokens
            )
            places.append([JudgedPair(pair=pair, measurements=())])
        started = time.monotonic()
        outcomes = engine.score(requests)  # type: ignore[attr-defined]
        seconds = time.monotonic() - started
        measured = [
            add_context_dependence(item, outcomes[2 * number : 2 * number + 2], gates=gates)[0].measurements[-1]
            for number, item in enumerate(places)
        ]
        gains[kind] = [item.score for item in measured if item.score is not None]
        print(
            f"\n{kind}: {len(gains[kind])} of {len(samples)} pairs scored (others exceed the context), "
            f"{1e3 * seconds / len(samples):.0f} ms a pair"
        )
    print(f"\n{'min_context_dependence':34}" + "".join(f"{kind:>11}" for kind in gains))
    for bound in CONTEXT_BOUNDS:
        shares = (sum(gain < bound for gain in of_kind) / max(1, len(of_kind)) for of_kind in gains.values())
        print(f"{bound:<34}" + "".join(f"{share:11.1%}" for share in shares))
    wins = sum((a > b) + (a == b) / 2 for a in gains["human"] for b in gains["mismatched"])
    area = wins / max(1, len(gains["human"]) * len(gains["mismatched"]))
    print(f"a human pair scores above a mismatched one in {area:.1%} of all comparisons")


def main() -> int:
    """Measures all gates."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gates")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs taken from all sets together")
    parser.add_argument("--model", default="", help="folder of an instruct model; without it, no context dependence")
    parser.add_argument("--scored", type=int, default=200, help="pairs of each kind that the model scores")
    args = parser.parse_args()
    folder = os.path.join(os.environ.get("IPT_SHARED", "../shared"), "data", "context_tasks")
    if not os.path.isdir(folder):
        print(f"skipped: {folder} is absent; set IPT_SHARED to the folder that holds data/context_tasks")
        return 0
    human = read_samples(folder, num_pairs=args.pairs)
    kinds = {
        "human": human,
        "mismatched": mismatched(human),
        "echo": respond(human, None),
        "foreign": respond(human, FOREIGN),
    }
    measure_cheap_gates(kinds)
    if args.model:
        measure_context_dependence(kinds, model=args.model, num_scored=args.scored)
    return 0


if __name__ == "__main__":
    sys.exit(main())
