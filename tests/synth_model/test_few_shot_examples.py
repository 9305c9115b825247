import pytest

from contracts.records import Document, Example, InstructionPair
from synth_model.few_shot_examples import FewShotExamples, load_examples
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer
from synth_model.wire_format import build_prompt

CONTENT = """
examples:
  - text: A plain text.
    pairs: [{question: 'Plain?', answer: 1}]
examples_by_source:
  medical*:
    - text: A medical text.
      pairs: [{question: 'Dose?', answer: 5 mg}]
  medical-law:
    - text: Never shown, the pattern above comes first.
      pairs: [{question: 'Law?', answer: None}]
  bare: []
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "examples.yaml"
    file.write_text(CONTENT, "utf-8")
    return str(file)


def texts(examples):
    return [example.document.text for example in examples]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("web", ["A plain text."]),
        ("medical", ["A medical text."]),
        ("medical-law", ["A medical text."]),
        ("Medical", ["A plain text."]),
        ("bare", []),
    ],
)
def test_the_first_pattern_that_matches_a_source_counts(path, source, shown):
    assert texts(load_examples(path).for_source(source)) == shown


def test_values_are_read_as_texts(path):
    (example,) = load_examples(path).default
    assert example.pairs == (InstructionPair(instruction="Plain?", response="1"),)


@pytest.mark.parametrize("kind", ["wire_format", "chat"])
def test_both_kinds_show_them_before_the_chain(path, kind):
    synthesizer = make_synthesizer(SynthesizerConfig(kind=kind, examples=path))
    earlier = Example(
        document=Document(doc_id="e", source="medical", text="An earlier text."),
        pairs=(InstructionPair(instruction="Earlier?", response="Yes."),),
    )
    prompt = synthesizer.build_prompt(
        [earlier], document=Document(doc_id="d", source="medical", text="Now."), special_tokens=()
    )
    shown = prompt.text or "\n".join(message.content for message in prompt.messages)
    places = [shown.index(text) for text in ("A medical text.", "5 mg", "An earlier text.", "Yes.", "Now.")]
    assert places == sorted(places)
    # They stand in place of the wording's own.
    assert "linked list" not in shown
    assert "A plain text." not in shown


def test_the_wire_format_without_examples_is_as_published():
    synthesizer = make_synthesizer(SynthesizerConfig())
    document = Document(doc_id="d", source="medical", text="Now.")
    prompt = synthesizer.build_prompt([], document=document, special_tokens=())
    assert prompt.text == build_prompt([], text="Now.")
    assert synthesizer.format_id == "wire-format"


@pytest.mark.parametrize("kind", ["wire_format", "chat"])
def test_other_examples_are_another_format(path, kind, tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text(CONTENT.replace("5 mg", "6 mg"), "utf-8")
    ids = {
        make_synthesizer(SynthesizerConfig(kind=kind, examples=examples)).format_id
        for examples in ("", path, str(changed))
    }
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "may have the keys"),
        ("[]", "may have the keys"),
        ("exmaples: []", "may have the keys"),
        ("{", "not valid YAML"),
        ("examples: 5", "examples must be a list"),
        ("examples_by_source: []\nexamples: [{text: a}]", "an example needs text and pairs"),
        ("examples_by_source: {law: [5]}", "examples_by_source.law: an example needs"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_examples(str(path))
    assert "own.yaml" in str(error.value)


@pytest.mark.parametrize("path", ["absent.yaml", "."])
def test_a_missing_file_is_named(path):
    with pytest.raises(ValueError, match="give the path of a YAML file"):
        load_examples(path)


def test_no_examples_are_none():
    assert FewShotExamples().for_source("any") == ()
