"""From outcomes to figures: each system's answers about each text are measured, then averaged by dataset and split.

A text counts once, however many questions it was asked. A prompt that failed counts as an answer that is wrong and as
no pairs, so that no system gains by failing; how many did stands beside the figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from contracts.records import InstructionPair
from synth_model.evaluation.bootstrap import MIN_TEXTS, Bootstrap
from synth_model.evaluation.config import GOLD
from synth_model.evaluation.diversity import PairDescription, describe_pairs
from synth_model.evaluation.requests import Request, System
from synth_model.evaluation.similarity import exact_match, pair_quality, token_f1
from synth_model.evaluation.text_selection import SPLITS, EvaluationText
from synth_model.generation import Completion, Outcome

MEASURES: Mapping[str, str] = {
    "response_f1": "token F1 of the response to a gold instruction",
    "response_exact_match": "share of responses that equal the gold one",
    "pair_f1": "token F1 of the generated against the gold pairs",
    "pair_precision": "token F1 of a generated pair",
    "pair_recall": "token F1 of a gold pair",
    "pair_rouge_l": "ROUGE-L of the generated against the gold pairs",
    "pair_chrf": "chrF of the generated against the gold pairs",
    "valid_pair_rate": "share of texts with a valid pair",
    "num_pairs": "valid pairs of a text",
    "well_formed_share": "share of valid pairs among those begun",
    "num_examples": "examples shown with the text",
}
FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a system made of a text.

    Args:
        system: The system.
        shots: M.
        text: Index of the text.
        responses: Its response to each of the text's questions; None where the prompt failed.
        response_f1: Token F1 of each.
        pairs: Its own pairs.
        finish_reason: How the completion with the pairs ended, ``failed`` where there is none.
        values: The value of each of `MEASURES`.
    """

    system: str
    shots: int
    text: int
    responses: tuple[str | None, ...]
    response_f1: tuple[float, ...]
    pairs: tuple[InstructionPair, ...]
    finish_reason: str
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A mean over texts with its interval.

    Args:
        system: The system.
        versus: The system that is subtracted; empty for none.
        shots: M.
        split: Seen or unseen.
        dataset: The dataset; empty for the mean over the split's datasets that have two texts or more (over all of
            them when none has).
        measure: One of `MEASURES`.
        mean: Mean over the dataset's texts, or of the datasets' means.
        low: Lower bound of the interval; None where a single text gives none.
        high: Upper bound; likewise.
        num_texts: Texts behind it.
    """

    system: str
    versus: str
    shots: int
    split: str
    dataset: str
    measure: str
    mean: float
    low: float | None
    high: float | None
    num_texts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What the pairs of a system about one dataset's texts are like.

    Args:
        system: The system, or ``gold`` for the dataset's own pairs.
        shots: M; 0 for the dataset's own.
        split: Seen or unseen.
        dataset: The dataset; empty for the mean over the split's datasets.
        pairs: Lengths, diversity and grounding.
        finish_reasons: How the completions with pairs ended.
    """

    system: str
    shots: int
    split: str
    dataset: str
    pairs: PairDescription
    finish_reasons: Mapping[str, int]


def judge(
    texts: Sequence[EvaluationText],
    *,
    requests: Sequence[Request],
    outcomes: Sequence[Outcome],
    system: System,
) -> list[Judgement]:
    """Measures what one system answered, by text and shots.

    Args:
        texts: The texts.
        requests: All requests to the system.
        outcomes: One for each request.
        system: Reads its completions.
    """
    by_place: dict[tuple[int, int], dict[tuple[str, int], tuple[Request, Outcome]]] = {}
    for request, outcome in zip(requests, outcomes, strict=True):
        by_place.setdefault((request.shots, request.text), {})[request.task, request.question] = (request, outcome)
    return [
        _judge_text(texts[text], index=text, shots=shots, answers=answers, system=system)
        for (shots, text), answers in sorted(by_place.items())
    ]


def _judge_text(
    text: EvaluationText,
    *,
    index: int,
    shots: int,
    answers: Mapping[tuple[str, int], tuple[Request, Outcome]],
    system: System,
) -> Judgement:
    special_tokens = system.tokenizer.special_tokens
    responses: list[str | None] = []
    for question in range(len(text.questions)):
        _, outcome = answers["response", question]
        responses.append(
            system.synthesizer.parse_response(outcome, special_tokens=special_tokens)
            if isinstance(outcome, Completion)
            else None
        )
    asked = list(zip(responses, (pair.response for pair in text.questions), strict=True))
    response_f1 = [0.0 if response is None else token_f1(response, gold=gold) for response, gold in asked]
    matches = [0.0 if response is None else exact_match(response, gold=gold) for response, gold in asked]
    request, outcome = answers["pairs", 0]
    pairs: list[InstructionPair] = []
    num_begun = 0
    if isinstance(outcome, Completion):
        pairs = system.synthesizer.parse(outcome, special_tokens=special_tokens)
        num_begun = system.synthesizer.count_begun_pairs(outcome)
    quality = pair_quality(pairs, gold=text.gold.pairs)
    return Judgement(
        system=system.config.name,
        shots=shots,
        text=index,
        responses=tuple(responses),
        response_f1=tuple(response_f1),
        pairs=tuple(pairs),
        finish_reason=outcome.finish_reason if isinstance(outcome, Completion) else FAILED,
        values={
            "response_f1": sum(response_f1) / len(response_f1),
            "response_exact_match": sum(matches) / len(matches),
            **{f"pair_{name}": value for name, value in asdict(quality).items()},
            "valid_pair_rate": float(bool(pairs)),
            "num_pairs": float(len(pairs)),
            "well_formed_share": len(pairs) / num_begun if num_begun else 0.0,
            "num_examples": float(request.num_examples),
        },
    )


