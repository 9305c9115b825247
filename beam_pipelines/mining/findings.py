"""Finds what a text says about itself: pairs of passages whose relation the text marks with a connective.

* A sentence that begins with a connective stands in that relation to the sentence before it in its paragraph.
* A sentence with one connective inside is split there: an effect and its cause, a term and its definition.
* The title stands for the text, the last sentence of a paragraph completes those before it, and a sentence with
  several keywords of the domain can be written from them.

Every value is a slice of the text (or the title), unchanged; a sentence without its connective therefore begins with a
small letter.

Cost: linear in the text: connectives are literal phrases, and a sentence has at most `prose.MAX_CHARACTERS`.
Not done here: checking that a relation holds; a connective is taken at its word.
Source: Cheng et al. 2023 (arXiv 2309.09530), section 3 (mining patterns).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from beam_pipelines.mining.bank import BETWEEN_SENTENCES, INSIDE_SENTENCES, MiningBank
from beam_pipelines.mining.keywords import words_of
from beam_pipelines.mining.prose import MIN_WORDS, Span, prose_runs
from contracts.records import Document

MIN_KEYWORDS = 3
MAX_KEYWORDS = 6
_MAX_TERM_WORDS = 5
_MAX_TITLE_CHARACTERS = 200
_AROUND_CONNECTIVE = " \t\r\n,;:"
_NO_TERM = re.compile(r"[,;:()\n]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A relation of `beam_pipelines.mining.bank.RELATIONS` with the passages that stand in it, by field name."""

    relation: str
    values: Mapping[str, str]


class FindingExtractor:
    """Reads documents with the connectives of a bank."""

    def __init__(self, bank: MiningBank) -> None:
        self._bank = bank
        self._relation_of = {phrase: name for name in BETWEEN_SENTENCES for phrase in bank.connectives[name]}
        self._begins = re.compile(f"{_any_of(self._relation_of)},?\\s+")
        self._inside_of = {phrase: name for name in INSIDE_SENTENCES for phrase in bank.connectives[name]}
        self._inside = re.compile(f"\\b{_any_of(self._inside_of)}\\b")

    def extract(self, document: Document, *, keywords: AbstractSet[str] = frozenset()) -> list[Finding]:
        """The findings of a document in the order of its text, each once; the title's first."""
        text = document.text
        runs = prose_runs(text, language=self._bank.language)
        found = list(self._title(document, runs))
        for run in runs:
            for index, (start, end) in enumerate(run):
                sentence = text[start:end]
                if index:
                    found += self._between(text[slice(*run[index - 1])], sentence)
                found += self._split(sentence)
                found += _keywords(sentence, keywords)
            if len(run) > 2:
                found.append(
                    Finding(
                        relation="ending",
                        values={"passage": text[run[-3][0] : run[-2][1]], "ending": text[slice(*run[-1])]},
                    )
                )
        # A sentence that a text repeats is found once.
        return list({(finding.relation, *finding.values.values()): finding for finding in found}.values())

    def _title(self, document: Document, runs: Sequence[Sequence[Span]]) -> Iterator[Finding]:
        title = (document.title or "").strip()
        if not title or len(title) > _MAX_TITLE_CHARACTERS:
            return
        # Some texts repeat their title as the first sentence, which is no opening for it.
        spans = [
            span for run in runs[:1] for span in run if document.text[slice(*span)].rstrip(".") != title.rstrip(".")
        ]
        opening = {"opening": document.text[spans[0][0] : spans[:2][-1][1]]} if spans else {}
        yield Finding(relation="title", values={"title": title, **opening})

    def _between(self, first: str, sentence: str) -> Iterator[Finding]:
        match = self._begins.match(sentence)
        if match is None:
            return
        name, second = self._relation_of[_one_space(match[1])], sentence[match.end() :]
        if not self._is_clause(second):
            return
        if name == "effect":
            yield Finding(relation="causation", values={"cause": first, "effect": second})
        else:
            yield Finding(relation=name, values={"first": first, "second": second})

    def _split(self, sentence: str) -> Iterator[Finding]:
        matches = list(self._inside.finditer(sentence))
        # With two connectives it is not clear what belongs to which.
        if len(matches) != 1:
            return
        match = matches[0]
        before = sentence[: match.start()].rstrip(_AROUND_CONNECTIVE)
        after = sentence[match.end() :].lstrip(_AROUND_CONNECTIVE)
        if self._inside_of[_one_space(match[1])] == "cause":
            if self._is_clause(before) and len(after.split()) >= 2:
                yield Finding(relation="causation", values={"cause": after, "effect": before})
        elif self._is_term(before) and len(after.split()) >= MIN_WORDS:
            yield Finding(relation="definition", values={"term": before, "definition": after})

    def _is_clause(self, words: str) -> bool:
        parts = words.split()
        return len(parts) >= MIN_WORDS and parts[-1].casefold() not in self._bank.unfinished_ends

    def _is_term(self, words: str) -> bool:
        parts = words.split()
        return (
            0 < len(parts) <= _MAX_TERM_WORDS
            and _NO_TERM.search(words) is None
            and parts[0].casefold() not in self._bank.no_terms
            and parts[-1].casefold() not in self._bank.unfinished_ends | self._bank.no_terms
        )


def _keywords(sentence: str, keywords: AbstractSet[str]) -> Iterator[Finding]:
    found = [word for word in dict.fromkeys(words_of(sentence)) if word in keywords] if keywords else []
    if len(found) >= MIN_KEYWORDS:
        yield Finding(relation="keywords", values={"keywords": ", ".join(found[:MAX_KEYWORDS]), "sentence": sentence})


def _any_of(phrases: Iterable[str]) -> str:
    """A group of literal phrases, the longest first, so that none hides another that it begins."""
    ordered = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return "(" + "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in ordered) + ")"


def _one_space(phrase: str) -> str:
    """A matched phrase as the bank has it: a line break of the text may stand inside."""
    return " ".join(phrase.split())
