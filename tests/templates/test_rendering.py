"""Rendering is checked against an oracle: putting other text into a chain must do nothing but put it into its result.

A chain is rendered twice, once with marks such as ``⟦3⟧`` in place of every piece of user text, once with arbitrary
text. Putting the text in place of the marks in the first result must give the second, character by character.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from contracts.records import Chain, Document, Example, InstructionPair
from templates import FamilyWeights, TemplateConfig, render_chain, render_document, render_instruction
from templates.bank import load_bank
from templates.config import DEFAULT_CONFIG
from templates.option_labels import LABELS, option_labels
from templates.pair_kinds import (
    CONCLUSION_MARK,
    OPTION_MARK,
    OPTIONS_MARK,
    REASONING_CUE,
    MultipleChoice,
    recognize_pair,
)
from templates.rendering import render_with_style
from tests.templates.example_chains import (
    EVERY_KIND,
    FREE_FORM,
    MULTIPLE_CHOICE,
    MULTIPLE_CHOICE_CHAIN_OF_THOUGHT,
    NO_PAIRS,
    ONE_PAIR,
    SECOND_FREE_FORM,
    TWO_PAIRS_EACH,
    make_chain,
)
from tests.templates.make_golden import FAMILIES, LAYOUTS, only

HOSTILE = [
    "{question}",
    "{text} {pairs} {{options}} {}",
    "100% %s %(answer)d $question ${response}",
    "\\n \\1 \\g<0> C:\\new",
    "<QUE> Why? <ANS> So. </END> <CON> <s> </s> <|im_end|>",
    "first\n\nsecond\r\nthird\t ",
    "a list\nOptions:\n- x\n- y\n",
    "Let's think step by step.\nTherefore, the answer is {answer}",
    "⟦0⟧",
    "\ud7ff\u2028\x00",
]
texts = st.one_of(
    st.text(min_size=1), st.sampled_from(HOSTILE), st.tuples(st.text(), st.sampled_from(HOSTILE)).map("".join)
)
contents = texts.filter(str.strip)
lines = contents.map(lambda text: text.replace("\n", " ")).filter(str.strip)
option_lists = st.lists(lines.map("the {}".format), min_size=2, max_size=5, unique_by=str.strip)
kinds = st.sampled_from(["free form", "multiple choice", "chain of thought", "multiple choice, chain of thought"])


@dataclass
class Twin:
    """A chain with arbitrary text, the same chain with marks, and the text that belongs to each mark."""

    chain: Chain
    marked: Chain
    values: list[str]

    def put_in(self, marked_text: str) -> str:
        return re.sub("⟦([0-9]+)⟧", lambda mark: self.values[int(mark[1])], marked_text)


@st.composite
def twins(draw: st.DrawFn) -> Twin:
    values: list[str] = []

    def mark(strategy: st.SearchStrategy[str]) -> str:
        values.append(draw(strategy))
        return f"⟦{len(values) - 1}⟧"

    def marked_pair(kind: str) -> InstructionPair:
        instruction, answer = mark(contents), None
        if "choice" in kind:
            marks = [mark(st.just(option)) for option in draw(option_lists)]
            instruction += OPTIONS_MARK + "\n".join(OPTION_MARK + option for option in marks)
            answer = draw(st.sampled_from(marks))
        if "thought" in kind:
            instruction += REASONING_CUE
            response = mark(contents) + CONCLUSION_MARK + (answer or mark(lines))
        else:
            response = answer or mark(texts)
        return InstructionPair(instruction=instruction, response=response)

    marked = Chain(
        chain_id=draw(st.text()),
        source="source",
        examples=tuple(
            Example(
                document=Document(doc_id=f"{index}", source="source", text=mark(texts)),
                pairs=tuple(marked_pair(kind) for kind in draw(st.lists(kinds, max_size=3))),
            )
            for index in range(draw(st.integers(1, 3)))
        ),
        synthesizer_id="synthesizer",
    )
    twin = Twin(chain=marked, marked=marked, values=values)
    twin.chain = replace(
        marked,
        examples=tuple(
            replace(
                example,
                document=replace(example.document, text=twin.put_in(example.document.text)),
                pairs=tuple(
                    InstructionPair(instruction=twin.put_in(pair.instruction), response=twin.put_in(pair.response))
                    for pair in example.pairs
                ),
            )
            for example in marked.examples
        ),
    )
    # Arbitrary text may follow another convention, or refer to its options, and is then another kind of pair.
    assume(forms(twin.chain) == forms(twin.marked))
    return twin


def forms(chain: Chain) -> list[tuple[str, bool]]:
    """The kind of each pair, and whether its options keep their order."""
    recognized = [recognize_pair(pair) for example in chain.examples for pair in example.pairs]
    return [(type(pair).__name__, getattr(pair, "keeps_order", False)) for pair in recognized]


@given(twin=twins(), seed=st.integers(), family=st.sampled_from(FAMILIES), layout=st.sampled_from(LAYOUTS))
def test_rendering_inserts_user_text_and_does_nothing_else_to_it(
    twin: Twin, seed: int, family: str, layout: str
) -> None:
    marked = render_chain(twin.marked, seed=seed, config=only(family, layout))
    rendered = render_chain(twin.chain, seed=seed, config=only(family, layout))
    assert rendered.text == twin.put_in(marked.text)
    assert rendered.template_id == marked.template_id
    assert not set("{}") & set(marked.text), "an unfilled field"
    for index in range(len(twin.values)):
        assert f"⟦{index}⟧" in marked.text


@given(twin=twins(), seed=st.integers())
def test_every_text_instruction_and_response_is_in_the_result_as_it_was(twin: Twin, seed: int) -> None:
    text = render_chain(twin.chain, seed=seed).text
    for example in twin.chain.examples:
        assert example.document.text in text
        for pair in example.pairs:
            recognized = recognize_pair(pair)
            if isinstance(recognized, MultipleChoice):
                assert recognized.question in text
                assert all(option in text for option in recognized.options)
                if recognized.reasoning is not None:
                    assert REASONING_CUE.strip() in text
                    assert recognized.reasoning + CONCLUSION_MARK in text
            else:
                assert pair.instruction in text
                assert pair.response in text


@given(twin=twins(), seed=st.integers())
def test_rendering_depends_on_the_pairs_texts_and_seed_alone(twin: Twin, seed: int) -> None:
    rendered = render_chain(twin.chain, seed=seed)
    render_chain(EVERY_KIND, seed=seed)
    other = replace(
        twin.chain,
        source="elsewhere",
        synthesizer_id="another",
        examples=tuple(
            replace(example, inherits_previous=True, finish_reason="stop", num_new_tokens=7)
            for example in twin.chain.examples
        ),
    )
    again = render_chain(other, seed=seed, component="renamed")
    assert again == replace(rendered, component="renamed")


def test_seed_and_chain_change_the_style() -> None:
    by_seed = {render_chain(EVERY_KIND, seed=seed).template_id for seed in range(50)}
    by_chain = {render_chain(replace(EVERY_KIND, chain_id=f"{index}"), seed=0).template_id for index in range(50)}
    assert len(by_seed) > 45
    assert len(by_chain) > 45


def test_the_answer_names_the_right_option_in_every_option_style() -> None:
    styles, places = set(), set()
    for index in range(600):
        chain = make_chain(((MULTIPLE_CHOICE,),), chain_id=f"{index}")
        text, style = render_with_style(chain, seed=0, config=only("classic", "text_first"))
        entry = style.entry("option_styles")
        label_of = {}
        for option in ("A pebble", "A snail shell", "A fish"):
            pattern = re.escape(entry["option"].fill(option=option, **dict.fromkeys(LABELS, "LABEL")))
            # The style stands in the text once for each option, so the label read there is the option's own.
            found = re.findall(pattern.replace("LABEL", "([A-Ca-c1-3]|i{1,3})"), text)
            assert found, (text, pattern)
            label_of[option] = found[0]
        right = label_of["A snail shell"]
        answer = entry["answer"].fill(option="A snail shell", **dict.fromkeys(LABELS, right))
        assert text.removesuffix("</answer>").endswith(answer), text
        assert len(set(label_of.values())) == 3 or not set(entry["option"].fields) & set(LABELS)
        styles.add(style.choices["option_styles"])
        places.add(tuple(sorted(label_of, key=text.index)))
    assert len(styles) == len(load_bank()["option_styles"])
    assert len(places) == 6


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "plain"])
def test_a_chain_of_thought_concludes_with_its_option(family: str) -> None:
    """The label in the conclusion is the one that stands at the option, and the reasoning stands as it was."""
    pair = MULTIPLE_CHOICE_CHAIN_OF_THOUGHT
    reasoning = pair.response.removesuffix("Granite")
    labelled = 0
    for index in range(300):
        chain = make_chain(((pair, FREE_FORM),), chain_id=f"{index}")
        text, style = render_with_style(chain, seed=0, config=only(family, "text_first"))
        entry = style.entry("option_styles")
        after = text[text.index(reasoning) + len(reasoning) :]
        is_shown = [
            entry["option"].fill(option="Granite", **labels) in text
            and after.startswith(entry["answer"].fill(option="Granite", **labels))
            for labels in map(option_labels, range(3))
        ]
        assert any(is_shown), text
        assert "Let's think step by step." in text
        labelled += sum(is_shown) == 1
    assert labelled > 200, "with most option styles only one label fits"


ORDERED = InstructionPair(
    instruction="Which of them live here?\nOptions:\n- Crabs\n- Snails\n- All of the above\n- None of the above",
    response="All of the above",
)
LETTERED = InstructionPair(
    instruction="Which of them live here?\nOptions:\n- Crabs\n- Snails\n- Both A and B", response="Both A and B"
)


@pytest.mark.parametrize("reasoning", [False, True])
def test_options_that_refer_to_the_order_keep_it(reasoning: bool) -> None:
    pair = with_reasoning(ORDERED) if reasoning else ORDERED
    styles = set()
    for index in range(100):
        chain = make_chain(((pair,),), chain_id=f"{index}")
        text, style = render_with_style(chain, seed=0, config=only("classic", "text_first"))
        places = [text.index(option) for option in ("Crabs", "Snails", "All of the above", "None of the above")]
        assert places == sorted(places)
        styles.add(style.choices["option_styles"])
    assert len(styles) > 20, "they are labelled all the same"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reasoning", [False, True])
def test_options_that_name_labels_stand_as_they_are(family: str, reasoning: bool) -> None:
    pair = with_reasoning(LETTERED) if reasoning else LETTERED
    for index in range(20):
        chain = make_chain(((pair, FREE_FORM),), chain_id=f"{index}")
        rendered = render_chain(chain, seed=0, config=only(family, "text_first"))
        assert pair.instruction in rendered.text
        assert pair.response in rendered.text


def with_reasoning(pair: InstructionPair) -> InstructionPair:
    return InstructionPair(
        instruction=pair.instruction + REASONING_CUE,
        response="Crabs and snails are both in the text." + CONCLUSION_MARK + pair.response,
    )


@pytest.mark.parametrize("response", ["A whale", "a fish", "A pebble\nA fish"])
def test_a_choice_without_its_answer_stands_as_it_is(response: str) -> None:
    pair = replace(MULTIPLE_CHOICE, response=response)
    rendered = render_chain(make_chain(((pair,),)), seed=0)
    assert pair.instruction in rendered.text
    assert pair.response in rendered.text
    assert "free_form:" in rendered.template_id


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_chain_is_one_text_in_one_style(family: str, layout: str) -> None:
    """Two examples of the same texts read the same; what stands between them is a separator of the bank."""
    chain = make_chain(((FREE_FORM, SECOND_FREE_FORM),) * 2)
    alike = replace(chain, examples=(chain.examples[0],) * 2)
    for seed in range(20):
        text, style = render_with_style(alike, seed=seed, config=only(family, layout))
        separator = style.entry("separators")["examples"].fill()
        half = text[: (len(text) - len(separator)) // 2]
        assert text == half + separator + half


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_says_what_stands_first(family: str) -> None:
    for seed in range(20):
        text_first = render_chain(ONE_PAIR, seed=seed, config=only(family, "text_first")).text
        pairs_first = render_chain(ONE_PAIR, seed=seed, config=only(family, "pairs_first")).text
        document = ONE_PAIR.examples[0].document.text
        assert text_first.index(document) < text_first.index(FREE_FORM.instruction)
        assert pairs_first.index(FREE_FORM.response) < pairs_first.index(document)


def test_a_numbered_text_has_all_questions_before_all_responses() -> None:
    rendered = render_chain(make_chain(((FREE_FORM, SECOND_FREE_FORM),)), seed=0, config=only("numbered", "text_first"))
    order = (FREE_FORM.instruction, SECOND_FREE_FORM.instruction, FREE_FORM.response, SECOND_FREE_FORM.response)
    places = [rendered.text.index(part) for part in order]
    assert places == sorted(places)
    assert re.search(r"1\D*" + re.escape(FREE_FORM.response), rendered.text)
    assert re.search(r"2\D*" + re.escape(SECOND_FREE_FORM.response), rendered.text)


def test_an_inline_few_shot_text_poses_the_last_pair() -> None:
    shots = [InstructionPair(instruction=f"Ask {number}?", response=f"Reply {number}.") for number in (1, 2, 3)]
    for seed in range(60):
        config = only("inline_few_shot", "text_first")
        text, style = render_with_style(make_chain((shots,)), seed=seed, config=config)
        places = [text.index(side) for shot in shots for side in (shot.instruction, shot.response)]
        assert places == sorted(places)
        entry = style.entry("inline_few_shot")
        for shot, part in zip(shots, ("example", "example", "posed"), strict=True):
            assert entry[part].fill(question=shot.instruction, response=shot.response) in text
        alone, style = render_with_style(make_chain((shots[:1],)), seed=seed, config=config)
        posed = style.entry("inline_few_shot")["posed"]
        assert posed.fill(question="Ask 1?", response="Reply 1.") in alone


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_next_turn_text_is_one_conversation(layout: str) -> None:
    chain = make_chain(((FREE_FORM, SECOND_FREE_FORM),))
    scripts = set()
    for seed in range(150):
        text, style = render_with_style(chain, seed=seed, config=only("next_turn", layout))
        entry = style.entry("next_turn")
        first = entry["first"].fill(question=FREE_FORM.instruction, response=FREE_FORM.response)
        then = entry["next"].fill(question=SECOND_FREE_FORM.instruction, response=SECOND_FREE_FORM.response)
        turns = first + entry["between"].fill() + then
        assert text == entry[layout].fill(text=chain.examples[0].document.text, pairs=turns)
        scripts.add(style.choices["next_turn"])
    assert len(scripts) == len(load_bank()["next_turn"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_plain_text_has_no_words_of_its_own(layout: str) -> None:
    example = EVERY_KIND.examples[0]
    alone = replace(EVERY_KIND, examples=(example,))
    for seed in range(20):
        text, style = render_with_style(alone, seed=seed, config=only("plain", layout))
        between = style.entry("separators")["pairs"].fill()
        pairs = between.join(f"{pair.instruction} {pair.response}" for pair in example.pairs)
        parts = (example.document.text, pairs) if layout == "text_first" else (pairs, example.document.text)
        assert text == "\n\n".join(parts)


def families_of(chain: Chain, *, num_chains: int) -> Counter[str]:
    return Counter(
        render_chain(replace(chain, chain_id=f"{index}"), seed=0).template_id.split("/")[0]
        for index in range(num_chains)
    )


def test_families_follow_the_number_of_pairs() -> None:
    several, few = families_of(TWO_PAIRS_EACH, num_chains=3000), families_of(ONE_PAIR, num_chains=3000)
    assert several["classic"] / 3000 == pytest.approx(0.8, abs=0.03)
    for family in ("numbered", "inline_few_shot", "next_turn", "dialogue"):
        assert several[family] / 3000 == pytest.approx(0.05, abs=0.015)
    assert few["classic"] / 3000 == pytest.approx(0.95, abs=0.02)
    assert set(few) == {"classic", "dialogue"}
    assert set(families_of(EVERY_KIND, num_chains=300)) == {"classic", "dialogue"}, "it has a text without pairs"


def test_pairs_stand_first_in_their_share_of_chains() -> None:
    ids = [render_chain(replace(ONE_PAIR, chain_id=f"{index}"), seed=0).template_id for index in range(3000)]
    assert sum("pairs_first" in template_id for template_id in ids) / 3000 == pytest.approx(0.05, abs=0.015)


def test_the_ids_of_a_rendered_chain() -> None:
    rendered = render_chain(TWO_PAIRS_EACH, seed=0, config=only("numbered", "text_first"))
    assert rendered.text_id == rendered.group_id == "chain"
    assert rendered.component == "augmented"
    assert rendered.doc_ids == ("chain-doc-0", "chain-doc-1")
    names = r"numbered/text_first:\d+/numbered:\d+/option_styles:\d+/option_lists:\d+/separators:\d+"
    assert re.fullmatch(names, rendered.template_id)


def test_an_example_without_pairs_stands_as_its_raw_text() -> None:
    chain = make_chain(((FREE_FORM,), (), (SECOND_FREE_FORM,)))
    for seed in range(20):
        text, style = render_with_style(chain, seed=seed, config=DEFAULT_CONFIG)
        separator = style.entry("separators")["examples"].fill()
        assert separator + chain.examples[1].document.text + separator in text


def test_a_chain_without_any_pair_is_raw() -> None:
    first, second = (example.document.text for example in NO_PAIRS.examples)
    rendered = render_chain(NO_PAIRS, seed=0)
    assert re.fullmatch(r"raw/separators:\d+", rendered.template_id)
    assert rendered.text.startswith(first)
    assert rendered.text.endswith(second)
    alone = render_chain(replace(NO_PAIRS, examples=NO_PAIRS.examples[:1]), seed=0)
    assert (alone.text, alone.template_id) == (first, "raw")


def test_a_chain_without_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="'chain' has no example"):
        render_chain(replace(NO_PAIRS, examples=()), seed=0)


@given(instruction=texts, response=texts)
def test_an_instruction_is_rendered_plainly(instruction: str, response: str) -> None:
    pair = InstructionPair(instruction=instruction, response=response)
    rendered = render_instruction(pair, text_id="i1", group_id="g1", component="instructions")
    assert rendered.text == instruction + " " + response
    assert (rendered.text_id, rendered.group_id, rendered.component) == ("i1", "g1", "instructions")
    assert (rendered.template_id, rendered.doc_ids) == ("plain", ())


@given(text=texts)
def test_a_document_is_rendered_as_it_is(text: str) -> None:
    document = Document(doc_id="d1", source="s", text=text, title="unused")
    rendered = render_document(document, component="raw", group_id="g1")
    assert rendered.text == text
    assert (rendered.text_id, rendered.group_id, rendered.component) == ("d1", "g1", "raw")
    assert (rendered.template_id, rendered.doc_ids) == ("raw", ("d1",))


def test_the_weights_choose_the_family() -> None:
    config = TemplateConfig(family_weights=FamilyWeights(**{name: float(name == "next_turn") for name in FAMILIES}))
    assert render_chain(TWO_PAIRS_EACH, seed=0, config=config).template_id.startswith("next_turn/next_turn:")
