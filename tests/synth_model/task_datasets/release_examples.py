"""A tiny file in each release's own format, with the text and the pairs that it must give, written out by hand.

All of them are about the same two sentences, so that only the formats differ.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CUE = "\nLet's think step by step."
SO = "\nTherefore, the answer is "

TEXT = "The ferry leaves at nine. It carries forty goats."
TITLE = "The island"
WHEN, NINE = "When does the ferry leave?", "at nine"
WHAT, GOATS = "What does it carry?", "forty goats"
BOTH = ((WHEN, NINE), (WHAT, GOATS))
CHOICES = ("cows", GOATS, "bees")
CHOOSE = f"{WHAT}\nOptions:\n- cows\n- forty goats\n- bees"
WHY = "The text names a load."
REASON = (f"{CHOOSE}{CUE}", f"{WHY}{SO}{GOATS}")


@dataclass(frozen=True, kw_only=True)
class ReleaseExample:
    """A file (its entries by the format that its name ends in) and what it must give.

    Args:
        dataset: Key of the table.
        file: Name of the file.
        content: A JSON value, or rows.
        pairs: The pairs of the one text.
        text: The text.
        title: Its title.
        rejected: ``reason`` of each question of no use.
    """

    dataset: str
    file: str
    content: Any
    pairs: Sequence[tuple[str, str]]
    text: str = TEXT
    title: str | None = None
    rejected: Sequence[str] = ()

    def as_bytes(self) -> bytes:
        """The file's bytes."""
        return file_bytes(self.file, self.content)


def file_bytes(name: str, content: Any) -> bytes:
    """The bytes of a file of the format that its name ends in."""
    if name.endswith((".jsonl", ".jsonlines")):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(content), buffer)
        return buffer.getvalue()
    if name.endswith(".csv"):
        lines = io.StringIO()
        writer = csv.DictWriter(lines, fieldnames=list(content[0]))
        writer.writeheader()
        writer.writerows(content)
        return lines.getvalue().encode()
    return json.dumps(content).encode()


def _squad(text: str, answers: Sequence[str], **paragraph: Any) -> Any:
    qas = [
        {"id": str(n), "question": q, "answers": [{"text": a, "answer_start": 0}]}
        for n, (q, a) in enumerate(zip((WHEN, WHAT), answers, strict=True))
    ]
    return {"version": "1.1", "data": [{"title": TITLE, "paragraphs": [{"context": text, "qas": qas, **paragraph}]}]}


def _rows(rows: Sequence[tuple[str, Any]], *, question: str = "question", answer: str, **common: Any) -> Any:
    return [{**common, question: q, answer: a} for q, a in rows]


