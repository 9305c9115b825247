from dataclasses import replace

import pytest

from contracts.records import Document, Example, InstructionPair
from synth_model.engines import EngineConfig
from synth_model.evaluation.bootstrap import Bootstrap
from synth_model.evaluation.config import EvaluateConfig, SystemConfig
from synth_model.evaluation.judging import MEASURES, describe, judge, make_figures
from synth_model.evaluation.requests import make_requests, make_system
from synth_model.evaluation.text_selection import EvaluationText
from synth_model.generation import Completion, Failure

BOOTSTRAP = Bootstrap(num_resamples=100, confidence=0.9, seed=0)


def text(dataset, *pairs, split="seen"):
    gold = Example(
        document=Document(doc_id=dataset, source=dataset, text="The moon pulls the tide."),
        pairs=tuple(InstructionPair(instruction=instruction, response=response) for instruction, response in pairs),
    )
    return EvaluationText(split=split, gold=gold, questions=gold.pairs, examples=())


TEXTS = [
    text("tides", ("What pulls?", "the moon"), ("What is pulled?", "the tide")),
    text("tides", ("Who?", "nobody knows")),
    text("bread", ("Why?", "yeast"), split="unseen"),
]


def judged(name, answers):
    """What a wire-format system makes of the texts.

    Args:
        name: The system.
        answers: The completions in the order of the requests: for each text the pairs, then the responses.
    """
    config = EvaluateConfig(systems=[], output="", shots=[1])
    system = make_system(SystemConfig(name=name, engine=EngineConfig(kind="fake")))
    requests = make_requests(TEXTS, systems=[system], config=config)[name]
    assert [request.task for request in requests[:3]] == ["pairs", "response", "response"]
    outcomes = [
        answer
        if isinstance(answer, Failure)
        else Completion(text=answer, finish_reason="stop", num_prompt_tokens=1, num_new_tokens=1)
        for answer in answers
    ]
    return judge(TEXTS, requests=requests, outcomes=outcomes, system=system)


GOOD = judged(
    "good",
    [
        # One gold pair and one pair that is not well-formed.
        *("<QUE> What pulls? <ANS> The moon. </END>\n\n<QUE> Well? </END>", " Moon </END>", " a low tide </END>"),
        *("Nothing.", " Nobody. </END>"),
        *("<QUE> Why? <ANS> yeast </END>", " yeast </END>"),
    ],
)
BAD = judged(
    "bad",
    [
        *(Failure(reason="out_of_memory", detail=""), Failure(reason="out_of_memory", detail=""), " the sun </END>"),
        *("<QUE> Who? <ANS> nobody knows </END>", " nobody knows </END>"),
        *("", ""),
    ],
)


def test_the_values_of_a_text():
    first, second, third = GOOD
    # "moon" is the gold answer; of "low tide" and "tide" one word of two and of one.
    assert first.response_f1 == pytest.approx((1, 2 / 3))
    assert first.responses == ("Moon", "a low tide")
    assert first.values == pytest.approx(
        {
            "response_f1": 5 / 6,
            "response_exact_match": 1 / 2,
            "pair_f1": 2 / 3,
            "pair_precision": 1,
            "pair_recall": 1 / 2,
            "pair_rouge_l": 2 / 3,
            "pair_chrf": first.values["pair_chrf"],
            "valid_pair_rate": 1,
            "num_pairs": 1,
            "well_formed_share": 1 / 2,
            "num_examples": 0,
        }
    )
    assert 0.4 < first.values["pair_chrf"] < 2 / 3
    assert list(first.values) == list(MEASURES)
    assert (second.pairs, second.values["valid_pair_rate"], second.values["pair_f1"]) == ((), 0, 0)
    assert second.values["response_f1"] == pytest.approx(2 / 3)
    assert third.values["pair_f1"] == third.values["response_exact_match"] == 1


def test_a_failed_prompt_is_a_wrong_answer_and_no_pairs():
    first = BAD[0]
    assert first.responses == (None, "the sun")
    assert first.finish_reason == "failed"
    assert first.values["response_f1"] == first.values["num_pairs"] == first.values["well_formed_share"] == 0


def figure(figures, **place):
    (found,) = [item for item in figures if all(getattr(item, name) == value for name, value in place.items())]
    return found


def test_figures_are_means_over_texts_and_datasets_and_differences_of_the_first_system():
    figures = make_figures([*GOOD, *BAD], texts=TEXTS, bootstrap=BOOTSTRAP)
    seen = figure(figures, system="good", versus="", split="seen", dataset="", measure="response_f1")
    assert seen.mean == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert (seen.num_texts, seen.shots) == (2, 1)
    assert 2 / 3 <= seen.low < seen.mean < seen.high <= 5 / 6
    of_dataset = figure(figures, system="good", versus="", dataset="tides", measure="response_f1")
    assert (of_dataset.mean, of_dataset.low) == (seen.mean, seen.low)
    difference = figure(figures, system="good", versus="bad", split="seen", dataset="", measure="pair_f1")
    assert difference.mean == pytest.approx((2 / 3 - 0 + 0 - 1) / 2)
    assert difference.low == pytest.approx(-1)
    assert not [item for item in figures if item.system == "bad" and item.versus]
    assert figure(figures, system="good", versus="bad", split="unseen", dataset="", measure="response_f1").mean == 1
    # A single text has no interval, and does not stand in a mean beside datasets that have more.
    alone = figure(figures, system="good", versus="", split="unseen", dataset="", measure="response_f1")
    assert (alone.mean, alone.low, alone.high, alone.num_texts) == (1, None, None, 1)
    places = [(f.system, f.versus, f.shots, f.split, f.dataset, f.measure) for f in figures]
    assert len(set(places)) == len(places) == 3 * 4 * len(MEASURES)


def test_a_dataset_of_one_text_is_listed_but_not_averaged():
    texts = [*TEXTS[:2], replace(TEXTS[2], split="seen")]
    figures = make_figures(GOOD, texts=texts, bootstrap=BOOTSTRAP)
    seen = figure(figures, system="good", split="seen", dataset="", measure="response_f1")
    tides = figure(figures, system="good", split="seen", dataset="tides", measure="response_f1")
    bread = figure(figures, system="good", split="seen", dataset="bread", measure="response_f1")
    assert (seen.mean, seen.low, seen.num_texts) == (tides.mean, tides.low, 2)
    assert (bread.mean, bread.low, bread.num_texts) == (1, None, 1)


def test_pairs_are_described_beside_the_gold_ones():
    descriptions = describe([*GOOD, *BAD], texts=TEXTS)
    gold = figure(descriptions, system="gold", split="seen", dataset="tides")
    assert (gold.shots, gold.pairs.num_pairs, gold.finish_reasons) == (0, 3, {"given": 2})
    bad = figure(descriptions, system="bad", split="seen", dataset="")
    assert (bad.pairs.num_pairs, bad.finish_reasons) == (1, {"failed": 1, "stop": 1})
    assert bad.pairs.response_words == 2
    nothing = figure(descriptions, system="bad", split="unseen", dataset="")
    assert nothing.pairs.num_pairs == 0
    assert nothing.pairs.instruction_words is None
