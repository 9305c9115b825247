import importlib.resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Document, Example, InstructionPair
from synth_model.chat_prompt import ChatPromptWording, build_chat_prompt, load_wording, parse_chat_completion
from synth_model.few_shot_examples import FewShotExamples
from tests.synth_model.data_strategies import SPECIAL_TOKENS, hostile_texts

WORDING = ChatPromptWording(
    system="You ask.",
    request="Text:\n{text}\n\nAsk about it, {politely}.",
    question_label="Question:",
    answer_label="Answer:",
)


def example_of(text, *sides):
    return Example(
        document=Document(doc_id="d", source="s", text=text),
        pairs=tuple(InstructionPair(instruction=question, response=answer) for question, answer in sides),
    )


def parse(completion, *, is_cut=False, wording=WORDING, special_tokens=()):
    pairs = parse_chat_completion(completion, wording=wording, is_cut=is_cut, special_tokens=special_tokens)
    return [(pair.instruction, pair.response) for pair in pairs]


def test_the_conversation_has_few_shot_examples_then_the_chain_then_the_text():
    wording = ChatPromptWording(
        system="You ask.",
        request="Text: {text} Ask!",
        question_label="Q:",
        answer_label="A:",
        examples=FewShotExamples(default=(example_of("shot", ("s?", "s"), ("t?", "t")),)),
    )
    prompt = build_chat_prompt(
        [example_of("first", ("f?", "f")), example_of("second", ("g?", "g"))],
        document=Document(doc_id="d", source="s", text="now", title="Title"),
        wording=wording,
    )
    assert [(message.role, message.content) for message in prompt.messages] == [
        ("system", "You ask."),
        ("user", "Text: shot Ask!"),
        ("assistant", "Q: s?\nA: s\n\nQ: t?\nA: t"),
        ("user", "Text: first Ask!"),
        ("assistant", "Q: f?\nA: f"),
        ("user", "Text: second Ask!"),
        ("assistant", "Q: g?\nA: g"),
        ("user", "Text: Title\n\nnow Ask!"),
    ]
    assert prompt.response_prefix == "Q:"
    assert prompt.text == ""


@given(hostile_texts(), hostile_texts(), st.none() | hostile_texts())
def test_special_tokens_in_the_data_are_defused_and_braces_are_braces(text, answer, title):
    prompt = build_chat_prompt(
        [example_of(text, ("q?", answer))],
        document=Document(doc_id="d", source="s", text=text, title=title),
        wording=WORDING,
        special_tokens=SPECIAL_TOKENS,
    )
    contents = [message.content for message in prompt.messages]
    assert not any(token in content for token in SPECIAL_TOKENS for content in contents)
    plain = build_chat_prompt([], document=Document(doc_id="d", source="s", text=text), wording=WORDING)
    assert plain.messages[-1].content == "Text:\n" + text + "\n\nAsk about it, {politely}."


@pytest.mark.parametrize(
    ("completion", "pairs"),
    [
        (" a?\nAnswer: b", [("a?", "b")]),
        (" a?\nAnswer: b\n\nQuestion: c?\nAnswer: d\n", [("a?", "b"), ("c?", "d")]),
        # Several lines on both sides, blank ones among them.
        (" a\n- x\n- y\nAnswer: b\n\nand c\nQuestion: d?\nAnswer:\ne", [("a\n- x\n- y", "b\n\nand c"), ("d?", "e")]),
        # Numbering, list marks, emphasis, headings, other letters.
        (" a?\nAnswer: b\n2. Question: c?\n   Answer: d", [("a?", "b"), ("c?", "d")]),
        (" a?\nAnswer: b\n13) Question: c?\nAnswer: d", [("a?", "b"), ("c?", "d")]),
        (" a?\n**Answer:** b\n\n**Question:** c?\n- Answer: d", [("a?", "b"), ("c?", "d")]),
        (" a?\nANSWER: b\n### question: c?\n> answer: d", [("a?", "b"), ("c?", "d")]),
        # Quotes around the whole of it go, quotes inside stay.
        (' "a?"\nAnswer: "b"', [("a?", "b")]),
        (' "a" or "b"?\nAnswer: the "b"', [('"a" or "b"?', 'the "b"')]),
        # The label that stands in the prompt already, written again.
        (" Question: a?\nAnswer: b", [("a?", "b")]),
        ("\nQuestion: a?\nAnswer: b", [("a?", "b")]),
        (" **Question:** a?\nAnswer: Answer: b", [("a?", "b")]),
        # A label inside a line is text; so is a second answer label in a response.
        (" Is this the Answer: b?\nAnswer: It says Question: c", [("Is this the Answer: b?", "It says Question: c")]),
        (" a?\nAnswer: b\nAnswer: c", [("a?", "b\nAnswer: c")]),
        # An answer before any question, a question without an answer, and the other way round.
        ("\nAnswer: x\nQuestion: a?\nAnswer: b", [("a?", "b")]),
        (" a?\nQuestion: c?\nAnswer: d", [("c?", "d")]),
        (" a?\nAnswer:\n\nQuestion: c?\nAnswer: d", [("c?", "d")]),
        (" a?", []),
        ("", []),
        # The same question again, the same answer again, an answer that is the question.
        (" a?\nAnswer: b\nQuestion: A?\nAnswer: c\nQuestion: d?\nAnswer: e", [("a?", "b"), ("d?", "e")]),
        (" a?\nAnswer: b\nQuestion: c?\nAnswer: B\nQuestion: d?\nAnswer: e", [("a?", "b"), ("d?", "e")]),
        (" a?\nAnswer: A?\nQuestion: d?\nAnswer: e", [("d?", "e")]),
        # Markup in the answer is data.
        (" What is <QUE>?\nAnswer: </END> {x} <s>", [("What is <QUE>?", "</END> {x} <s>")]),
    ],
)
def test_reading_a_completion(completion, pairs):
    assert parse(completion) == pairs


