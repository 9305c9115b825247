"""Rendering: a chain of examples becomes one training text in one style.

1. The chain's family and layout are drawn, and within them wordings, markers and separators (`templates.style`).
2. Every pair is recognized (`templates.pair_kinds`), and the options of multiple-choice pairs are shuffled unless their
   words refer to their order. The plain family takes every pair as it stands.
3. The family turns the pairs of each example into a block, an opening joins the block with its text, and the examples
   are joined. An example without pairs stands as its raw text.

Texts, questions, options and responses come through character by character. For multiple choice the question and each
option do, with new labels in a new order, and the answer names its option in the style of the labels, also where a
chain of thought concludes with it. The result depends on the chain, the seed, the config and the bank alone.

A family is a function in `_FAMILIES` from pairs to block; its wordings stand in the bank, its weight in
`FamilyWeights`.

Cost: linear in the length of the text, plus about ten short hashes a chain and one for each pair with options.
Not done here: tokens, markup of special tokens, end-of-text marks (packing adds those).
Source: Cheng et al. 2024 (arXiv 2406.14491), section 2: an M-shot example is the concatenation of its examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from contracts.records import Chain, Document, Example, InstructionPair, RenderedText
from templates.bank import ONLY, load_bank
from templates.config import DEFAULT_CONFIG, FamilyWeights, TemplateConfig
from templates.option_labels import option_labels
from templates.pair_kinds import (
    CONCLUSION_MARK,
    REASONING_CUE,
    ChainOfThought,
    FreeForm,
    MultipleChoice,
    PairKind,
    recognize_pair,
)
from templates.patterns import parse_pattern
from templates.style import Style

_PLAIN_PAIR = parse_pattern("{question} {response}")


def render_chain(
    chain: Chain, *, seed: int, component: str = "augmented", config: TemplateConfig = DEFAULT_CONFIG
) -> RenderedText:
    """The training text of a chain.

    Args:
        chain: Its ``chain_id`` names the random streams and becomes the text's id and group.
        seed: The run's seed.
        component: Mixture component of the text.
        config: Weights of families and layouts.

    Returns:
        The text; ``template_id`` lists every choice, such as ``classic/text_first:3/free_form:12``, and is ``raw``
        with no family where the chain has no pair at all.

    Raises:
        ValueError: The chain has no example.
    """
    text, style = render_with_style(chain, seed=seed, config=config)
    family = list(_FAMILIES)[style.choices["family"]] if "family" in style.choices else "raw"
    sections = [f"{name}:{index}" for name, index in style.choices.items() if name not in ("family", "layout")]
    return RenderedText(
        text_id=chain.chain_id,
        component=component,
        text=text,
        template_id="/".join([family, *sections]),
        doc_ids=tuple(example.document.doc_id for example in chain.examples),
        group_id=chain.chain_id,
    )


def render_instruction(
    pair: InstructionPair, *, text_id: str, group_id: str, component: str, doc_ids: tuple[str, ...] = ()
) -> RenderedText:
    """The training text of a general instruction: instruction, space, response. ``template_id`` is ``plain``."""
    return RenderedText(
        text_id=text_id,
        component=component,
        text=_PLAIN_PAIR.fill(question=pair.instruction, response=pair.response),
        template_id="plain",
        doc_ids=doc_ids,
        group_id=group_id,
    )


def render_document(document: Document, *, component: str, group_id: str) -> RenderedText:
    """The training text of a raw document: its text as it is. ``template_id`` is ``raw``."""
    return RenderedText(
        text_id=document.doc_id,
        component=component,
        text=document.text,
        template_id="raw",
        doc_ids=(document.doc_id,),
        group_id=group_id,
    )


def render_with_style(chain: Chain, *, seed: int, config: TemplateConfig) -> tuple[str, Style]:
    """The text of a chain and the style that it was rendered in; see `render_chain`."""
    if not chain.examples:
        raise ValueError(f"The chain {chain.chain_id!r} has no example; it must have at least one.")
    style = Style(load_bank(), seed=seed, chain_id=chain.chain_id)
    if any(example.pairs for example in chain.examples):
        family = _FAMILIES[style.weighted("family", vars(_family_weights(chain, config)))]
        layout = style.weighted("layout", layout_weights(config))
        texts = [
            _render_example(example, index, family=family, layout=layout, style=style)
            for index, example in enumerate(chain.examples)
        ]
    else:
        texts = [example.document.text for example in chain.examples]
    if len(texts) == 1:
        return texts[0], style
    return style.entry("separators")["examples"].fill().join(texts), style


def layout_weights(config: TemplateConfig) -> dict[str, float]:
    """The weight of each layout by its name."""
    return {"text_first": 1 - config.pairs_first_share, "pairs_first": config.pairs_first_share}


def _family_weights(chain: Chain, config: TemplateConfig) -> FamilyWeights:
    if all(len(example.pairs) >= 2 for example in chain.examples):
        return config.family_weights
    return config.few_pairs_family_weights


def _render_example(example: Example, example_index: int, *, family: _Family, layout: str, style: Style) -> str:
    if not example.pairs:
        return example.document.text
    pairs: list[PairKind] = []
    for pair_index, pair in enumerate(example.pairs):
        if family.takes_pairs_as_they_stand:
            pairs.append(FreeForm(question=pair.instruction, response=pair.response))
            continue
        recognized = recognize_pair(pair)
        if isinstance(recognized, MultipleChoice) and not recognized.keeps_order:
            num_options = len(recognized.options)
            order = style.option_order(num_options, example_index=example_index, pair_index=pair_index)
            recognized = recognized.reordered(order)
        pairs.append(recognized)
    section, part = family.openings[layout]
    opening = style.entry(section)[part]
    return opening.fill(text=example.document.text, pairs=family.render_pairs(pairs, style))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """How the pairs of one text become a block, and where in the bank the opening of each layout stands.

    ``openings`` gives section and part by layout. ``takes_pairs_as_they_stand`` leaves the kind of a pair aside: all
    are free form.
    """

    render_pairs: Callable[[Sequence[PairKind], Style], str]
    openings: Mapping[str, tuple[str, str]]
    takes_pairs_as_they_stand: bool = False


def _render_classic(pairs: Sequence[PairKind], style: Style) -> str:
    return style.entry("separators")["pairs"].fill().join(_render_classic_pair(pair, style) for pair in pairs)


def _render_classic_pair(pair: PairKind, style: Style) -> str:
    match pair:
        case FreeForm():
            return style.wording("free_form").fill(question=pair.question, response=pair.response)
        case ChainOfThought():
            return style.wording("chain_of_thought").fill(
                question=pair.question, response=pair.response, conclusion=pair.conclusion
            )
        case MultipleChoice():
            options, answer = _render_options(pair, style)
            if pair.reasoning is None:
                return style.wording("multiple_choice").fill(question=pair.question, options=options, answer=answer)
            return style.wording("multiple_choice_chain_of_thought").fill(
                question=pair.question,
                options=options,
                cue=REASONING_CUE.strip(),
                response=pair.reasoning + CONCLUSION_MARK + answer,
                answer=answer,
            )


def _render_numbered(pairs: Sequence[PairKind], style: Style) -> str:
    entry = style.entry("numbered")
    questions, responses = [], []
    for number, pair in enumerate(pairs, start=1):
        question, response = _question_and_response(pair, style)
        questions.append(entry["question"].fill(number=str(number), question=question))
        responses.append(entry["response"].fill(number=str(number), response=response))
    between = entry["between"].fill()
    return entry["whole"].fill(questions=between.join(questions), responses=between.join(responses))


def _render_inline_few_shot(pairs: Sequence[PairKind], style: Style) -> str:
    entry = style.entry("inline_few_shot")
    *examples, posed = (_question_and_response(pair, style) for pair in pairs)
    posed_text = entry["posed"].fill(question=posed[0], response=posed[1])
    if not examples:
        return posed_text
    example_texts = [entry["example"].fill(question=question, response=response) for question, response in examples]
    return entry["whole"].fill(examples=entry["between"].fill().join(example_texts), posed=posed_text)


def _render_next_turn(pairs: Sequence[PairKind], style: Style) -> str:
    entry = style.entry("next_turn")
    turns = []
    for index, pair in enumerate(pairs):
        question, response = _question_and_response(pair, style)
        turns.append(entry["next" if index else "first"].fill(question=question, response=response))
    return entry["between"].fill().join(turns)


def _render_dialogue(pairs: Sequence[PairKind], style: Style) -> str:
    speakers, marker = style.entry("dialogue_speakers"), style.entry("dialogue_markers")
    turns = []
    for pair in pairs:
        question, response = _question_and_response(pair, style)
        turns.append(marker["turn"].fill(speaker=speakers["asks"].fill(), words=question))
        turns.append(marker["turn"].fill(speaker=speakers["replies"].fill(), words=response))
    return marker["between"].fill().join(turns)


def _render_plain(pairs: Sequence[PairKind], style: Style) -> str:
    sides = [_question_and_response(pair, style) for pair in pairs]
    separator = style.entry("separators")["pairs"].fill()
    return separator.join(_PLAIN_PAIR.fill(question=question, response=response) for question, response in sides)


_QUESTION_OPENINGS = {"text_first": ("text_first", ONLY), "pairs_first": ("pairs_first", ONLY)}

_FAMILIES: Mapping[str, _Family] = {
    "classic": _Family(render_pairs=_render_classic, openings=_QUESTION_OPENINGS),
    "numbered": _Family(render_pairs=_render_numbered, openings=_QUESTION_OPENINGS),
    "inline_few_shot": _Family(render_pairs=_render_inline_few_shot, openings=_QUESTION_OPENINGS),
    "next_turn": _Family(
        render_pairs=_render_next_turn,
        openings={"text_first": ("next_turn", "text_first"), "pairs_first": ("next_turn", "pairs_first")},
    ),
    "dialogue": _Family(
        render_pairs=_render_dialogue,
        openings={"text_first": ("dialogue_text_first", ONLY), "pairs_first": ("dialogue_pairs_first", ONLY)},
    ),
    "plain": _Family(
        render_pairs=_render_plain,
        openings={"text_first": ("plain_text_first", ONLY), "pairs_first": ("plain_pairs_first", ONLY)},
        takes_pairs_as_they_stand=True,
    ),
}
# Both name the families, one for users, one for rendering; the order gives the numbers of the family choice.
assert [item.name for item in fields(FamilyWeights)] == list(_FAMILIES)


def _question_and_response(pair: PairKind, style: Style) -> tuple[str, str]:
    """The two sides of a pair where the family words what stands around them."""
    if not isinstance(pair, MultipleChoice):
        return pair.question, pair.response
    options, answer = _render_options(pair, style)
    question = style.wording("option_lists").fill(question=pair.question, options=options)
    if pair.reasoning is None:
        return question, answer
    return question + REASONING_CUE, pair.reasoning + CONCLUSION_MARK + answer


def _render_options(pair: MultipleChoice, style: Style) -> tuple[str, str]:
    """The labelled options in their order, and the answer as the option style refers to it."""
    entry = style.entry("option_styles")
    lines = [entry["option"].fill(option=option, **option_labels(index)) for index, option in enumerate(pair.options)]
    answer = entry["answer"].fill(option=pair.options[pair.answer_index], **option_labels(pair.answer_index))
    return entry["between"].fill().join(lines), answer
