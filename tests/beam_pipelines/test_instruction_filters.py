import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.instruction_filters import (
    InstructionFilterConfig,
    check_languages,
    language_probability,
    refuse_instruction,
    refuse_response,
    repetition,
)
from synth_model.generation import Completion

FILTERS = InstructionFilterConfig()
GOOD = "Explain to a child why the moon seems to change its shape in the course of a month."
GERMAN = "Erkläre einem Kind, warum der Mond im Laufe eines Monats seine Form zu ändern scheint."


def completion(text, *, finish_reason="stop"):
    return Completion(text=text, finish_reason=finish_reason, num_prompt_tokens=5, num_new_tokens=7)


def instruction_reason(text, *, filters=FILTERS, **settings):
    refusal = refuse_instruction(completion(text, **settings), filters=filters, special_tokens=("<|end|>",))
    return None if refusal is None else refusal.reason


def response_refusal(text, *, instruction=GOOD, filters=FILTERS):
    return refuse_response(completion(text), instruction=instruction, filters=filters, special_tokens=("<|end|>",))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        (f"\n {GOOD}\n", None),
        ("", "empty"),
        (" \n\t", "empty"),
        (f"{GOOD} <|end|>", "special_token"),
        ("Sing! ", "too_short"),
        ("Sing a sad song. " * 200, "too_long"),
        ("Sing a song. " * 20, "repetitive"),
        (GERMAN, None),
    ],
)
def test_instructions_are_refused_for_what_is_wrong_with_them(text, reason):
    assert instruction_reason(text) == reason
    assert instruction_reason(text, finish_reason="length") == ("empty" if reason == "empty" else "cut_off")


def test_responses_have_bounds_of_their_own():
    assert response_refusal("42.") is None
    assert response_refusal("4").reason == "too_short"
    assert response_refusal("It is so. " * 900).reason == "too_long"
    assert response_refusal("It is so, " * 9).reason == "repetitive"
    assert "repetition 0." in response_refusal("It is so, " * 9).detail


def test_the_language_is_that_of_instruction_and_response_together():
    refusal = response_refusal("Weil die Sonne ihn von verschiedenen Seiten beleuchtet.", instruction=GERMAN)
    assert refusal.reason == "other_language"
    assert refusal.detail.startswith("probability 0.0")
    german = InstructionFilterConfig(languages=["de", "fr"])
    assert response_refusal("Weil die Sonne ihn beleuchtet.", instruction=GERMAN, filters=german) is None
    assert response_refusal("Because the sun lights it.", filters=german).reason == "other_language"
    anything = InstructionFilterConfig(languages=[])
    assert response_refusal("Weil die Sonne ihn beleuchtet.", instruction=GERMAN, filters=anything) is None


def test_probabilities_of_languages_add_up():
    alone = [language_probability(GOOD, languages=[code]) for code in ("en", "de")]
    assert alone[0] > 0.99
    assert language_probability(GOOD, languages=["en", "de"]) == pytest.approx(sum(alone))
    assert language_probability(GOOD, languages=[]) == 0


def test_unknown_languages_are_refused():
    check_languages(["en", "zh"])
    check_languages([])
    with pytest.raises(ValueError, match=r"filters\.languages has \['klingon'\]; known codes are .*en"):
        check_languages(["en", "klingon"])


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("one two", 0),
        ("one two three", 0),
        ("a b c a b c", 1 / 4),
        ("A, b; c. a b C!", 1 / 4),
        ("go go go go go", 2 / 3),
        ("天地天地天地", 1 / 2),
    ],
)
def test_repetition_by_hand(text, share):
    assert repetition(text) == pytest.approx(share)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=30))
def test_repetition_counts_every_trigram_that_was_there_before(words):
    trigrams = [words[start : start + 3] for start in range(len(words) - 2)]
    repeated = sum(trigram in trigrams[:position] for position, trigram in enumerate(trigrams))
    assert repetition(" ".join(words)) == pytest.approx(repeated / max(1, len(trigrams)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_instruction_characters": 0}, "filters.min_instruction_characters is 0"),
        ({"max_response_characters": 1}, "filters.max_response_characters 1"),
        ({"max_repetition": 1.1}, "filters.max_repetition is 1.1"),
        ({"min_language_probability": -0.1}, "filters.min_language_probability is -0.1"),
        ({"max_similarity": 0.0}, "filters.max_similarity is 0.0"),
    ],
)
def test_impossible_bounds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        InstructionFilterConfig(**values)
