"""Tasks quote their document exactly, are few of a kind, and follow from document and seed alone."""

import time
from collections import Counter

import pytest
from hypothesis import given

from beam_pipelines.mining.bank import FORMS, KINDS, RELATIONS, load_mining_bank
from beam_pipelines.mining.findings import FindingExtractor
from beam_pipelines.mining.tasks import MAX_TASKS_OF_A_KIND, TaskMiner
from contracts.records import Chain, Document, Example
from templates import render_chain
from templates.pair_kinds import OPTIONS_MARK, MultipleChoice, recognize_pair
from tests.beam_pipelines.mining.mining_texts import HARBOUR, documents

BANK = load_mining_bank("english")
KEYWORDS = frozenset({"tide", "pilot", "guide", "bay", "pilots", "charts"})


def mine(document, *, seed=0):
    return TaskMiner(BANK, seed=seed).mine(document, keywords=KEYWORDS)


def harbour(number=0):
    return Document(doc_id=f"harbour-{number}", source="web", text=HARBOUR, title="The harbour")


def explained_by(task, findings):
    """Whether a wording of the task's form, filled with a finding of its kind, gives exactly this pair."""
    form = FORMS[task.form]
    for finding in findings:
        if task.form not in RELATIONS[finding.relation].forms or not set(form.needed) <= finding.values.keys():
            continue
        for wording in BANK.wordings[task.form]:
            instruction = wording.instruction.literals[0]
            for name, literal in zip(wording.instruction.fields, wording.instruction.literals[1:], strict=True):
                instruction += finding.values[name] + literal
            if form.response is not None:
                pair = (instruction, finding.values[form.response])
            else:
                options = "".join(f"\n- {option}" for option in wording.options.values())
                pair = (f"{instruction}\nOptions:{options}", wording.options[finding.relation])
            if pair == (task.pair.instruction, task.pair.response):
                return True
    return False


@given(documents())
def test_tasks_quote_their_document_and_are_few_of_a_kind(document):
    tasks = mine(document)
    findings = FindingExtractor(BANK).extract(document, keywords=KEYWORDS)
    assert all(explained_by(task, findings) for task in tasks)
    assert len({task.pair.instruction for task in tasks}) == len(tasks)
    found = Counter(RELATIONS[finding.relation].kind for finding in findings)
    by_kind = Counter(task.kind for task in tasks)
    assert set(by_kind) == set(found)
    # Two findings may be worded alike; no more than that may be lost.
    assert all(1 <= by_kind[kind] <= min(MAX_TASKS_OF_A_KIND, found[kind]) for kind in found)


@given(documents())
def test_tasks_follow_from_document_and_seed(document):
    assert mine(document) == mine(document)


def test_every_form_is_taken_and_every_kind_reaches_its_most():
    tasks = [mine(harbour(number)) for number in range(60)]
    assert {task.form for of_one in tasks for task in of_one} == set(FORMS)
    counts = Counter(task.kind for task in tasks[0])
    assert set(counts) == set(KINDS)
    assert {kind for kind, count in counts.items() if count == MAX_TASKS_OF_A_KIND} == set(KINDS) - {"summary"}
    # Choices do not move together: documents that differ in their id alone get different tasks in different orders.
    assert len({tuple(task.pair for task in of_one) for of_one in tasks}) == len(tasks)
    assert len({tuple(task.kind for task in of_one) for of_one in tasks}) > len(tasks) / 2


def test_seeds_and_wordings_vary():
    instructions = {task.pair.instruction for seed in range(300) for task in mine(harbour(), seed=seed)}
    titles = {wording.instruction.literals[0] for wording in BANK.wordings["title_of_text"]}
    assert titles <= instructions


def test_labels_are_options_and_right():
    labelled = [
        task for seed in range(40) for task in mine(harbour(), seed=seed) if OPTIONS_MARK in task.pair.instruction
    ]
    answers = Counter()
    for task in labelled:
        recognized = recognize_pair(task.pair)
        assert isinstance(recognized, MultipleChoice)
        if task.pair.instruction.startswith("Premise: The harbour lies in a narrow bay."):
            assert task.pair.response == "entailment"
        answers[len(recognized.options), recognized.answer_index] += 1
    # Three inference labels, two paraphrase labels, none of them left out.
    assert set(answers) == {(3, 0), (3, 1), (3, 2), (2, 0), (2, 1)}


def test_rendering_takes_mined_pairs_as_they_are():
    for number in range(20):
        document = harbour(number)
        pairs = tuple(task.pair for task in mine(document))
        chain = Chain(
            chain_id=str(number),
            source="web",
            examples=(Example(document=document, pairs=pairs),),
            synthesizer_id="mined@0",
        )
        text = render_chain(chain, seed=0).text
        assert HARBOUR in text
        for pair in pairs:
            if isinstance(recognize_pair(pair), MultipleChoice):
                assert pair.instruction.rpartition(OPTIONS_MARK)[0] in text
            else:
                assert pair.instruction in text
                assert pair.response in text


def test_an_instruction_stands_once_even_where_two_findings_would_give_it():
    text = "The tide is high now. Thus, the boats come in.\n\nThe tide is high now. Thus, the pilots go out."
    num_tasks = Counter()
    for number in range(300):
        tasks = mine(Document(doc_id=str(number), source="web", text=text))
        assert len({task.pair.instruction for task in tasks}) == len(tasks)
        num_tasks[len(tasks)] += 1
    assert set(num_tasks) == {1, 2}


def test_nothing_found_gives_no_task():
    assert mine(Document(doc_id="d", source="web", text="No sentence here", title=None)) == []


@pytest.mark.parametrize("text", ["Thus, it is so now. " * 50_000, "The ship sank because of it. " * 34_000])
def test_a_hostile_megabyte_is_mined_in_linear_time(text):
    started = time.process_time()
    assert len(mine(Document(doc_id="d", source="web", text=text))) <= 2 * MAX_TASKS_OF_A_KIND
    assert time.process_time() - started < 4.0