_UNANSWERED = {"id": "2", "question": "Who steers it?", "answers": [], "is_impossible": True}
_SQUAD_V2 = _squad(TEXT, (NINE, GOATS))
_SQUAD_V2["data"][0]["paragraphs"][0]["qas"].append(_UNANSWERED)
_SPANS = [{"text": ["at nine", "not at ten"], "answer_start": [18, 0]}, {"text": [GOATS], "answer_start": [37]}]
_QUAC_TURNS = [
    {"id": "0", "question": WHEN, "followup": "y", "yesno": "x", "answers": [], "orig_answer": {"text": NINE}},
    {
        "id": "1",
        "question": "Why?",
        "followup": "n",
        "yesno": "x",
        "answers": [],
        "orig_answer": {"text": "CANNOTANSWER"},
    },
]
_SENTENCES = TEXT.replace(". ", ".| ").split("|")
_QASPER_ANSWERS = [
    {"unanswerable": False, "extractive_spans": [], "yes_no": None, "free_form_answer": NINE},
    {"unanswerable": False, "extractive_spans": ["forty", "goats"], "yes_no": None, "free_form_answer": ""},
    {"unanswerable": False, "extractive_spans": [], "yes_no": False, "free_form_answer": ""},
    {"unanswerable": True, "extractive_spans": [], "yes_no": None, "free_form_answer": ""},
]
_QASPER_QUESTIONS = (WHEN, WHAT, "Is it late?", "Who steers it?")
_QASPER = {
    "pairs": ((WHEN, NINE), (WHAT, "forty, goats"), ("Is it late?", "No")),
    "text": f"An abstract.\nOne\n{_SENTENCES[0]}\n\nTwo\n{_SENTENCES[1].strip()}",
    "title": TITLE,
    "rejected": ("unanswerable",),
}
_FACTS = {"fact1": _SENTENCES[0], "fact2": _SENTENCES[1].strip(), "combinedfact": WHY}
_JSON_QUESTION = {
    "question": {
        "stem": WHAT,
        "choices": [{"label": label, "text": text} for label, text in zip("ABC", CHOICES, strict=True)],
    },
    "answerKey": "B",
}
_ROW_CHOICES = {"choices": {"text": list(CHOICES), "label": ["1", "2", "3"]}, "answerKey": "2"}
_TABLE = [["left", "load"], ["nine", "goats"], ["", "bees"]]
_TABLE_LINES = "left | load\nnine | goats\n | bees"
_PUBMED = {
    "pairs": (
        ("Is it early?\nOptions:\n- yes\n- no\n- maybe", "maybe"),
        (f"Is it early?{CUE}", f"{WHY}{SO}maybe"),
    ),
    "text": "\n".join(sentence.strip() for sentence in _SENTENCES),
}
_SENTENCE_LINES = _PUBMED["text"]
_HYPOTHESIS = "Goats travel."
_JUDGE = f"Judging by the text, is it true that: {_HYPOTHESIS}\nOptions:\n- Yes\n- No\n- The text does not say"

