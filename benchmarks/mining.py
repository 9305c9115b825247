"""How fast tasks are mined, next to how fast the same texts are tokenized, each on one core; and what is mined.

``python -m benchmarks.mining TOKENIZER_FOLDER CORPUS...`` reads the first documents of each corpus (a file with a
``text``, an ``id`` and perhaps a ``title`` in each record), splits them as the ``mine`` command does, selects keywords
against the tokenizer's vocabulary, and takes turns: it mines all documents, then encodes their texts as one batch with
``encode_batch_fast``. CPU time is measured, so that other work on the machine counts little. Printed for each corpus:
MB (10^6 bytes of UTF-8 of the raw text) per second, medians over the turns, the median of each turn's ratio of mining
time to tokenizing time, the seconds of keyword selection, and the tasks a document of each kind.

Cost: some seconds a corpus. Not measured here: reading, Beam, writing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

# Read when the thread pool of the tokenizers library starts, so set before it is imported.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer

from beam_pipelines.mining.bank import KINDS, load_mining_bank
from beam_pipelines.mining.document_parts import split_document
from beam_pipelines.mining.keywords import KeywordConfig, count_words, select_keywords
from beam_pipelines.mining.tasks import TaskMiner
from beam_pipelines.record_reading import FieldNames, document_from_record
from contracts.record_files import Record, read_records
from contracts.records import Document
from synth_model.prompt_tokenizer import ModelTokenizer

KEYWORDS = KeywordConfig()


def read_documents(path: str, *, num_bytes: int, max_words: int) -> list[Document]:
    """The first documents of a corpus, up to ``num_bytes`` of text, split into parts of ``max_words`` words."""
    documents: list[Document] = []
    total = 0
    for record in read_records(path):
        document = document_from_record(record, fields=FieldNames()) if isinstance(record, Record) else record
        if not isinstance(document, Document):
            continue
        total += len(document.text.encode())
        if documents and total > num_bytes:
            break
        documents += split_document(document, max_words=max_words)
    return documents


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of all threads, and what the work returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def keywords_of(documents: Iterable[Document], tokenizer_folder: str) -> frozenset[str]:
    """The keywords of a corpus in the default settings."""
    counts = count_words(document.text for document in documents)
    return select_keywords(
        [(word, count) for word, count in counts.items() if count >= KEYWORDS.min_count],
        vocab_size=KEYWORDS.vocab_size,
        count_tokens=ModelTokenizer(tokenizer_folder).count_text,
    )


def measure(path: str, *, tokenizer_folder: str, num_bytes: int, max_words: int, num_turns: int) -> None:
    """Measures one corpus and prints its figures."""
    documents = read_documents(path, num_bytes=num_bytes, max_words=max_words)
    texts = [document.text for document in documents]
    num_megabytes = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = Tokenizer.from_file(os.path.join(tokenizer_folder, "tokenizer.json"))
    bank = load_mining_bank("english")
    keyword_seconds, keywords = cpu_seconds(lambda: keywords_of(documents, tokenizer_folder))
    mining, tokenizing, tasks = [], [], []
    # The first turn fills the caches of words and patterns; it is not counted.
    for turn in range(num_turns + 1):
        miner = TaskMiner(bank, seed=turn)
        mine_seconds, tasks = cpu_seconds(
            lambda miner=miner: [task for document in documents for task in miner.mine(document, keywords=keywords)]
        )
        tokenize_seconds, _ = cpu_seconds(lambda: tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        if turn:
            mining.append(mine_seconds)
            tokenizing.append(tokenize_seconds)
    ratio = statistics.median(a / b for a, b in zip(mining, tokenizing, strict=True))
    by_kind = Counter(task.kind for task in tasks)
    print(
        f"\n{os.path.basename(path)}: {len(documents)} documents and parts, {num_megabytes:.2f} MB, {num_turns} turns"
    )
    print(f"mining      {num_megabytes / statistics.median(mining):8.2f} MB/s")
    print(f"tokenizing  {num_megabytes / statistics.median(tokenizing):8.2f} MB/s")
    print(f"ratio       {ratio:8.1%} of tokenizing time")
    print(f"keywords    {len(keywords):8} in {keyword_seconds:.2f} s, the tokenizer's load included")
    print(f"tasks       {len(tasks) / len(documents):8.2f} a document")
    for kind in KINDS:
        print(f"            {by_kind[kind] / len(documents):8.2f} {kind}")


def main() -> None:
    """Measures each corpus."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mining")
    parser.add_argument("tokenizer", help="folder with tokenizer.json")
    parser.add_argument("corpora", nargs="+", help="files of records")
    parser.add_argument("--megabytes", type=float, default=3.0, help="text taken from each corpus")
    parser.add_argument("--max_words", type=int, default=1000, help="longer documents are split")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    for path in args.corpora:
        measure(
            path,
            tokenizer_folder=args.tokenizer,
            num_bytes=int(args.megabytes * 1e6),
            max_words=args.max_words,
            num_turns=args.turns,
        )


if __name__ == "__main__":
    main()
