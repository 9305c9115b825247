import io
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from synth_model.evaluation.judging import describe, make_figures
from synth_model.evaluation.report import format_value, print_report, render_page
from tests.synth_model.evaluation.test_judging import BAD, BOOTSTRAP, GOOD, TEXTS

ACCOUNTS = {"num_texts": 2, "num_tuned_on": 0, "num_duplicates": 0, "num_too_long": 0, "num_not_drawn": 0}


def results(judgements=(*GOOD, *BAD), texts=TEXTS):
    return {
        "figures": [asdict(figure) for figure in make_figures(judgements, texts=texts, bootstrap=BOOTSTRAP)],
        "descriptions": [asdict(description) for description in describe(judgements, texts=texts)],
        "datasets": [{"split": "seen", "dataset": "tides", **ACCOUNTS, "num_selected": 2}],
        "failures": {"good": {}, "bad": {"out_of_memory": 2}},
        "config": {"confidence": 0.9},
        "inputs": {"model of good": "m"},
    }


def page(texts=TEXTS, judgements=(*GOOD, *BAD), max_texts=5):
    return render_page(results(judgements, texts), texts=texts, judgements=judgements, max_texts=max_texts)


class Balance(HTMLParser):
    """Counts elements and fails on one that is closed without being open."""

    VOID = frozenset({"meta"})

    def __init__(self):
        super().__init__()
        self.open, self.count = [], {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing():
    html = page()
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert parser.count["article"] == 3
    assert parser.count["table"] >= 8
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?:", html)
    assert "bad: failed prompts" in html
    assert "2 out_of_memory" in html


def test_what_texts_and_models_wrote_is_escaped():
    evil = '<script>alert("1")</script>{{ 7 * 6 }}</p>'
    gold = replace(TEXTS[0].gold, document=replace(TEXTS[0].gold.document, text=evil, title=evil, source=evil))
    pairs = tuple(replace(pair, instruction=evil, response=evil) for pair in gold.pairs)
    gold = replace(gold, pairs=pairs)
    texts = [replace(TEXTS[0], gold=gold, questions=pairs), *TEXTS[1:]]
    judgements = [replace(GOOD[0], responses=(evil, evil), pairs=pairs, system=evil)]
    judgements += [replace(judgement, system=evil) for judgement in GOOD[1:]]
    html = page(texts, judgements)
    assert evil not in html
    assert html.count("<script>") == 1
    assert "alert(&#34;1&#34;)" in html
    assert "{{ 7 * 6 }}" in html
    Balance().feed(html)


def test_as_many_texts_of_a_dataset_are_shown_as_asked_for():
    assert page(max_texts=1).count("<article") == 2
    assert page(max_texts=0).count("<article") == 0


def test_the_table_holds_the_headline_figures():
    out = io.StringIO()
    print_report(results(), console=Console(file=out, width=200))
    text = out.getvalue()
    (row,) = re.findall(r"^good +1 +unseen +100\.0 .*$", text, re.MULTILINE)
    assert row.split() == ["good", "1", "unseen", "100.0", "100.0", "100.0", "100.0", "1.00"]
    assert re.search(r"^good − bad +1 +unseen +\+100\.0", text, re.MULTILINE)
    assert "bad: 2 prompts failed" in text
    assert "90 % interval" in text


@pytest.mark.parametrize(
    ("measure", "value", "sign", "shown"),
    [
        ("pair_f1", 0.12345, "", "12.3"),
        ("pair_f1", -0.0001, "+", "+0.0"),
        ("pair_f1", 0.05, "+", "+5.0"),
        ("num_pairs", 2.345, "", "2.35"),
        ("num_pairs", None, "", "–"),
    ],
)
def test_how_figures_are_written(measure, value, sign, shown):
    assert format_value(measure, value, sign=sign) == shown
