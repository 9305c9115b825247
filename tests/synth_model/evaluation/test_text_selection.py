import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Document, Example, InstructionPair
from synth_model.evaluation.known_texts import find_known_texts
from synth_model.evaluation.text_selection import check_splits, select_texts


def example(number, *, dataset="tides", text=None, num_pairs=3):
    return Example(
        document=Document(doc_id=f"{dataset}-{number}", source=dataset, text=text or f"Text {number} of {dataset}."),
        pairs=tuple(InstructionPair(instruction=f"Q{i}?", response=f"A{i}.") for i in range(num_pairs)),
    )


def select(examples, *, tuned_on=(), fits=lambda gold, questions: True, **changes):
    settings = {"split": "unseen", "max_texts": 4, "max_questions": 2, "num_examples": 2, "seed": 0} | changes
    known = find_known_texts((example.document.text for example in examples), tuned_on=tuned_on)
    return select_texts(examples, known=known, fits=fits, **settings)


def test_a_larger_sample_holds_the_smaller_one_and_the_order_of_the_corpus_does_not_matter():
    examples = [example(number) for number in range(30)]
    few, _ = select(examples, max_texts=5)
    many, _ = select(examples[::-1], max_texts=12)
    assert [text.gold for text in many[:5]] == [text.gold for text in few]
    assert few == many[:5]
    assert select(examples, max_texts=5, seed=1)[0] != few


def test_texts_that_a_system_was_tuned_on_are_left_out_whatever_their_case_and_space():
    examples = [example(number) for number in range(6)]
    texts, (accounts,) = select(
        examples, tuned_on=["TEXT 1\n of tides.", "Text 4 of tides.", "Another text."], max_texts=9
    )
    assert {text.gold.document.doc_id for text in texts} == {"tides-0", "tides-2", "tides-3", "tides-5"}
    assert (accounts.num_texts, accounts.num_tuned_on, accounts.num_selected) == (6, 2, 4)
    # Nor do they stand before another text.
    shown = {example.document.doc_id for text in texts for example in text.examples}
    assert shown <= {"tides-0", "tides-2", "tides-3", "tides-5"}


def test_a_second_copy_of_a_text_is_left_out():
    examples = [example(0), example(1, text="text 0  of tides."), example(2)]
    texts, (accounts,) = select(examples)
    assert len(texts) == 2
    assert accounts.num_duplicates == 1
    # The same text in another dataset is another example.
    both, _ = select([example(0), example(0, dataset="moons", text="Text 0 of tides.")])
    assert len(both) == 2


def test_a_text_that_does_not_fit_makes_room_for_the_next():
    examples = [example(number) for number in range(10)]
    (first, *rest), _ = select(examples, max_texts=4)
    texts, (accounts,) = select(examples, max_texts=3, fits=lambda gold, questions: gold != first.gold)
    assert [text.gold for text in texts] == [text.gold for text in rest]
    assert (accounts.num_too_long, accounts.num_selected, accounts.num_not_drawn) == (1, 3, 6)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["tides", "moons"])), max_size=12),
    st.integers(1, 5),
    st.sets(st.integers(0, 5)),
    st.sets(st.integers(0, 5)),
)
def test_every_text_is_accounted_for(members, max_texts, tuned_on, too_long):
    examples = [
        example(f"{index}", dataset=dataset, text=f"Text {number}.") for index, (number, dataset) in enumerate(members)
    ]
    texts, accounts = select(
        examples,
        max_texts=max_texts,
        tuned_on=[f"Text {number}." for number in tuned_on],
        fits=lambda gold, questions: int(gold.document.text.strip(".").split()[1]) not in too_long,
    )
    assert sum(account.num_texts for account in accounts) == len(examples)
    for account in accounts:
        out = account.num_tuned_on + account.num_duplicates + account.num_too_long + account.num_not_drawn
        assert out + account.num_selected == account.num_texts
        of_dataset = [text for text in texts if text.dataset == account.dataset]
        assert len(of_dataset) == account.num_selected <= max_texts
        numbers = [int(text.gold.document.text.strip(".").split()[1]) for text in of_dataset]
        assert len(set(numbers)) == len(numbers)
        assert not {*numbers} & (tuned_on | too_long)


def test_examples_are_other_texts_of_the_dataset_drawn_for_each_text():
    examples = [example(number, dataset=dataset) for number in range(20) for dataset in ("tides", "moons")]
    texts, _ = select(examples, max_texts=20)
    for text in texts:
        assert len(text.examples) == 2
        assert {shown.document.source for shown in text.examples} == {text.dataset}
        assert text.gold not in text.examples
        assert text.examples[0] != text.examples[1]
    assert len({text.examples for text in texts}) > 30
    # A dataset of two texts has one other.
    assert all(len(text.examples) == 1 for text in select(examples[:4])[0])


def test_questions_are_drawn_by_hash_and_stand_in_their_order():
    examples = [example(number, num_pairs=6) for number in range(20)]
    texts, _ = select(examples, max_texts=20, max_questions=3)
    assert all(len(text.questions) == 3 for text in texts)
    assert all(list(text.questions) == [pair for pair in text.gold.pairs if pair in text.questions] for text in texts)
    assert len({text.questions for text in texts}) > 5
    assert all(len(text.questions) == 6 for text in select(examples, max_questions=9)[0])


def test_what_a_dataset_is_called_must_be_true():
    check_splits(seen=["squad"], unseen=["tides"], tuned_on=frozenset({"squad", "coqa"}))
    check_splits(seen=["squad"], unseen=["tides"], tuned_on=frozenset())
    with pytest.raises(ValueError, match="squad are given as seen and as unseen"):
        check_splits(seen=["squad"], unseen=["squad"], tuned_on=frozenset())
    with pytest.raises(ValueError, match="tides are given as unseen, but are in tuning_corpora"):
        check_splits(seen=[], unseen=["tides"], tuned_on=frozenset({"tides"}))
    with pytest.raises(ValueError, match="tides are given as seen, but are not in tuning_corpora"):
        check_splits(seen=["tides"], unseen=[], tuned_on=frozenset({"squad"}))
