"""Which texts a synthesizer is judged on, which of their gold instructions it is asked, and which examples it is shown.

The texts of a dataset are taken in the order of a hash, so that a larger sample holds the smaller one. Left out, and
counted: texts that some system was tuned on (`synth_model.evaluation.known_texts`), a text's second copy in its
dataset, and texts for which a prompt would outgrow the context of one of the systems: every system gets the same texts.

The examples in front of a text are other texts of its dataset with their gold pairs, drawn for each text anew, so that
no two or three of them decide on all figures.

Cost: the corpora are read once; one dataset's texts are sorted at a time, all are held in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow.parquet as pq

from contracts import storage
from contracts.manifest import read_augmented_corpus_manifest
from contracts.records import Example, InstructionPair
from contracts.schemas import chain_from_row
from contracts.seeding import rng, stable_hash
from synth_model.evaluation.known_texts import text_key

Split = Literal["seen", "unseen"]
SPLITS: tuple[Split, ...] = ("seen", "unseen")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationText:
    """A text to judge systems by.

    Args:
        split: Whether systems were tuned on its dataset.
        gold: The text with its gold pairs.
        questions: The gold pairs whose instructions are asked.
        examples: What may stand in front of it, the nearest last.
    """

    split: Split
    gold: Example
    questions: tuple[InstructionPair, ...]
    examples: tuple[Example, ...]

    @property
    def dataset(self) -> str:
        """The dataset it is of."""
        return self.gold.document.source


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetAccounts:
    """Where the texts of a dataset went.

    Args:
        split: Seen or unseen.
        dataset: Its name.
        num_texts: Texts with gold pairs in the corpora.
        num_tuned_on: Of those, texts that a system was tuned on, wholly or for the greater part.
        num_duplicates: Texts that equal another one of the dataset.
        num_too_long: Texts that were drawn and outgrow a context.
        num_not_drawn: Texts that were not needed.
        num_selected: Texts that the systems are judged on.
    """

    split: Split
    dataset: str
    num_texts: int
    num_tuned_on: int
    num_duplicates: int
    num_too_long: int
    num_not_drawn: int
    num_selected: int


def read_gold_examples(folder: str) -> Iterator[Example]:
    """The examples with pairs of an augmented corpus, in the order of its files.

    Raises:
        ValueError: The corpus is missing, not completed or damaged.
    """
    return (example for _, example in read_gold_examples_of_chains(folder))


def read_gold_examples_of_chains(folder: str) -> Iterator[tuple[str, Example]]:
    """The same, each with the id of its chain.

    Raises:
        ValueError: The corpus is missing, not completed or damaged.
    """
    for entry in read_augmented_corpus_manifest(folder).parts:
        with storage.open_input(storage.join(folder, entry.path)) as file:
            for batch in pq.ParquetFile(file).iter_batches():
                for chain in map(chain_from_row, batch.to_pylist()):
                    yield from ((chain.chain_id, example) for example in chain.examples if example.pairs)


def select_texts(
    examples: Iterable[Example],
    *,
    split: Split,
    known: frozenset[int],
    max_texts: int,
    max_questions: int,
    num_examples: int,
    fits: Callable[[Example, Sequence[InstructionPair]], bool],
    seed: int,
) -> tuple[list[EvaluationText], list[DatasetAccounts]]:
    """The texts to judge by, by dataset and in the order they are drawn, and where the others went.

    Args:
        examples: Texts with their gold pairs, in any order.
        split: Seen or unseen.
        known: What `find_known_texts` says of them.
        max_texts: Most texts of a dataset.
        max_questions: Most gold instructions of a text that are asked.
        num_examples: How many examples a text gets; fewer where its dataset has no more.
        fits: Whether a text alone, and each of its questions, leave room in every system's context.
        seed: Another seed draws others.
    """
    by_dataset: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_dataset[example.document.source].append(example)
    texts: list[EvaluationText] = []
    accounts: list[DatasetAccounts] = []
    for dataset, members in sorted(by_dataset.items()):
        held_out = [example for example in members if text_key(example.document.text) not in known]
        candidates = _distinct(held_out, seed=seed)
        num_before, num_too_long, num_walked = len(texts), 0, 0
        for index, example in enumerate(candidates):
            if len(texts) - num_before == max_texts:
                break
            num_walked += 1
            questions = _draw_questions(example, max_questions=max_questions, seed=seed)
            if not fits(example, questions):
                num_too_long += 1
                continue
            shown = _draw_examples(candidates, index, num_examples=num_examples, seed=seed)
            texts.append(EvaluationText(split=split, gold=example, questions=questions, examples=shown))
        accounts.append(
            DatasetAccounts(
                split=split,
                dataset=dataset,
                num_texts=len(members),
                num_tuned_on=len(members) - len(held_out),
                num_duplicates=len(held_out) - len(candidates),
                num_too_long=num_too_long,
                num_not_drawn=len(candidates) - num_walked,
                num_selected=len(texts) - num_before,
            )
        )
    return texts, accounts


def _distinct(examples: Sequence[Example], *, seed: int) -> list[Example]:
    """The examples in the order they are drawn, without a text's second copy."""
    ordered = sorted(
        examples,
        key=lambda example: (
            stable_hash(seed, "evaluation text", example.document.source, example.document.doc_id),
            example.document.text,
        ),
    )
    first_of: dict[int, Example] = {}
    for example in ordered:
        first_of.setdefault(text_key(example.document.text), example)
    return list(first_of.values())


def _draw_questions(example: Example, *, max_questions: int, seed: int) -> tuple[InstructionPair, ...]:
    """Some of the gold pairs, in their order."""
    doc_id = example.document.doc_id
    drawn = sorted(range(len(example.pairs)), key=lambda index: stable_hash(seed, "question", doc_id, index))
    return tuple(example.pairs[index] for index in sorted(drawn[:max_questions]))


def _draw_examples(candidates: Sequence[Example], index: int, *, num_examples: int, seed: int) -> tuple[Example, ...]:
    """Some of the other candidates."""
    num_drawn = min(num_examples, len(candidates) - 1)
    document = candidates[index].document
    positions = rng(seed, "examples", document.source, document.doc_id).choice(
        len(candidates) - 1, size=num_drawn, replace=False
    )
    # Positions among the others: from the text itself on, one further.
    return tuple(candidates[position + (position >= index)] for position in positions.tolist())


def check_splits(*, seen: Iterable[str], unseen: Iterable[str], tuned_on: frozenset[str]) -> None:
    """Refuses datasets that are not what they are called.

    Args:
        seen: Datasets called seen.
        unseen: Datasets called unseen.
        tuned_on: Datasets of the tuning corpora; empty when there are none.

    Raises:
        ValueError: A dataset is both, was tuned on and called unseen, or was not and called seen.
    """
    if both := sorted(set(seen) & set(unseen)):
        raise ValueError(f"The datasets {', '.join(both)} are given as seen and as unseen; each is one of the two.")
    if not tuned_on:
        return
    if known := sorted(set(unseen) & tuned_on):
        raise ValueError(f"The datasets {', '.join(known)} are given as unseen, but are in tuning_corpora.")
    if unknown := sorted(set(seen) - tuned_on):
        raise ValueError(
            f"The datasets {', '.join(unknown)} are given as seen, but are not in tuning_corpora; give them as unseen."
        )
