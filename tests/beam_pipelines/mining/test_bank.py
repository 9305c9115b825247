"""The shipped bank fits its schema and its purpose; a bad one is refused with the place of the fault."""

import re

import pytest
import yaml

from beam_pipelines.mining.bank import CONNECTIVES, FORMS, KINDS, RELATIONS, load_mining_bank, parse_mining_bank
from contracts.records import InstructionPair
from templates.pair_kinds import OPTION_MARK, OPTIONS_MARK, MultipleChoice, recognize_pair
from tests.conftest import REPOSITORY

CONTENT = (REPOSITORY / "beam_pipelines" / "mining_bank" / "english.yaml").read_text("utf-8")


def changed(change):
    raw = yaml.safe_load(CONTENT)
    change(raw)
    return yaml.safe_dump(raw, allow_unicode=True)


def test_the_shipped_bank_is_large_enough_for_variety():
    bank = load_mining_bank("english")
    assert bank.language == "en"
    assert set(bank.wordings) == set(FORMS)
    assert min(len(wordings) for wordings in bank.wordings.values()) >= 12
    assert min(len(bank.connectives[name]) for name in CONNECTIVES) >= 8
    assert {form for relation in RELATIONS.values() for form in relation.forms} == set(FORMS)
    assert len(KINDS) == 6


def test_no_wording_points_to_where_the_text_stands():
    for wordings in load_mining_bank("english").wordings.values():
        for wording in wordings:
            words = " ".join(wording.instruction.literals).lower()
            assert not re.search(r"\b(above|below|preceding|previous)\b", words), words


def test_every_option_wording_renders_as_multiple_choice():
    wordings = [wording for entries in load_mining_bank("english").wordings.values() for wording in entries]
    asked = [wording for wording in wordings if wording.options]
    assert len(asked) >= 24
    for wording in asked:
        instruction = wording.instruction.fill(first="The tide rises in the bay.", second="the boats float at noon.")
        for option in wording.options.values():
            lines = "\n".join(OPTION_MARK + other for other in wording.options.values())
            pair = InstructionPair(instruction=instruction + OPTIONS_MARK + lines, response=option)
            recognized = recognize_pair(pair)
            assert isinstance(recognized, MultipleChoice), pair
            assert recognized.options[recognized.answer_index] == option


def test_a_bank_of_ones_own_is_read_from_a_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(changed(lambda raw: raw.update(language="de")), "utf-8")
    bank = load_mining_bank(str(path))
    assert bank.language == "de"
    assert bank.sha256 != load_mining_bank("english").sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("no_terms"), "exactly the keys"),
        (lambda raw: raw.update(language=7), "language must be a code"),
        (lambda raw: raw.update(no_terms=[" it"]), "no_terms must be a list of phrases"),
        (lambda raw: raw["connectives"].pop("cause"), "connectives must be a mapping"),
        (lambda raw: raw["connectives"].update(neutral=["Thus,"]), "'Thus,' stands for both entailment and neutral"),
        (lambda raw: raw["connectives"].update(cause=["due to", "due to"]), "connectives.cause has an empty phrase or"),
        (lambda raw: raw["wordings"].update(title_of_text=[]), "wordings.title_of_text must be a list"),
        (lambda raw: raw["wordings"].update(title_of_text=["{title}?"]), "wordings.title_of_text, entry 1: the instr"),
        (lambda raw: raw["wordings"].update(title_of_text=["Title?"] * 2), "has an instruction twice"),
        (lambda raw: raw["wordings"].update(cause_of_effect=["Why?"]), "must have exactly the fields ['effect']"),
        (lambda raw: raw["wordings"].update(cause_of_effect=["Why {effect} {0}?"]), "a brace outside a field"),
        (lambda raw: raw["wordings"].update(cause_of_effect=[True]), "an instruction is a text, not True"),
        (
            lambda raw: raw["wordings"]["paraphrase_label"][0].update(difference=False),
            "wordings.paraphrase_label, entry 1: an option is a text of one line; put words such as Yes in quotes",
        ),
        (
            lambda raw: raw["wordings"]["paraphrase_label"][0].update(difference="Yes", restatement="Yes"),
            "two relations have the same option",
        ),
        (lambda raw: raw["wordings"]["paraphrase_label"][0].pop("difference"), "a wording must be a mapping"),
    ],
)
def test_a_bad_bank_is_refused_with_its_place(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_mining_bank(changed(change), origin="mine.yaml")


def test_what_is_no_bank_is_refused():
    with pytest.raises(ValueError, match="no mining bank 'klingon': give one of"):
        load_mining_bank("klingon")
    for content in ("- a list", "a: [", ""):
        with pytest.raises(ValueError, match=r"The mining bank 'x\.yaml'"):
            parse_mining_bank(content, origin="x.yaml")
