import pytest

from contracts.records import Document, InstructionPair
from synth_model.evaluation.diversity import describe_pairs, distinct, self_bleu


def document(text, title=None):
    return Document(doc_id="d", source="s", text=text, title=title)


def pair(instruction, response):
    return InstructionPair(instruction=instruction, response=response)


def test_an_example():
    description = describe_pairs(
        [
            (
                document("The moon pulls the water.", title="Tides"),
                [pair("What pulls the water?", "The moon pulls water."), pair("What pulls it?", "Tides, perhaps.")],
            ),
            (document("Nothing."), []),
        ]
    )
    assert description.num_pairs == 2
    assert description.instruction_words == (4 + 3) / 2
    assert description.response_words == (4 + 2) / 2
    # All of "moon", "pulls", "water"; "tides", which stands in the title, but not "perhaps".
    assert description.grounding == pytest.approx((1 + 1 / 2) / 2)
    # what pulls the water it; what-pulls pulls-the the-water pulls-it.
    assert description.distinct_1 == 5 / 7
    assert description.distinct_2 == 4 / 5
    assert description.distinct_openings == 1 / 2
    assert 0 < description.self_bleu < 1


def test_without_pairs_there_is_nothing_to_describe():
    description = describe_pairs([(document("Nothing."), [])])
    assert description.num_pairs == 0
    assert description.instruction_words is description.grounding is description.self_bleu is None
    assert description.distinct_1 is description.distinct_openings is None


def test_an_ngram_needs_its_words():
    assert distinct([["why"], ["who"]], length=2) is None
    assert distinct([["why"], ["why"]], length=1) == 1 / 2


def test_self_bleu_tells_repeated_from_different_instructions():
    assert self_bleu(["What turns the tide?"]) is None
    assert self_bleu(["What turns the tide?"] * 3) == pytest.approx(1.0)
    assert self_bleu(["one two three four five", "six seven eight nine ten"]) == 0.0


def test_self_bleu_is_bounded_and_does_not_depend_on_the_order():
    instructions = [f"Question {number} about tide {number % 7}?" for number in range(300)]
    assert self_bleu(instructions) == self_bleu(instructions[::-1])
    assert self_bleu(instructions) != self_bleu(instructions[:50])
