"""``python -m trainer tokenizer --config FILE``: a tokenizer of one's own, trained on a sample of the corpora.

A SentencePiece BPE model with byte fallback is trained and written as a folder that transformers loads, with a report
of how far it compresses texts that it was not trained on, file by file, beside a tokenizer to compare with. Nothing is
normalized: no space is added, removed or joined, so that decoding gives back what was encoded. Digits are tokens one by
one; a line feed is a token of its own, so that no token reaches over the end of a line.

The folder holds the definition that the ``tokenizers`` library runs: the pieces, and the merges that they imply. Words
are cut off before merging, which changes no token, since no piece reaches over a space that follows a word, and lets
the library remember the words it has seen.

One character does not survive: U+2581, which SentencePiece writes for a space, comes back as one.

Cost: one pass over the files, then minutes for 100 MB; about ten times the sample in memory. The result does not depend
on the order of the files or on the number of threads.

Source: Sennrich et al. 2016 (arXiv 1508.07909) for BPE, Kudo and Richardson 2018 (arXiv 1808.06226) for SentencePiece.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from contracts import storage
from contracts.artifact import claim_output, describe_run, mark_completed
from contracts.record_files import SUFFIXES
from trainer.command_line import run_command
from trainer.config import parse_config
from trainer.progress import CONSOLE
from trainer.text_sample import SampledTexts, sample_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger(__name__)

REPORT_FILE = "report.json"
UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
_SPACE = "\u2581"
# A word with the spaces before it, spaces at the end of a line, line feeds.
_WORD = rf"{_SPACE}*[^{_SPACE}\n]+|{_SPACE}+|\n+"
_NUM_BYTE_PIECES = 256
# Lines above this many bytes would be skipped without a word; none is.
_MAX_LINE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Train a tokenizer on a sample of the corpora.

    Args:
        input: Files, folders and globs of ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``, ``.txt`` and ``.parquet``.
        output: Folder for the tokenizer; belongs to this run alone.
        vocab_size: Number of ids, among them 256 for bytes and 3 special ones.
        text_field: The field of a record that holds its text.
        max_sample_bytes: Most bytes of text to train on.
        max_measured_bytes: Most bytes of each file to measure compression on.
        measured_share: Share of the texts that is kept out of training, to measure on.
        character_coverage: Share of the characters of the sample that get a piece; the rarest fall back to bytes.
        base_tokenizer: Hub name or folder of a tokenizer to compare with.
        seed: Decides which texts are drawn.
    """

    input: list[str]
    output: str
    vocab_size: int = 32_000
    text_field: str = "text"
    max_sample_bytes: int = 100_000_000
    max_measured_bytes: int = 1_000_000
    measured_share: float = 0.05
    character_coverage: float = 0.9995
    base_tokenizer: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if not self.input:
            raise ValueError("input is empty; give files, folders or globs to read texts from.")
        least_size = _NUM_BYTE_PIECES + 3
        if self.vocab_size <= least_size:
            raise ValueError(
                f"vocab_size is {self.vocab_size}; it must be above {least_size}, the bytes and special tokens."
            )
        for name in ("max_sample_bytes", "max_measured_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.measured_share < 1:
            raise ValueError(f"measured_share is {self.measured_share}; it must be from 0 to below 1.")
        if not 0 < self.character_coverage <= 1:
            raise ValueError(f"character_coverage is {self.character_coverage}; it must be above 0 and at most 1.")


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""

    def work() -> int:
        train_tokenizer(parse_config(TokenizerConfig, arguments=arguments, program="python -m trainer tokenizer"))
        return 0

    return run_command(work)


def train_tokenizer(config: TokenizerConfig) -> dict[str, Any]:
    """Makes the tokenizer's folder, unless it is complete already, and returns and prints its report.

    Raises:
        ValueError: A setting is impossible, the files hold no text, no vocabulary of that size can be made from it, or
            the base tokenizer is not there.
    """
    config.check()
    base = _load_base(config.base_tokenizer) if config.base_tokenizer else None
    files = storage.find_input_files(config.input, suffixes=SUFFIXES)
    run = describe_run(
        command="tokenizer",
        config=asdict(config),
        inputs={file.url: f"{file.size_bytes} bytes, {file.version}" for file in files},
    )
    if claim_output(config.output, run=run) == "completed":
        _log.info("The tokenizer in %s is complete.", config.output)
    else:
        try:
            _train(config, files=[file.url for file in files], base=base)
        except ValueError:
            # Nothing was made, so the folder is free again for other settings.
            storage.remove_folder(config.output)
            raise
    report: dict[str, Any] = storage.read_json(storage.join(config.output, REPORT_FILE))
    print_report(report)
    return report


def _train(config: TokenizerConfig, *, files: Sequence[str], base: Any) -> None:
    sample = sample_texts(
        files,
        text_field=config.text_field,
        max_bytes=config.max_sample_bytes,
        max_measured_bytes=config.max_measured_bytes,
        measured_share=config.measured_share,
        seed=config.seed,
    )
    num_bytes = sum(len(text.encode("utf-8")) for text in sample.to_train)
    _log.info("Training on %.1f MB of %d texts", num_bytes / 1e6, sample.num_texts)
    pieces = train_pieces(sample.to_train, vocab_size=config.vocab_size, character_coverage=config.character_coverage)
    _write(as_tokenizer(pieces), sample, config=config, base=base)


def train_pieces(texts: Sequence[str], *, vocab_size: int, character_coverage: float) -> bytes:
    """A SentencePiece model, serialized.

    Args:
        texts: Texts to train on; their order decides between pieces that are equally frequent.
        vocab_size: Number of pieces.
        character_coverage: Share of the characters that get a piece.

    Raises:
        ValueError: There is no text, or no vocabulary of that size can be made from it.
    """
    import sentencepiece

    if not any(text.strip() for text in texts):
        raise ValueError(
            "There is no text to train a tokenizer on: mend the input, raise max_sample_bytes, or lower measured_share."
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.split("\n")),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=_MAX_LINE_BYTES,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            unk_piece=UNKNOWN,
            bos_piece=BOS,
            eos_piece=EOS,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        num_bytes = sum(len(text.encode("utf-8")) for text in texts)
        raise ValueError(
            f"No vocabulary of vocab_size = {vocab_size} could be made from {num_bytes} bytes of text: the text holds "
            f"too few different words for it, or it is too small for their characters ({_reason(error)})."
        ) from error
    return model.getvalue()


def _reason(error: RuntimeError) -> str:
    # The library puts source file, line and condition in front of what it says.
    return str(error).rpartition("]")[2].strip() or str(error)


def as_tokenizer(model: bytes) -> Tokenizer:
    """A SentencePiece BPE model with byte fallback as a tokenizer of the ``tokenizers`` library."""
    import sentencepiece
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(id_) for id_ in range(processor.get_piece_size())]
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    # A piece is merged from any two pieces that make it up; those with the lowest ids were merged first.
    merges = [
        (piece[:cut], piece[cut:])
        for id_, piece in enumerate(pieces)
        if not (processor.is_byte(id_) or processor.is_control(id_) or processor.is_unknown(id_))
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (UNKNOWN, BOS, EOS)])
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _load_base(name_or_path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except Exception as error:
        # The tokenizers library raises plain exceptions for a definition that it does not understand.
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(
            f"base_tokenizer: no tokenizer could be loaded from {name_or_path!r} ({first_line})."
        ) from error


def _write(tokenizer: Tokenizer, sample: SampledTexts, *, config: TokenizerConfig, base: Any) -> None:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from trainer.folders import write_folder
    from trainer.shard_tokenizer import tokenizer_sha256

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    counters = {"own": tokenizer, **({"base": base.backend_tokenizer} if base is not None else {})}
    report = {
        "vocab_size": tokenizer.get_vocab_size(),
        "base_tokenizer": config.base_tokenizer,
        "base_vocab_size": None if base is None else len(base),
        "num_texts": sample.num_texts,
        "num_unusable_records": sample.num_unusable,
        "num_training_bytes": sum(len(text.encode("utf-8")) for text in sample.to_train),
        "compression_by_file": {
            url: measure_compression(texts, tokenizers=counters) for url, texts in sample.to_measure.items() if texts
        },
    }
    with write_folder(config.output) as folder:
        wrapped.save_pretrained(folder)
        # Of the file, as whoever packs or trains with it will hash it.
        sha256 = tokenizer_sha256(tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json")))
        storage.write_json(storage.join(folder, REPORT_FILE), {"tokenizer_sha256": sha256, **report})
    mark_completed(config.output, fingerprint=sha256)


def measure_compression(texts: Sequence[str], *, tokenizers: Mapping[str, Tokenizer]) -> dict[str, float]:
    """Bytes of texts, and for each tokenizer its tokens and the bytes a token; special tokens are not added."""
    num_bytes = sum(len(text.encode("utf-8")) for text in texts)
    figures: dict[str, float] = {"num_bytes": num_bytes}
    for name, original in tokenizers.items():
        # A tokenizer may come with the truncation and padding of some model's training.
        tokenizer = type(original).from_str(original.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        num_tokens = sum(len(found.ids) for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))
        figures[f"{name}_num_tokens"] = num_tokens
        figures[f"{name}_bytes_per_token"] = round(num_bytes / num_tokens, 4)
    return figures


def print_report(report: Mapping[str, Any]) -> None:
    """Prints the figures as a table, a line a file."""
    has_base = report["base_tokenizer"] is not None
    title = f"{report['vocab_size']} ids; bytes a token on texts not trained on"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("file", "bytes", "own", *(("base", "own / base") if has_base else ())):
        table.add_column(name, justify="left" if name == "file" else "right", overflow="fold")
    for url, figures in report["compression_by_file"].items():
        own, base = figures["own_bytes_per_token"], figures.get("base_bytes_per_token")
        compared = (f"{base:.3f}", f"{own / base:.3f}") if has_base else ()
        table.add_row(Text(url), f"{figures['num_bytes']}", f"{own:.3f}", *compared)
    CONSOLE.print(table)
    if not report["compression_by_file"]:
        CONSOLE.print("No text was kept out of training to measure on; raise measured_share.", markup=False)
