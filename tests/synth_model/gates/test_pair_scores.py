import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import InstructionPair
from synth_model.gates.pair_scores import content_units, grounding, language_match, text_language

ENGLISH = (
    "The tide turns twice a day because the moon pulls at the water of the sea, and the water follows it around the "
    "earth. Fishermen along the coast have kept tables of it for many generations."
)
KOREAN = (
    "달이 바닷물을 끌어당기기 때문에 조수는 하루에 두 번 바뀐다. "
    "해안의 어부들은 여러 세대에 걸쳐 그 시각을 적은 표를 보관해 왔다."
)
CHINESE = "月亮吸引海水，所以潮汐每天变化两次。沿海的渔民世世代代都保存着记录潮汐时间的表格，并且根据它安排出海的日子。"


def score(response, text):
    return grounding(response, known=content_units(text))


def test_grounding_is_the_share_of_content_that_the_text_holds():
    # Content: tide, turns, weekly (not in the text), because, moon.
    assert score("The tide turns weekly because of the moon.", ENGLISH) == pytest.approx(4 / 5)
    assert score("Fisherman and generation", ENGLISH) == 1.0
    assert score("Bread rises overnight.", ENGLISH) == 0.0
    assert score("42. Yes.", ENGLISH) == 1.0
    # Pairs of neighbouring characters: 潮汐 汐每 每天 are in the text, 天三 三次 are not.
    assert score("潮汐每天三次", CHINESE) == pytest.approx(3 / 5)
    # So is Hangul, whose words end differently in each place: 조수 and 바뀐 are in the text, 수가 is not.
    assert score("조수가 바뀐", KOREAN) == pytest.approx(2 / 3)
    assert score("빵이", KOREAN) == 0.0


@given(response=st.text(max_size=60), text=st.text(max_size=60))
def test_grounding_is_a_share_and_whole_for_what_the_text_says_itself(response, text):
    assert 0 <= score(response, text) <= 1
    assert score(response, f"{response} {text}") == 1


def match(instruction, response, text, *, min_characters=40):
    pair = InstructionPair(instruction=instruction, response=response)
    language = text_language(text, min_characters=min_characters)
    return language_match(pair, text=language, min_characters=min_characters)


def test_a_pair_in_the_language_of_its_text_matches():
    asked = "How often does the tide turn along the coast in a day?"
    assert match(asked, "Twice.", ENGLISH) > 0.9
    assert match("조수는 하루에 몇 번 바뀌나요?", "하루에 두 번 바뀐다.", KOREAN) > 0.9
    assert match("潮汐每天变化几次？", "每天变化两次。", CHINESE) > 0.9


def test_one_side_in_another_language_is_enough_to_fail():
    asked = "How often does the tide turn along the coast in a day?"
    german = "Die Gezeiten wechseln zweimal am Tag, weil der Mond das Wasser des Meeres anzieht."
    assert match(asked, german, ENGLISH) < 0.1
    assert match(german, "Twice a day.", ENGLISH) < 0.1
    assert text_language(german, min_characters=40).language == "de"


def test_a_short_side_is_judged_by_its_script_alone():
    # Too short for the classifier, which calls the first one anything but English.
    assert match("Bon?", "Oui.", ENGLISH) == 1
    assert match("When?", "하루에 두 번", ENGLISH) == 0
    assert match("潮汐", "twice", CHINESE) == 0
    assert match("When?", "Ω 3", ENGLISH) == 0
    assert match("When (GMT)?", "두 번", KOREAN + " GMT") == 1
    # What the text holds in another script may be named; figures have none.
    assert match("누구?", "Napoléon 1815", KOREAN + " Napoleon") == 1
    # Japanese mixes three scripts; full-width letters are Latin ones.
    assert match("潮", "シオ", "潮が満ちる。") == 1
    assert match("When?", "Ｔｗｉｃｅ", ENGLISH) == 1


@given(
    instruction=st.text(min_size=1, max_size=80), response=st.text(min_size=1, max_size=80), text=st.text(max_size=80)
)
def test_a_language_match_is_a_probability(instruction, response, text):
    assert 0 <= match(instruction, response, text) <= 1 + 1e-9
    assert match(instruction, response, f"{instruction}{response}{text}", min_characters=10**6) == 1
