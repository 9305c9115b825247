"""A small real corpus that every Python installation already carries.

``pydoc_data.topics`` holds the chapters of the Python language reference that ``help("for")`` shows. This module
reads them at run time, strips their plain-text markup and cuts passages of prose from them, so that the quickstart
has real text without a download and without a copy of that text in the project.

What is removed: heading underlines, grammar productions, signatures, indented code, tables and lists of exceptions,
footnote marks, cross-reference markers, emphasis asterisks. What is kept: paragraphs of prose, unwrapped to one line
each.

Cost: a few milliseconds. Not done here: anything about other corpora; bring those as files
(`beam_pipelines.record_reading`).
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass

from contracts.seeding import stable_hash_hex
from contracts.storage import read_text, write_bytes_atomically

_UNDERLINE = re.compile(r"^[*=\-^~\"+]{3,}$")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])")
_FOOTNOTE_MARK = re.compile(r"\s*\[\d+\]")
_HYPHEN_AT_LINE_END = re.compile(r"(?<=\w)-\n(?=\w)")
_PROSE_END = re.compile(r"[.!?][)\"”’]*$")


@dataclass(kw_only=True)
class ExampleCorpusConfig:
    """Settings of ``python -m beam_pipelines example-corpus``.

    Args:
        output: File to write, one JSON object a line with ``id``, ``title``, ``text`` and ``source``.
        max_documents: At most this many passages, chosen round robin over the topics (at least 1).
        min_words: Passages with fewer words are dropped.
        max_words: A passage ends before it would exceed this many words.
        seed: Chooses which topics go first.
    """

    output: str
    max_documents: int = 64
    min_words: int = 45
    max_words: int = 90
    seed: int = 0


def topic_passages(topic_text: str, *, min_words: int, max_words: int) -> tuple[str, list[str]]:
    """Splits one help topic into its title and its passages of prose.

    A passage is a run of neighbouring prose paragraphs of ``min_words`` to ``max_words`` words in all. A paragraph
    of more than ``max_words`` is left out rather than cut.
    """
    blocks = [block for block in re.split(r"\n\s*\n", topic_text) if block.strip()]
    title = ""
    passages: list[str] = []
    pending: list[str] = []

    def num_words(paragraphs: list[str]) -> int:
        return sum(len(paragraph.split()) for paragraph in paragraphs)

    def flush() -> None:
        if num_words(pending) >= min_words:
            passages.append("\n\n".join(pending))
        pending.clear()

    for block in blocks:
        lines = block.split("\n")
        if len(lines) == 2 and _UNDERLINE.match(lines[1].strip()):
            title = title or _clean(lines[0])
            flush()
            continue
        paragraph = _clean(block)
        if not _is_prose(block, paragraph):
            flush()
            continue
        if num_words([*pending, paragraph]) > max_words:
            flush()
        if num_words([paragraph]) <= max_words:
            pending.append(paragraph)
    flush()
    return title, passages


def _is_prose(block: str, paragraph: str) -> bool:
    """Whether a block is running text: not indented code, grammar, a table row or a list item."""
    if any(line.startswith((" ", "\t")) for line in block.split("\n")):
        return False
    if "::=" in block or ">>>" in block or "---" in block or paragraph.startswith(("[", "* ", "Note:", "See also")):
        return False
    # A paragraph that ends with a colon announces an example that is not kept.
    return bool(_PROSE_END.search(paragraph)) and len(paragraph.split()) >= 6


def _clean(block: str) -> str:
    text = _HYPHEN_AT_LINE_END.sub("-", block)
    text = " ".join(text.split())
    text = _FOOTNOTE_MARK.sub("", text)
    return _EMPHASIS.sub(r"\2", text)


def example_documents(config: ExampleCorpusConfig) -> list[dict[str, str]]:
    """The corpus as JSON-ready records, the first passage of every topic before the second of any."""
    from pydoc_data.topics import topics

    by_topic: list[tuple[str, str, list[str]]] = []
    for topic in sorted(topics, key=lambda name: stable_hash_hex(config.seed, "topic", name)):
        title, passages = topic_passages(topics[topic], min_words=config.min_words, max_words=config.max_words)
        by_topic.append((topic, title or topic, passages))
    source = f"python-language-reference-{sys.version_info.major}.{sys.version_info.minor}"
    documents: list[dict[str, str]] = []
    seen: set[str] = set()
    for index in range(max((len(passages) for _, _, passages in by_topic), default=0)):
        for topic, title, passages in by_topic:
            # Several topics share a section; a passage stands in the corpus once.
            if index < len(passages) and passages[index] not in seen and len(documents) < config.max_documents:
                seen.add(passages[index])
                documents.append({"id": f"{topic}-{index}", "title": title, "text": passages[index], "source": source})
    return documents


def write_example_corpus(config: ExampleCorpusConfig) -> int:
    """Writes the corpus and returns its number of documents; an identical file is left as it is."""
    if config.max_documents < 1 or not 0 < config.min_words <= config.max_words:
        raise ValueError(
            f"max_documents={config.max_documents}, min_words={config.min_words}, max_words={config.max_words}: "
            "max_documents must be at least 1 and 0 < min_words <= max_words."
        )
    documents = example_documents(config)
    content = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    if read_text(config.output, missing="") != content:
        write_bytes_atomically(config.output, content.encode())
    return len(documents)


def main(config: ExampleCorpusConfig) -> int:
    """Runs the command; returns its exit status."""
    num_documents = write_example_corpus(config)
    print(f"{num_documents} documents from Python's language reference in {config.output}")
    return 0