def make_figures(
    judgements: Sequence[Judgement], *, texts: Sequence[EvaluationText], bootstrap: Bootstrap
) -> list[Figure]:
    """All figures: by system and shots, then the first system's differences from each of the others.

    Args:
        judgements: Of all systems, those of the first one first, each in the order of the texts.
        texts: The texts.
        bootstrap: Makes the intervals.
    """
    values: dict[tuple[str, int], list[Judgement]] = {}
    for judgement in judgements:
        values.setdefault((judgement.system, judgement.shots), []).append(judgement)
    systems = list(dict.fromkeys(system for system, _ in values))
    figures: list[Figure] = []
    for (system, shots), members in values.items():
        rows = [judgement.values for judgement in members]
        figures += _figures_of(rows, texts=texts, bootstrap=bootstrap, system=system, versus="", shots=shots)
    for other in systems[1:]:
        for (system, shots), members in values.items():
            if system == systems[0]:
                rows = [
                    {name: ours.values[name] - theirs.values[name] for name in MEASURES}
                    for ours, theirs in zip(members, values[other, shots], strict=True)
                ]
                figures += _figures_of(rows, texts=texts, bootstrap=bootstrap, system=system, versus=other, shots=shots)
    return figures


def _figures_of(
    rows: Sequence[Mapping[str, float]],
    *,
    texts: Sequence[EvaluationText],
    bootstrap: Bootstrap,
    system: str,
    versus: str,
    shots: int,
) -> Iterator[Figure]:
    """The figures of one value a text for each measure: the splits' first, then those of each dataset."""
    for split, dataset, members in groups(texts):
        for measure in MEASURES:
            by_dataset: dict[str, list[float]] = {}
            for index in members:
                by_dataset.setdefault(texts[index].dataset, []).append(rows[index][measure])
            if any(len(of_dataset) >= MIN_TEXTS for of_dataset in by_dataset.values()):
                by_dataset = {name: own for name, own in by_dataset.items() if len(own) >= MIN_TEXTS}
            interval = bootstrap.interval({name: np.array(of_dataset) for name, of_dataset in by_dataset.items()})
            yield Figure(
                system=system,
                versus=versus,
                shots=shots,
                split=split,
                dataset=dataset,
                measure=measure,
                mean=interval.mean,
                low=interval.low,
                high=interval.high,
                num_texts=sum(map(len, by_dataset.values())),
            )


def groups(texts: Sequence[EvaluationText]) -> Iterator[tuple[str, str, list[int]]]:
    """Split, dataset (empty for all of a split) and the indices of its texts, for every one that has any."""
    for split in SPLITS:
        of_split = [index for index, text in enumerate(texts) if text.split == split]
        if of_split:
            yield split, "", of_split
        for dataset in sorted({texts[index].dataset for index in of_split}):
            yield split, dataset, [index for index in of_split if texts[index].dataset == dataset]


def describe(judgements: Sequence[Judgement], *, texts: Sequence[EvaluationText]) -> list[Description]:
    """What the pairs of each system are like by dataset, and those of the datasets themselves."""
    answered: dict[tuple[str, int], list[tuple[Sequence[InstructionPair], str]]] = {
        (GOLD, 0): [(text.gold.pairs, text.gold.finish_reason) for text in texts]
    }
    for judgement in judgements:
        key = judgement.system, judgement.shots
        answered.setdefault(key, []).append((judgement.pairs, judgement.finish_reason))
    descriptions: list[Description] = []
    for (system, shots), answers in answered.items():
        for split in SPLITS:
            of_split = [
                Description(
                    system=system,
                    shots=shots,
                    split=split,
                    dataset=dataset,
                    pairs=describe_pairs([(texts[index].gold.document, answers[index][0]) for index in members]),
                    finish_reasons=dict(sorted(Counter(answers[index][1] for index in members).items())),
                )
                for of, dataset, members in groups(texts)
                if of == split and dataset
            ]
            if of_split:
                descriptions += [_mean_description(of_split), *of_split]
    return descriptions


def _mean_description(descriptions: Sequence[Description]) -> Description:
    """The mean over datasets, of those that have a figure; pairs and finish reasons are added up."""
    first = descriptions[0]
    means: dict[str, float | None] = {}
    for name in (item.name for item in fields(PairDescription) if item.name != "num_pairs"):
        known = [getattr(description.pairs, name) for description in descriptions]
        known = [value for value in known if value is not None]
        means[name] = sum(known) / len(known) if known else None
    finish_reasons: Counter[str] = Counter()
    for description in descriptions:
        finish_reasons.update(description.finish_reasons)
    return Description(
        system=first.system,
        shots=first.shots,
        split=first.split,
        dataset="",
        pairs=PairDescription(num_pairs=sum(d.pairs.num_pairs for d in descriptions), **means),
        finish_reasons=dict(sorted(finish_reasons.items())),
    )
