import json
import os
import re

import pytest

from beam_pipelines.example_corpus import ExampleCorpusConfig, example_documents, topic_passages, write_example_corpus

TOPIC = """The "fog" statement
*******************

A "fog" statement is used for **clarity** when nothing else in the lan-
guage will do and *every* other statement has been tried in vain [1].

   fog_stmt ::= "fog" expression

It has no effect whatsoever on the program, which may be the point of
it, since a program that does nothing has no errors.

>>> fog(1)

class fog(**kwargs)
class fog(mapping, iterable, start, stop, step, **kwargs)

Changed in version 9.9: Short.

-[ Footnotes ]-
"""


def test_passages_of_a_topic_are_its_prose():
    title, passages = topic_passages(TOPIC, min_words=10, max_words=40)
    assert title == 'The "fog" statement'
    assert passages == [
        'A "fog" statement is used for clarity when nothing else in the lan-guage will do and every other statement '
        "has been tried in vain.",
        "It has no effect whatsoever on the program, which may be the point of it, since a program that does nothing "
        "has no errors.",
    ]


def test_neighbouring_paragraphs_share_a_passage_up_to_the_limit():
    topic = "\n\n".join(f"Sentence number {number} has exactly eight words." for number in range(5))
    assert [passage.count("Sentence") for passage in topic_passages(topic, min_words=7, max_words=14)[1]] == [2, 2, 1]
    assert [passage.count("Sentence") for passage in topic_passages(topic, min_words=8, max_words=14)[1]] == [2, 2]


def test_the_quickstart_corpus_is_large_enough_and_free_of_markup(tmp_path):
    output = tmp_path / "corpus" / "reference.jsonl"
    config = ExampleCorpusConfig(output=str(output), max_documents=52, max_words=80)
    num_documents = write_example_corpus(config)
    documents = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert 48 <= num_documents == len(documents) <= 52
    assert (
        len({document["id"] for document in documents})
        == len({document["text"] for document in documents})
        == num_documents
    )
    for document in documents:
        assert config.min_words <= len(document["text"].split()) <= config.max_words
        assert document["title"].strip()
        assert document["source"].startswith("python-language-reference-3.")
        for line in document["text"].split("\n"):
            assert not line.strip() or set(line.strip()) - set('*=-^~"+'), line
            assert line == "" or line.rstrip(')"”’')[-1] in ".!?", line
        assert not re.search(r"::=|>>>|---|(?<!\w)\*+[A-Za-z]+\*+", document["text"]), document["text"]

    before = os.stat(output).st_mtime_ns
    assert write_example_corpus(config) == num_documents
    assert os.stat(output).st_mtime_ns == before


def test_another_seed_chooses_other_passages_and_a_short_corpus_covers_many_topics():
    first, second = (example_documents(ExampleCorpusConfig(output="", max_documents=20, seed=seed)) for seed in (0, 1))
    assert {document["id"] for document in first} != {document["id"] for document in second}
    assert len({document["id"].rpartition("-")[0] for document in first}) == 20


@pytest.mark.parametrize("settings", [{"max_documents": 0}, {"min_words": 0}, {"min_words": 100, "max_words": 90}])
def test_impossible_settings_are_refused(tmp_path, settings):
    output = tmp_path / "corpus.jsonl"
    with pytest.raises(ValueError, match=next(iter(settings))):
        write_example_corpus(ExampleCorpusConfig(output=str(output), **settings))
    assert not output.exists()