RELEASE_EXAMPLES = [
    ReleaseExample(
        dataset="normalized",
        file="records.jsonl",
        content=[
            {
                "id": "ferries-7",
                "dataset": "ferries",
                "domain": "travel",
                "task_type": "extractive_qa",
                "context": TEXT,
                "pairs": [{"instruction": q, "response": a} for q, a in BOTH],
                "license": "CC0-1.0",
                "source": "us",
                "split": "train",
            }
        ],
        pairs=BOTH,
    ),
    ReleaseExample(
        dataset="synthesizer_collection",
        file="00000.jsonl",
        content=[
            {"context": TEXT, "QA_list": [{"Q": q, "A": a} for q, a in BOTH], "QA_type": "x", "rc_name": "ferries"}
        ],
        pairs=BOTH,
    ),
    ReleaseExample(
        dataset="squad", file="train-v1.1.json", content=_squad(TEXT, (NINE, GOATS)), pairs=BOTH, title=TITLE
    ),
    ReleaseExample(
        dataset="squad_v2",
        file="train-v2.0.json",
        content=_SQUAD_V2,
        pairs=BOTH,
        title=TITLE,
        rejected=("unanswerable",),
    ),
    ReleaseExample(
        dataset="squad",
        file="train.parquet",
        content=_rows(
            list(zip((WHEN, WHAT), _SPANS, strict=True)), answer="answers", context=TEXT, title=TITLE, id="0"
        ),
        pairs=BOTH,
        title=TITLE,
    ),
    ReleaseExample(
        dataset="triviaqa",
        file="TriviaQA.jsonl",
        content=[{"context": TEXT, "qas": [{"qid": "0", "question": q, "answers": [a, "x"]} for q, a in BOTH]}],
        pairs=BOTH,
    ),
    ReleaseExample(
        dataset="newsqa",
        file="train.parquet",
        content=_rows([(q, [a, "x"]) for q, a in BOTH], answer="answers", context=TEXT, key="0"),
        pairs=BOTH,
    ),
    ReleaseExample(
        dataset="quoref",
        file="quoref-train.json",
        content={
            "data": [
                {
                    "title": TITLE,
                    "paragraphs": [
                        {
                            "context": TEXT,
                            "qas": [{"question": WHAT, "answers": [{"text": "forty"}, {"text": "goats"}]}],
                        }
                    ],
                }
            ]
        },
        pairs=((WHAT, "forty, goats"),),
        title=TITLE,
    ),
    ReleaseExample(
        dataset="quoref",
        file="train.parquet",
        content=[{"title": TITLE, "context": TEXT, "question": WHAT, "answers": {"text": ["forty", "goats"]}}],
        pairs=((WHAT, "forty, goats"),),
        title=TITLE,
    ),
    ReleaseExample(
        dataset="subjqa",
        file="train.parquet",
        content=[{"title": TITLE, "context": f"{TEXT} ANSWERNOTFOUND", "question": WHAT, "answers": {"text": [GOATS]}}],
        pairs=((WHAT, GOATS),),
        title=TITLE,
    ),
    ReleaseExample(
        dataset="duorc",
        file="SelfRC_train.json",
        content=[
            {
                "id": "/m/0",
                "title": TITLE,
                "plot": TEXT,
                "qa": [
                    {"id": "0", "question": WHEN, "answers": [NINE], "no_answer": False},
                    {"id": "1", "question": "Who steers it?", "answers": [], "no_answer": True},
                ],
            }
        ],
        pairs=((WHEN, NINE),),
        title=TITLE,
        rejected=("unanswerable",),
    ),
    ReleaseExample(
        dataset="duorc",
        file="train.parquet",
        content=_rows([(q, [a]) for q, a in BOTH], answer="answers", plot=TEXT, title=TITLE, no_answer=False),
        pairs=BOTH,
        title=TITLE,
    ),
    ReleaseExample(
        dataset="ropes",
        file="train-v1.0.json",
        content={
            "data": [
                {
                    "paragraphs": [
                        {
                            "background": _SENTENCES[0],
                            "situation": _SENTENCES[1],
                            "qas": [{"question": WHAT, "answers": [{"text": GOATS}]}],
                        }
                    ]
                }
            ]
        },
        pairs=((WHAT, GOATS),),
        text=_SENTENCE_LINES,
    ),
    ReleaseExample(
        dataset="ropes",
        file="train.parquet",
        content=[
            {"background": _SENTENCES[0], "situation": _SENTENCES[1], "question": WHAT, "answers": {"text": [GOATS]}}
        ],
        pairs=((WHAT, GOATS),),
        text=_SENTENCE_LINES,
    ),
    ReleaseExample(
        dataset="qed",
        file="qed-train.jsonlines",
        content=[
            {
                "example_id": 1,
                "title_text": TITLE,
                "question_text": WHEN,
                "paragraph_text": TEXT,
                "original_nq_answers": [{"start": 0, "end": 1, "string": NINE}],
                "annotation": {"selected_sentence": {"start": 0, "end": 1, "string": _SENTENCES[0]}},
            }
        ],
        pairs=((WHEN, NINE), (f"Which sentence of the text answers this: {WHEN}", _SENTENCES[0])),
        title=TITLE,
    ),
    ReleaseExample(
        dataset="coqa",
        file="coqa-train-v1.0.json",
        content={
            "version": "1.0",
            "data": [
                {
                    "id": "0",
                    "source": "us",
                    "story": TEXT,
                    "questions": [{"input_text": q, "turn_id": n} for n, q in enumerate((WHEN, "Why?", WHAT))],
                    "answers": [
                        {"input_text": a, "span_text": a, "turn_id": n} for n, a in enumerate((NINE, "unknown", GOATS))
                    ],
                    "additional_answers": {"0": [], "1": [], "2": []},
                }
            ],
        },
        pairs=BOTH,
        rejected=("unanswerable",),
    ),
    ReleaseExample(
        dataset="coqa",
        file="train.parquet",
        content=[
            {
                "source": "us",
                "story": TEXT,
                "questions": [WHEN, WHAT],
                "answers": {"input_text": [NINE, GOATS], "answer_start": [0, 1], "answer_end": [1, 2]},
            }
        ],
        pairs=BOTH,
    ),
    ReleaseExample(
        dataset="quac",
        file="train_v0.2.json",
        content={
            "data": [
                {
                    "title": TITLE,
                    "section_title": "x",
                    "background": "x",
                    "paragraphs": [{"id": "0", "context": f"{TEXT} CANNOTANSWER", "qas": _QUAC_TURNS}],
                }
            ]
        },
        pairs=((WHEN, NINE),),
        title=TITLE,
        rejected=("unanswerable",),
    ),
    ReleaseExample(
        dataset="quac",
        file="train.parquet",
        content=[
            {
                "wikipedia_page_title": TITLE,
                "context": f"{TEXT} CANNOTANSWER",
                "questions": [WHEN, "Why?"],
                "orig_answers": {"texts": [NINE, "CANNOTANSWER"], "answer_starts": [0, 1]},
            }
        ],
        pairs=((WHEN, NINE),),
        title=TITLE,
        rejected=("unanswerable",),
    ),
    ReleaseExample(
        dataset="hotpotqa",
        file="hotpot_train_v1.1.json",
        content=[
            {
                "_id": "0",
                "question": WHAT,
                "answer": GOATS,
                "context": [["Ferries", _SENTENCES], ["Bees", ["Bees stay."]]],
                "supporting_facts": [["Ferries", 1]],
            }
        ],
        pairs=((WHAT, GOATS),),
        text=f"Ferries\n{TEXT}\n\nBees\nBees stay.",
    ),
    ReleaseExample(
        dataset="hotpotqa",
        file="train.parquet",
        content=[
            {
                "id": "0",
                "question": WHAT,
                "answer": GOATS,
                "context": {"title": ["Ferries", "Bees"], "sentences": [_SENTENCES, ["Bees stay."]]},
            }
        ],
        pairs=((WHAT, GOATS),),
        text=f"Ferries\n{TEXT}\n\nBees\nBees stay.",
    ),
    ReleaseExample(
        dataset="musique",
        file="musique_ans_v1.0_train.jsonl",
        content=[
            {
                "id": "0",
                "paragraphs": [{"idx": 0, "title": "Ferries", "paragraph_text": TEXT, "is_supporting": True}],
                "question": WHAT,
                "answer": GOATS,
                "answerable": True,
            }
        ],
        pairs=((WHAT, GOATS),),
        text=f"Ferries\n{TEXT}",
    ),
    ReleaseExample(
        dataset="drop",
        file="drop_dataset_train.json",
        content={
            "p0": {
                "passage": TEXT,
                "qa_pairs": [
                    {"question": "How many?", "answer": {"number": "40", "date": {}, "spans": []}},
                    {"question": WHAT, "answer": {"number": "", "date": {}, "spans": ["forty", "goats"]}},
                    {
                        "question": "Which day?",
                        "answer": {"number": "", "date": {"day": "3", "month": "May", "year": "1901"}, "spans": []},
                    },
                    {
                        "question": "Which year?",
                        "answer": {"number": "", "date": {"day": "", "month": "", "year": "1901"}, "spans": []},
                    },
                ],
            }
        },
        pairs=(("How many?", "40"), (WHAT, "forty, goats"), ("Which day?", "3 May 1901"), ("Which year?", "1901")),
    ),
    ReleaseExample(
        dataset="drop",
        file="train.parquet",
        content=[
            {"passage": TEXT, "question": WHAT, "answers_spans": {"spans": ["forty", "goats"], "types": ["a", "b"]}}
        ],
        pairs=((WHAT, "forty, goats"),),
    ),
    ReleaseExample(
        dataset="strategyqa",
        file="strategyqa_train.json",
        content=[
            {
                "qid": "0",
                "term": "ferry",
                "question": "Do goats sail?",
                "answer": True,
                "facts": _SENTENCES,
                "decomposition": ["What sails?", "Are goats on #1?"],
            }
        ],
        pairs=(
            ("Do goats sail?\nOptions:\n- Yes\n- No", "Yes"),
            (
                "Which simpler questions does it take to answer this one? Do goats sail?",
                "What sails?\nAre goats on #1?",
            ),
        ),
        text=_SENTENCE_LINES,
    ),
    ReleaseExample(
        dataset="entailment_bank",
        file="train.jsonl",
        content=[
            {
                "id": "0",
                "question": WHAT,
                "answer": GOATS,
                "hypothesis": WHY,
                "meta": {"triples": {"sent1": _SENTENCES[0], "sent2": _SENTENCES[1]}},
            }
        ],
        pairs=((WHAT, GOATS), (f"{WHAT}{CUE}", f"{WHY}{SO}{GOATS}")),
        text=_SENTENCE_LINES,
    ),
    ReleaseExample(
        dataset="qasper",
        file="qasper-train-v0.3.json",
        content={
            "1901.00001": {
                "title": TITLE,
                "abstract": "An abstract.",
                "full_text": [
                    {"section_name": "One", "paragraphs": [_SENTENCES[0]]},
                    {"section_name": "Two", "paragraphs": [_SENTENCES[1]]},
                ],
                "qas": [
                    {"question": q, "answers": [{"answer": a}]}
                    for q, a in zip(_QASPER_QUESTIONS, _QASPER_ANSWERS, strict=True)
                ],
            }
        },
        **_QASPER,
    ),
    ReleaseExample(
        dataset="qasper",
        file="train.parquet",
        content=[
            {
                "id": "1901.00001",
                "title": TITLE,
                "abstract": "An abstract.",
                "full_text": {"section_name": ["One", "Two"], "paragraphs": [[_SENTENCES[0]], [_SENTENCES[1]]]},
                "qas": {
                    "question": list(_QASPER_QUESTIONS),
                    "answers": [{"answer": [answer]} for answer in _QASPER_ANSWERS],
                },
            }
        ],
        **_QASPER,
    ),
    ReleaseExample(
        dataset="narrativeqa",
        file="train.parquet",
        content=[
            {
                "document": {"id": "0", "summary": {"text": TEXT, "title": TITLE}, "text": "The whole story."},
                "question": {"text": q, "tokens": []},
                "answers": [{"text": a, "tokens": []}, {"text": "x", "tokens": []}],
            }
            for q, a in BOTH
        ],
        pairs=BOTH,
        title=TITLE,
    ),
    ReleaseExample(
        dataset="fairytaleqa",
        file="train.csv",
        content=_rows(BOTH, answer="answer1", story_name=TITLE, story_section=TEXT, attribute='a, "b"'),
        pairs=BOTH,
        title=TITLE,
    ),
    ReleaseExample(
        dataset="tweet_qa",
        file="train.json",
        content=[{"Tweet": TEXT, "Question": WHAT, "Answer": [GOATS], "qid": "0"}],
        pairs=((WHAT, GOATS),),
    ),
    ReleaseExample(
        dataset="boolq",
        file="train.jsonl",
        content=[
            {"question": "does the ferry sail", "title": TITLE, "answer": True, "passage": TEXT},
            {"question": "do the bees sail", "title": TITLE, "answer": False, "passage": TEXT},
        ],
        pairs=(
            ("does the ferry sail?\nOptions:\n- Yes\n- No", "Yes"),
            ("do the bees sail?\nOptions:\n- Yes\n- No", "No"),
        ),
        title=TITLE,
    ),
    ReleaseExample(
        dataset="pubmedqa",
        file="ori_pqal.json",
        content={
            "101": {
                "QUESTION": "Is it early?",
                "CONTEXTS": _SENTENCES,
                "LABELS": [],
                "LONG_ANSWER": WHY,
                "final_decision": "maybe",
            }
        },
        **_PUBMED,
    ),
    ReleaseExample(
        dataset="pubmedqa",
        file="train.parquet",
        content=[
            {
                "pubid": 101,
                "question": "Is it early?",
                "context": {"contexts": _SENTENCES, "labels": ["a", "b"]},
                "long_answer": WHY,
                "final_decision": "maybe",
            }
        ],
        **_PUBMED,
    ),
    ReleaseExample(
        dataset="race",
        file="high1.txt",
        content={
            "id": "high1.txt",
            "article": TEXT,
            "questions": [WHAT, WHEN],
            "options": [list(CHOICES), ["at two", NINE]],
            "answers": ["B", "B"],
        },
        pairs=((CHOOSE, GOATS), (f"{WHEN}\nOptions:\n- at two\n- at nine", NINE)),
    ),
    ReleaseExample(
        dataset="race",
        file="train.parquet",
        content=[{"example_id": "0", "article": TEXT, "question": WHAT, "options": list(CHOICES), "answer": "B"}],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="dream",
        file="train.json",
        content=[
            [
                ["M: The ferry leaves at nine.", "W: Good."],
                [{"question": WHAT, "choice": list(CHOICES), "answer": GOATS}],
                "1-1",
            ]
        ],
        pairs=((CHOOSE, GOATS),),
        text="M: The ferry leaves at nine.\nW: Good.",
    ),
    ReleaseExample(
        dataset="dream",
        file="train.parquet",
        content=[
            {"id": 0, "dialogue": ["M: Hm.", "W: Good."], "question": WHAT, "choice": list(CHOICES), "answer": GOATS}
        ],
        pairs=((CHOOSE, GOATS),),
        text="M: Hm.\nW: Good.",
    ),
    ReleaseExample(
        dataset="multirc",
        file="train.jsonl",
        content=[
            {
                "idx": 0,
                "passage": {
                    "text": TEXT,
                    "questions": [
                        {"question": WHAT, "answers": [{"text": t, "label": int(t == GOATS)} for t in CHOICES]},
                        {
                            "question": f"{WHAT} All?",
                            "answers": [{"text": t, "label": int(t != "bees")} for t in CHOICES],
                        },
                        {"question": WHAT, "answers": [{"text": t, "label": 0} for t in CHOICES]},
                    ],
                },
            }
        ],
        pairs=((CHOOSE, GOATS), (CHOOSE.replace(WHAT, f"{WHAT} All?"), f"cows\n{GOATS}")),
        rejected=("no_answer",),
    ),
    ReleaseExample(
        dataset="cosmosqa",
        file="train.csv",
        content=[
            {
                "id": "0",
                "context": TEXT,
                "question": WHAT,
                "answer0": "cows",
                "answer1": GOATS,
                "answer2": "bees",
                "answer3": "",
                "label": "1",
            },
        ],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="social_iqa",
        file="train.parquet",
        content=[
            {"context": TEXT, "question": WHAT, "answerA": "cows", "answerB": GOATS, "answerC": "bees", "label": "2"}
        ],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="quail",
        file="train.parquet",
        content=[{"context": TEXT, "question": WHAT, "answers": list(CHOICES), "correct_answer_id": 1}],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="reclor",
        file="train.json",
        content=[{"context": TEXT, "question": WHAT, "answers": list(CHOICES), "label": 1, "id_string": "0"}],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="logiqa",
        file="train.parquet",
        content=[{"context": TEXT, "query": WHAT, "options": list(CHOICES), "correct_option": 1}],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="logiqa",
        file="train.jsonl",
        content=[{"id": 0, "text": TEXT, "question": WHAT, "options": list(CHOICES), "answer": 1, "type": {}}],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="qasc",
        file="train.jsonl",
        content=[{"id": "0", **_JSON_QUESTION, **_FACTS}],
        pairs=((CHOOSE, GOATS), REASON),
        text=_SENTENCE_LINES,
    ),
    ReleaseExample(
        dataset="qasc",
        file="train.parquet",
        content=[{"id": "0", "question": WHAT, **_ROW_CHOICES, **_FACTS}],
        pairs=((CHOOSE, GOATS), REASON),
        text=_SENTENCE_LINES,
    ),
    ReleaseExample(
        dataset="openbookqa",
        file="train_complete.jsonl",
        content=[{"id": "0", **_JSON_QUESTION, "fact1": TEXT}],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="openbookqa",
        file="train.parquet",
        content=[{"id": "0", "question_stem": WHAT, **_ROW_CHOICES, "fact1": TEXT}],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="quartz", file="train.jsonl", content=[{**_JSON_QUESTION, "para": TEXT}], pairs=((CHOOSE, GOATS),)
    ),
    ReleaseExample(
        dataset="quartz",
        file="train.parquet",
        content=[{"question": WHAT, **_ROW_CHOICES, "para": TEXT}],
        pairs=((CHOOSE, GOATS),),
    ),
    ReleaseExample(
        dataset="sciq",
        file="train.json",
        content=[
            {"question": WHAT, "distractor1": "bees", "distractor2": "cows", "correct_answer": GOATS, "support": TEXT}
        ],
        # The order of these three follows from their hashes.
        pairs=((f"{WHAT}\nOptions:\n- bees\n- forty goats\n- cows", GOATS),),
    ),
    ReleaseExample(
        dataset="scienceqa",
        file="problems.json",
        content={
            "1": {
                "question": WHAT,
                "choices": list(CHOICES),
                "answer": 1,
                "hint": _SENTENCES[1],
                "lecture": _SENTENCES[0],
                "solution": WHY,
                "image": None,
            }
        },
        pairs=((CHOOSE, GOATS), REASON),
        text=_SENTENCE_LINES,
    ),
    ReleaseExample(
        dataset="scienceqa",
        file="train.parquet",
        content=[
            {
                "question": WHAT,
                "choices": list(CHOICES),
                "answer": 1,
                "hint": "",
                "lecture": TEXT,
                "solution": WHY,
                "image": None,
            },
            {
                "question": WHAT,
                "choices": list(CHOICES),
                "answer": 1,
                "hint": "",
                "lecture": TEXT,
                "solution": WHY,
                "image": {"bytes": b"x", "path": None},
            },
        ],
        pairs=((CHOOSE, GOATS), REASON),
        rejected=("unanswerable", "unanswerable"),
    ),
    ReleaseExample(
        dataset="wikitablequestions",
        file="train.parquet",
        content=[
            {
                "id": "0",
                "question": WHAT,
                "answers": ["goats", "bees"],
                "table": {"header": _TABLE[0], "rows": _TABLE[1:], "name": "x.tsv"},
            }
        ],
        pairs=((WHAT, "goats, bees"),),
        text=_TABLE_LINES.replace("\n |", "\n|"),
    ),
    ReleaseExample(
        dataset="finqa",
        file="train.json",
        content=[
            {
                "pre_text": ["Before.", "Still before."],
                "table": _TABLE[:2],
                "post_text": ["After."],
                "qa": {"question": "How many?", "answer": "", "exe_ans": 40.0, "program": "x"},
            }
        ],
        pairs=(("How many?", "40"),),
        text="Before. Still before.\nleft | load\nnine | goats\nAfter.",
    ),
    ReleaseExample(
        dataset="tatqa",
        file="tatqa_dataset_train.json",
        content=[
            {
                "table": {"uid": "0", "table": _TABLE[:2]},
                "paragraphs": [{"uid": "1", "order": 1, "text": TEXT}],
                "questions": [
                    {"question": WHAT, "answer": ["cows", "bees"], "scale": "", "derivation": ""},
                    {"question": "How many?", "answer": 40.5, "scale": "thousand", "derivation": ""},
                    {"question": WHEN, "answer": NINE, "scale": "", "derivation": ""},
                ],
            }
        ],
        pairs=((WHAT, "cows, bees"), ("How many?", "40.5 thousand"), (WHEN, NINE)),
        text=f"left | load\nnine | goats\n{TEXT}",
    ),
    ReleaseExample(
        dataset="esnli",
        file="esnli_train_1.csv",
        content=[
            {"pairID": "0", "gold_label": "neutral", "Sentence1": TEXT, "Sentence2": _HYPOTHESIS, "Explanation_1": WHY}
        ],
        pairs=(
            (
                _JUDGE,
                "The text does not say",
            ),
            (
                f"{_JUDGE}{CUE}",
                f"{WHY}{SO}The text does not say",
            ),
        ),
    ),
    ReleaseExample(
        dataset="esnli",
        file="train.parquet",
        content=[{"premise": TEXT, "hypothesis": _HYPOTHESIS, "label": 2, "explanation_1": WHY}],
        pairs=(
            (
                _JUDGE,
                "No",
            ),
            (
                f"{_JUDGE}{CUE}",
                f"{WHY}{SO}No",
            ),
        ),
    ),
    ReleaseExample(
        dataset="anli",
        file="train.jsonl",
        content=[{"uid": "0", "context": TEXT, "hypothesis": _HYPOTHESIS, "label": "e", "reason": ""}],
        pairs=(
            (
                f"Does the text support this statement? {_HYPOTHESIS}\nOptions:\n- Yes\n- No\n- It leaves that open",
                "Yes",
            ),
        ),
    ),
    ReleaseExample(
        dataset="scicite",
        file="train.jsonl",
        content=[{"string": TEXT, "label": "method", "sectionName": "x"}],
        pairs=(("What does the text cite other work for?\nOptions:\n- background\n- method\n- result", "method"),),
    ),
    ReleaseExample(
        dataset="ag_news",
        file="train.parquet",
        content=[{"text": TEXT, "label": 3}],
        pairs=(
            (
                "Which section of a newspaper would print this?\nOptions:\n- World\n- Sports\n- Business\n"
                "- Science and technology",
                "Science and technology",
            ),
        ),
    ),
    ReleaseExample(
        dataset="imdb",
        file="train.parquet",
        content=[{"text": TEXT, "label": 0}],
        pairs=(("Did the reviewer like the film?\nOptions:\n- No\n- Yes", "No"),),
    ),
    ReleaseExample(
        dataset="samsum",
        file="train.json",
        content=[{"id": "0", "dialogue": TEXT, "summary": GOATS}],
        pairs=(("Sum up this conversation.", GOATS),),
    ),
    ReleaseExample(
        dataset="dialogsum",
        file="dialogsum.train.jsonl",
        content=[{"fname": "0", "dialogue": TEXT, "summary": GOATS, "topic": "ferry"}],
        pairs=(("Sum up this conversation.", GOATS), ("What is the conversation about, in a few words?", "ferry")),
    ),
    ReleaseExample(
        dataset="cnn_dailymail",
        file="train.parquet",
        content=[{"article": TEXT, "highlights": GOATS, "id": "0"}],
        pairs=(("Give the main points of this article.", GOATS),),
    ),
    ReleaseExample(
        dataset="xsum",
        file="train.parquet",
        content=[{"document": TEXT, "summary": GOATS, "id": "0"}],
        pairs=(("Sum up this article in one sentence.", GOATS),),
    ),
    ReleaseExample(
        dataset="scitldr",
        file="train.jsonl",
        content=[{"source": [_SENTENCES[0], _SENTENCES[1]], "target": [GOATS, "x"], "paper_id": "0", "title": TITLE}],
        pairs=(("Say in one sentence what this paper contributes.", GOATS),),
        title=TITLE,
    ),
]
