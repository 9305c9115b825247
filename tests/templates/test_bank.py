import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pytest
import yaml

from templates import bank as bank_module
from templates.bank import ONLY, SECTIONS, bank_sha256, load_bank, parse_bank
from templates.option_labels import LABELS
from templates.patterns import Pattern


def bank_files() -> dict[str, str]:
    folder = resources.files("templates").joinpath("bank")
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}


def wording(pattern: Pattern) -> str:
    return pattern.fill(**{name: "{" + name + "}" for name in pattern.fields})


def test_the_bank_holds_what_its_files_hold() -> None:
    """Oracle: the files read by ``yaml.safe_load``."""
    expected: dict[str, Any] = {}
    for content in bank_files().values():
        expected |= yaml.safe_load(content)
    assert {
        section: [
            wording(entry[ONLY]) if set(entry) == {ONLY} else {part: wording(value) for part, value in entry.items()}
            for entry in entries
        ]
        for section, entries in load_bank().items()
    } == expected


@pytest.mark.parametrize(
    ("section", "at_least"),
    [
        ("free_form", 80),
        ("multiple_choice", 25),
        ("chain_of_thought", 60),
        ("multiple_choice_chain_of_thought", 60),
        ("option_styles", 40),
        ("option_lists", 10),
        ("numbered", 12),
        ("inline_few_shot", 20),
        ("next_turn", 15),
        ("dialogue_speakers", 40),
        ("dialogue_markers", 40),
        ("text_first", 30),
        ("pairs_first", 15),
        ("dialogue_text_first", 12),
        ("dialogue_pairs_first", 8),
        ("separators", 10),
    ],
)
def test_the_bank_is_wide(section: str, at_least: int) -> None:
    assert len(load_bank()[section]) >= at_least


@pytest.mark.parametrize(
    "section",
    [
        "free_form",
        "multiple_choice",
        "chain_of_thought",
        "multiple_choice_chain_of_thought",
        "text_first",
        "pairs_first",
        "dialogue_text_first",
        "dialogue_pairs_first",
    ],
)
def test_no_wording_is_another_with_one_word_swapped(section: str) -> None:
    """Two wordings with the same signs around as many words differ in at least two of the words."""
    of_form: dict[str, list[list[str]]] = {}
    for entry in load_bank()[section]:
        whole = wording(entry[ONLY]).lower()
        form = re.sub(r"(?<!\{)\b[a-z']+\b(?!\})", "w", whole)
        words = re.findall(r"(?<!\{)\b[a-z']+\b(?!\})", whole)
        for other in of_form.setdefault(form, []):
            assert sum(one != two for one, two in zip(words, other, strict=True)) >= 2, whole
        of_form[form].append(words)
    assert len(of_form) > len(load_bank()[section]) / 2, "the wordings differ in more than words"


def test_no_wording_points_to_a_place_that_depends_on_the_layout() -> None:
    for section, entries in load_bank().items():
        for entry in entries:
            for pattern in entry.values():
                assert not re.search(r"\b(above|below|overleaf)\b", wording(pattern)), (section, wording(pattern))


def test_an_answer_names_only_labels_that_its_options_show() -> None:
    for entry in load_bank()["option_styles"]:
        answer_labels = set(entry["answer"].fields) & set(LABELS)
        assert answer_labels <= set(entry["option"].fields), wording(entry["answer"])
        assert len(set(entry["option"].fields) & set(LABELS)) <= 1, wording(entry["option"])


def test_separators_start_and_end_a_line_and_examples_are_set_off_at_least_as_far_as_pairs() -> None:
    for entry in load_bank()["separators"]:
        pairs, examples = wording(entry["pairs"]), wording(entry["examples"])
        assert pairs.startswith("\n\n")
        assert pairs.endswith("\n\n")
        assert examples.startswith("\n\n")
        assert examples.endswith("\n\n")
        assert len(examples) >= len(pairs)


