import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import InstructionPair
from synth_model.evaluation.similarity import (
    answer_words,
    assign_pairs,
    chrf,
    exact_match,
    pair_quality,
    rouge_l,
    token_f1,
)

ANSWERS = st.lists(st.sampled_from(["the", "a", "Tide", "tide", "tide.", "moon", "3.5", "潮", "-", ""])).map(" ".join)


@pytest.mark.parametrize(
    ("response", "gold", "f1", "is_match"),
    [
        ("The tide.", "tide", 1.0, 1.0),
        # One of three words is the gold one.
        ("by the strong tide", "tide", 0.5, 0.0),
        ("tide moon", "moon tide", 1.0, 0.0),
        # Repeated words count as often as both sides have them: 1 of 2 and 1 of 3.
        ("tide tide", "tide moon sun", 0.4, 0.0),
        ("No", "Yes", 0.0, 0.0),
        ("$3.5", "35", 1.0, 1.0),
        ("", "tide", 0.0, 0.0),
        # Nothing but an article on both sides.
        ("The", "a", 1.0, 1.0),
        # By character: two of the three, and two of the two.
        ("潮汐表", "潮汐", 0.8, 0.0),
        ("“Tide”…", "tide", 1.0, 1.0),
    ],
)
def test_examples_of_token_f1_and_exact_match(response, gold, f1, is_match):
    assert token_f1(response, gold=gold) == pytest.approx(f1)
    assert exact_match(response, gold=gold) == is_match


@given(ANSWERS, ANSWERS)
def test_token_f1_is_that_of_the_two_multisets(response, gold):
    ours, theirs = Counter(answer_words(response)), Counter(answer_words(gold))
    num_common = sum((ours & theirs).values())
    num_both = sum(ours.values()) + sum(theirs.values())
    assert token_f1(response, gold=gold) == pytest.approx(2 * num_common / num_both if num_both else 1.0)


@given(ANSWERS, ANSWERS)
def test_an_exact_match_is_as_alike_as_can_be(response, gold):
    assert 0 <= rouge_l(response, gold=gold) <= token_f1(response, gold=gold) + 1e-9 <= 1 + 1e-9
    if exact_match(response, gold=gold):
        assert token_f1(response, gold=gold) == 1


def test_examples_of_rouge_l_and_chrf():
    # The longest common subsequence has two words: 2 of 3 on both sides.
    assert rouge_l("moon pulls tide", gold="moon tide turns") == pytest.approx(2 / 3)
    assert rouge_l("潮汐", gold="潮水") == pytest.approx(1 / 2)
    assert chrf("tide", gold="tide") == pytest.approx(1.0)
    assert chrf("abc", gold="xyz") == 0.0


def pair(instruction, response):
    return InstructionPair(instruction=instruction, response=response)


GOLD = [pair("What turns tides?", "moon"), pair("When?", "twice daily")]


def test_equal_sets_of_pairs_are_alike_in_any_order():
    quality = pair_quality(GOLD[::-1], gold=GOLD)
    assert (quality.f1, quality.precision, quality.recall, quality.rouge_l) == pytest.approx((1, 1, 1, 1))
    assert quality.chrf == pytest.approx(1)


def test_a_missing_pair_costs_recall_and_one_too_many_costs_precision():
    missing = pair_quality(GOLD[:1], gold=GOLD)
    assert (missing.precision, missing.recall, missing.f1) == pytest.approx((1, 1 / 2, 2 / 3))
    too_many = pair_quality([*GOLD, pair("Who?", "nobody")], gold=GOLD)
    assert (too_many.precision, too_many.recall, too_many.f1) == pytest.approx((2 / 3, 1, 4 / 5))


def test_pairs_meet_so_that_the_whole_is_most_alike():
    # Alone, the first would take the gold pair that the second equals.
    generated = [pair("What turns tides?", "moon sun"), pair("What turns tides?", "moon")]
    gold = [pair("What turns tides?", "moon"), pair("Why?", "sun")]
    # 4 of 4 words for the second; of "what turns tides moon sun" and "why sun" one word of 5 and 2.
    expected = 1 + 2 / 7
    assert pair_quality(generated, gold=gold).f1 == pytest.approx(2 * expected / 4)


def test_no_pair_is_worth_nothing():
    quality = pair_quality([], gold=GOLD)
    assert (quality.f1, quality.precision, quality.recall, quality.rouge_l, quality.chrf) == (0, 0, 0, 0, 0)


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(st.floats(0, 1), min_size=width, max_size=width), min_size=1, max_size=4)
    )
)
def test_the_assignment_is_the_best_of_all(likeness):
    num_rows, num_columns = len(likeness), len(likeness[0])
    assigned = assign_pairs(likeness)
    assert len(assigned) == min(num_rows, num_columns)
    assert len({row for row, _, _ in assigned}) == len({column for _, column, _ in assigned}) == len(assigned)
    if num_rows <= num_columns:
        every = itertools.permutations(range(num_columns), num_rows)
        best = max(sum(likeness[row][column] for row, column in enumerate(columns)) for columns in every)
    else:
        every = itertools.permutations(range(num_rows), num_columns)
        best = max(sum(likeness[row][column] for column, row in enumerate(rows)) for rows in every)
    assert sum(value for _, _, value in assigned) == pytest.approx(best)
