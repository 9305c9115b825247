from contracts.records import Document, Example, InstructionPair
from synth_model.engines import EngineConfig
from synth_model.evaluation.config import EvaluateConfig, SystemConfig
from synth_model.evaluation.requests import fits_alone, make_requests, make_system
from synth_model.evaluation.text_selection import EvaluationText
from synth_model.generation import Sampling
from synth_model.synthesizer import SynthesizerConfig


def example(name, *, num_words=3, num_pairs=1):
    return Example(
        document=Document(doc_id=name, source="tides", text=" ".join([name] * num_words)),
        pairs=tuple(InstructionPair(instruction=f"{name} q{i}?", response=f"{name} a{i}") for i in range(num_pairs)),
    )


GOLD = example("gold", num_pairs=2)
TEXT = EvaluationText(
    split="seen", gold=GOLD, questions=GOLD.pairs, examples=(example("far"), example("middle"), example("near"))
)


def system(*, context_length=1000, kind="wire_format", name="s"):
    return make_system(
        SystemConfig(
            name=name,
            engine=EngineConfig(kind="fake", context_length=context_length),
            synthesizer=SynthesizerConfig(kind=kind),
        )
    )


def config(**changes):
    settings = {"systems": [], "output": "", "shots": [1, 3], "sampling": Sampling(max_new_tokens=50)}
    return EvaluateConfig(**settings | {"max_response_tokens": 10} | changes)


def test_each_question_and_the_pairs_are_asked_at_every_number_of_shots():
    requests = make_requests([TEXT, TEXT], systems=[system()], config=config())["s"]
    places = [(request.text, request.task, request.question, request.shots) for request in requests]
    assert len(set(places)) == len(places) == 2 * 2 * (2 + 1)
    by_place = dict(zip(places, requests, strict=True))
    alone, behind = by_place[1, "pairs", 0, 1], by_place[1, "pairs", 0, 3]
    assert (alone.num_examples, behind.num_examples) == (0, 2)
    assert alone.prompt.text == "<s> <CON> gold gold gold </CON>\n\n"
    # The nearest examples, with their gold pairs, before the text.
    assert behind.prompt.text == (
        "<s> <CON> middle middle middle </CON>\n\n<QUE> middle q0? <ANS> middle a0 </END></s>"
        "<s> <CON> near near near </CON>\n\n<QUE> near q0? <ANS> near a0 </END></s>" + alone.prompt.text
    )
    asked = by_place[0, "response", 1, 3].prompt
    assert (asked.text, asked.response_prefix) == (behind.prompt.text, "<QUE> gold q1? <ANS>")
    assert "gold a1" not in asked.text + asked.response_prefix


def test_a_chat_is_asked_with_earlier_turns():
    requests = make_requests([TEXT], systems=[system(kind="chat")], config=config(shots=[2]))["s"]
    prompt = next(request.prompt for request in requests if request.task == "response" and request.question == 0)
    assert [message.content for message in prompt.messages[-3:]] == [
        "near near near\n\nnear q0?",
        "near a0",
        "gold gold gold\n\ngold q0?",
    ]


def test_examples_that_outgrow_the_context_are_left_out_the_earliest_first():
    whole = make_requests([TEXT], systems=[system()], config=config())["s"]
    longest = max(request.prompt.num_tokens for request in whole if request.task == "pairs")
    tight = make_requests([TEXT], systems=[system(context_length=longest + 49)], config=config())["s"]
    shown = {(request.task, request.shots): request.num_examples for request in tight}
    assert shown["pairs", 3] == 1
    assert shown["response", 3] == 2, "a response needs less room"
    assert all(request.prompt.num_tokens <= longest + 49 - 10 for request in tight)
    near = next(request.prompt.text for request in tight if request.task == "pairs" and request.shots == 3)
    assert "near" in near
    assert "middle" not in near


def test_every_system_is_shown_the_same_examples():
    """A narrow context counts for the wide one too, whichever comes first."""
    whole = make_requests([TEXT], systems=[system()], config=config())["s"]
    longest = max(request.prompt.num_tokens for request in whole if request.task == "pairs")
    wide, narrow = system(name="wide"), system(name="narrow", context_length=longest + 49)
    for systems in ([wide, narrow], [narrow, wide]):
        requests = make_requests([TEXT], systems=systems, config=config())
        assert [request.num_examples for request in requests["wide"]] == [
            request.num_examples for request in requests["narrow"]
        ]
        assert [request.prompt.text for request in requests["wide"]] == [
            request.prompt.text for request in requests["narrow"]
        ]
        assert {request.num_examples for request in requests["wide"] if request.task == "pairs"} == {0, 1}


def test_a_text_fits_when_its_longest_prompt_fits_every_system():
    wide, settings = system(), config()
    pairs, first, second = (
        wide.prompt(GOLD, instruction=instruction).num_tokens for instruction in (None, "gold q0?", "gold q1?")
    )
    needed = max(pairs + 50, first + 10, second + 10)
    for length, fits in ((needed, True), (needed - 1, False)):
        narrow = system(context_length=length)
        assert fits_alone(GOLD, GOLD.pairs, systems=[wide, narrow], config=settings) is fits
    # A long instruction counts too.
    long = (InstructionPair(instruction="word " * 900, response="a"),)
    assert fits_alone(GOLD, (), systems=[wide], config=settings)
    assert not fits_alone(GOLD, (*GOLD.pairs, *long), systems=[system(context_length=800)], config=settings)