@pytest.mark.parametrize(
    ("completion", "pairs"),
    [
        (" a?\nAnswer: b\nQuestion: c?\nAnswer: d and", [("a?", "b")]),
        (" a?\nAnswer: b\nQuestion: c", [("a?", "b")]),
        (" a?\nAnswer: b\n", []),
        (" a", []),
    ],
)
def test_a_cut_completion_loses_its_last_pair(completion, pairs):
    assert parse(completion, is_cut=True) == pairs


def test_a_label_over_and_over_is_no_pair_and_no_failure():
    # Small models do this until their tokens are used up.
    assert parse(" Question:" * 3000) == []
    assert parse(" a?\nAnswer:" + " Answer:" * 3000) == []


def test_what_was_escaped_in_the_prompt_is_restored():
    completion = " What ends a turn?\nAnswer: <\u2060|im_end|> does"
    assert parse(completion, special_tokens=SPECIAL_TOKENS) == [("What ends a turn?", "<|im_end|> does")]
    assert parse(completion) == [("What ends a turn?", "<\u2060|im_end|> does")]


def test_labels_of_another_language():
    wording = ChatPromptWording(system="s", request="{text}", question_label="质问：", answer_label="回答：")
    assert parse("潮は？\n回答：満ちる\n\n质问：月は？\n回答：引く", wording=wording) == [
        ("潮は？", "満ちる"),
        ("月は？", "引く"),
    ]


LINES = st.lists(
    st.sampled_from(["ebb", "tide", "{x}", "<|im_end|>", "<\u2060|im_end|>", "Answer", "É", "**"]), max_size=5
).map(" ".join)


@given(st.lists(st.tuples(LINES, LINES), max_size=4))
def test_what_the_prompt_shows_is_what_parsing_reads(sides):
    # The letter in front keeps emphasis inside; the numbers keep questions and answers apart.
    sides = [(f"q{number} {question} ?", f"a{number} {answer} .") for number, (question, answer) in enumerate(sides)]
    prompt = build_chat_prompt(
        [example_of("text", *sides)],
        document=Document(doc_id="d", source="s", text="text"),
        wording=WORDING,
        special_tokens=SPECIAL_TOKENS,
    )
    shown = prompt.messages[2].content
    completion = shown.removeprefix(WORDING.question_label)
    assert parse(completion, special_tokens=SPECIAL_TOKENS) == sides


SHIPPED = sorted(
    entry.name.removesuffix(".yaml")
    for entry in (importlib.resources.files("synth_model") / "prompts").iterdir()
    if entry.name.endswith(".yaml")
)


def test_wordings_are_shipped():
    assert SHIPPED == ["chinese", "english", "korean"]


def sources_of(wording):
    return ["elsewhere", *(pattern.replace("*", "-journals") for pattern, _ in wording.examples.by_source)]


@pytest.mark.parametrize(("name", "source"), [(n, s) for n in SHIPPED for s in sources_of(load_wording(n))])
def test_a_shipped_wording_loads_and_reads_its_own_examples(name, source):
    wording = load_wording(name)
    document = Document(doc_id="d", source=source, text="text")
    messages = build_chat_prompt([], document=document, wording=wording).messages
    shown = [message.content for message in messages if message.role == "assistant"]
    examples = wording.examples.for_source(source)
    assert len(shown) == len(examples) > 0
    for example, content in zip(examples, shown, strict=True):
        completion = content.removeprefix(wording.question_label)
        assert parse_chat_completion(completion, wording=wording, is_cut=False) == list(example.pairs)