def test_no_wording_depends_on_trailing_space() -> None:
    for section, entries in load_bank().items():
        for entry in entries:
            for part, pattern in entry.items():
                assert part == "between" or not re.search(r" \n| $", wording(pattern)), (section, wording(pattern))


def changed(file: str, old: str, new: str) -> dict[str, str]:
    files = bank_files()
    assert old in files[file], old
    return {**files, file: files[file].replace(old, new, 1)}


FIRST_FREE_FORM = '  - "{question}\\n{response}"\n'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (changed("pairs.yaml", FIRST_FREE_FORM, '  - "{question}"\n'), "pairs.yaml, line 8, section 'free_form': the "),
        (changed("pairs.yaml", FIRST_FREE_FORM, '  - "{question}"\n'), "lacks the field 'response'"),
        (changed("pairs.yaml", FIRST_FREE_FORM, '  - "{question} {reply} {response}"\n'), "unknown field 'reply'"),
        (changed("pairs.yaml", FIRST_FREE_FORM, '  - "{question} {response"\n'), "brace outside a field"),
        (changed("pairs.yaml", FIRST_FREE_FORM, "  - 17\n"), "a wording is a string"),
        (changed("pairs.yaml", FIRST_FREE_FORM, FIRST_FREE_FORM * 2), "'free_form': repeats the entry of line 8"),
        (changed("pairs.yaml", "free_form:", "free_from:"), "no such section; pairs.yaml holds free_form"),
        (changed("pairs.yaml", "multiple_choice:", "free_form:"), "the section stands twice"),
        (changed("pairs.yaml", "free_form:\n", "free_form: [\n"), "pairs.yaml is not valid YAML"),
        (changed("openings.yaml", "pairs_first:\n", "pairs_first: []\nother:\n"), "a list of at least one entry"),
        (changed("openings.yaml", '"{text}\\n\\n{pairs}"', '"{pairs}\\n\\n{text}"'), "in the order text, pairs"),
        (changed("separators.yaml", ', examples: "\\n\\n"', ""), "has the parts pairs, not pairs, examples"),
        (changed("separators.yaml", '{pairs: "\\n\\n", examples: "\\n\\n"}', '"x"'), "a mapping with the parts pairs"),
        (changed("options.yaml", 'answer: "({upper})"', 'answer: "it"'), "needs one of the fields lower, number"),
        (changed("reasoning.yaml", "\\n{cue}", ""), "lacks the field 'cue'"),
        (changed("next_turn.yaml", "next: ", "after: "), "has the parts text_first, pairs_first, first, after, "),
        (changed("inline_few_shot.yaml", '"{examples}\\n{posed}"', '"{posed}\\n{examples}"'), "order examples, posed"),
        ({**bank_files(), "separators.yaml": "- a list"}, "separators.yaml: a file of the bank is a mapping"),
        ({**bank_files(), "extra.yaml": "a: [b]"}, "declared with its sections"),
        ({**bank_files(), "openings.yaml": 'text_first: ["{text} {pairs}"]'}, "the section 'pairs_first' is missing"),
    ],
)  # fmt: skip
def test_a_bad_bank_is_refused_with_its_place(files: Mapping[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_bank(files)


def test_every_section_stands_in_its_file() -> None:
    assert {section.file for section in SECTIONS.values()} == set(bank_files())


def test_the_hash_changes_with_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_of(files: dict[str, str]) -> str:
        monkeypatch.setattr(bank_module, "_bank_files", lambda: files)
        bank_sha256.cache_clear()
        return bank_sha256()

    hashes = [hash_of(bank_files())] + [
        hash_of({**bank_files(), name: content + "# changed\n"}) for name, content in bank_files().items()
    ]
    monkeypatch.undo()
    bank_sha256.cache_clear()
    assert bank_sha256() == hashes[0]
    assert len(set(hashes)) == len(bank_files()) + 1
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