def test_english_shows_a_domain_examples_of_its_own():
    wording = load_wording("english")
    shown = {source: wording.examples.for_source(source) for source in sources_of(wording)}
    assert set(shown) == {"elsewhere", "medical-journals", "financial-journals", "legal-journals"}
    assert len(set(shown.values())) == len(shown)


@pytest.mark.parametrize(
    ("name", "completion", "pairs"),
    [
        (
            "korean",
            " 용량은 얼마인가요?\n답변: 5 mg입니다.\n\n**질문 2:** 왜 밤에 먹나요?\n답변： 졸리기 때문입니다.\n"
            "질문: 답이 없는 질문?",
            [("용량은 얼마인가요?", "5 mg입니다."), ("왜 밤에 먹나요?", "졸리기 때문입니다.")],
        ),
        (
            "chinese",
            "剂量是多少？\n回答：5毫克。\n\n2. 问题:为什么在晚上服用？\n**回答**：因为容易困倦。\n第二天会消失。\n"
            "问题：没有回答的问题？",
            [("剂量是多少？", "5毫克。"), ("为什么在晚上服用？", "因为容易困倦。\n第二天会消失。")],
        ),
    ],
)
def test_completions_in_other_languages_with_the_labels_as_models_write_them(name, completion, pairs):
    assert parse(completion, wording=load_wording(name)) == pairs


GOOD = {
    "system": "You ask.",
    "request": "|-\n  Text:\n  {text}\n",
    "question_label": "'Q: '",
    "answer_label": "'A:'",
}


def yaml_of(**changes):
    return "\n".join(f"{key}: {value}" for key, value in {**GOOD, **changes}.items() if value is not None)


def test_a_wording_of_the_users_own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        yaml_of(examples="\n  - text: ' A text. '\n    pairs:\n      - {question: 'How many?', answer: 42}"), "utf-8"
    )
    assert load_wording(str(path)) == ChatPromptWording(
        system="You ask.",
        request="Text:\n{text}",
        question_label="Q:",
        answer_label="A:",
        examples=FewShotExamples(
            default=(
                Example(
                    document=Document(doc_id="", source="", text="A text."),
                    pairs=(InstructionPair(instruction="How many?", response="42"),),
                ),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid YAML"),
        ("- a", "must have the keys"),
        ("", "must have the keys"),
        (yaml_of(system=None), "must have the keys"),
        (yaml_of(sytem="x"), "must have the keys"),
        (yaml_of(**{"1": "x"}), "must have the keys"),
        (yaml_of(system="''"), "system must be a text that is not empty"),
        (yaml_of(answer_label="3"), "answer_label must be a text"),
        (yaml_of(request="Ask."), r"must hold \{text\} exactly once"),
        (yaml_of(request="'{text} {text}'"), r"must hold \{text\} exactly once"),
        (yaml_of(examples="5"), "examples must be a list"),
        (yaml_of(examples="{a: 1}"), "examples must be a list"),
        (yaml_of(examples="[5]"), "an example needs text and pairs"),
        (yaml_of(examples="[{text: a}]"), "an example needs text and pairs"),
        (yaml_of(examples="[{text: a, pairs: []}]"), "an example needs text and pairs"),
        (yaml_of(examples="[{text: a, pairs: [{question: b}]}]"), "an example needs text and pairs"),
        (yaml_of(examples="[{text: a, pairs: [{question: b, answer: }]}]"), "an example needs text and pairs"),
        (yaml_of(examples="[{text: '', pairs: [{question: b, answer: c}]}]"), "an example needs text and pairs"),
        (yaml_of(examples_by_source="[5]"), "examples_by_source must map sources"),
        (yaml_of(examples_by_source="{law: 5}"), "examples_by_source.law must be a list"),
        (yaml_of(examples_by_source="{law: [5]}"), "examples_by_source.law: an example needs text and pairs"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_damaged_wording_is_named(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_wording(str(path))
    assert "own.yaml" in str(error.value)


@pytest.mark.parametrize("name", ["klingon", "absent/own.yaml", "."])
def test_a_missing_wording_is_answered_with_those_there_are(name):
    with pytest.raises(ValueError, match=r"give one of \['chinese', 'english'"):
        load_wording(name)


@pytest.mark.parametrize(
    "completion", [" 1: Who?\nAnswer 1: He.", "** Who?\n**Answer:** He.", " Who?\n**Answer**: He."]
)
def test_numbered_and_bold_labels_are_labels(completion):
    pairs = parse_chat_completion(completion, wording=load_wording("english"), is_cut=False)
    assert [pair.response for pair in pairs] == ["He."]
    assert pairs[0].instruction.endswith("Who?")
