"""``python -m synth_model tasks``: context-based task datasets in, an augmented corpus out, to tune a synthesizer on.

Each set's records are converted (`synth_model.task_datasets`), records of one set about the same text become one
example that asks nothing twice, examples of one set form chains by hash, and everything that was of no use is kept as a
reject with its place and reason. The output is what ``synthesize`` writes, so that ``pack`` reads it as a component of
kind ``chains``; ``datasets.json`` beside the manifest says for each set what was taken under which licence.

Cost: one pass over the files. Memory: the sets of one entry of the config at a time.
Source: Cheng et al. 2024 (arXiv 2406.14491), section 2.1: the synthesizer is tuned on examples of one set in a row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, Literal

from contracts import storage
from contracts.accounting import (
    GATE_STAGE,
    ChainsReport,
    RejectsReport,
    augmented_corpus_manifest,
    report_chains,
    report_rejects,
)
from contracts.artifact import claim_output, describe_run
from contracts.manifest import AugmentedCorpusManifest, complete_artifact, read_augmented_corpus_manifest
from contracts.parquet_files import part_name, write_parquet
from contracts.records import Chain, Example, InstructionPair, Reject
from contracts.schemas import chains_to_table, rejects_to_table
from contracts.seeding import hash_fraction, stable_hash
from contracts.storage import InputFile
from synth_model.chain_assignment import form_chains
from synth_model.command_line import parse_config
from synth_model.gates.config import PairGateConfig
from synth_model.gates.judging import judge_pairs, settle
from synth_model.task_datasets.conversion import TASK_STAGE, TaskText, convert_entry
from synth_model.task_datasets.table import TaskDataset, load_table, table_sha256
from synth_model.task_datasets.task_files import SUFFIXES, read_entries
from synth_model.text_similarity import normalize

DATASETS_FILE = "datasets.json"
_MAX_REJECT_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """A set of the table and the files to read it from.

    Args:
        name: Key of the table, such as ``squad``; ``normalized`` for records that already hold their pairs.
        input: Files, folders and globs; empty for the hub's training files.
    """

    name: str
    input: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """Reads context-based task datasets into an augmented corpus.

    Args:
        datasets: The sets to read, each once.
        output: Folder for the corpus; belongs to this run alone.
        chain_length: Examples of one set in a chain; the last chain of a set may be shorter.
        max_texts: Most texts of one set, so that none outweighs the others; those with the most pairs are taken.
        max_texts_by_set: The same for single sets, under the names that their records give them; 0 leaves a set out.
        max_characters: Longest text with its pairs, in characters; 0 is off. What outgrows a row is of no use to tune
            on, and the texts with the most pairs are often the longest.
        max_same_responses: Most pairs of a text with one and the same response, case and white space aside; 0 is off.
            The first ones stay.
        min_pairs: Fewest pairs of a text; a synthesizer writes as many as those that it was tuned on had.
        held_out_fraction: Share of each set's texts, drawn by the hash of their ids, that is kept apart for evaluation;
            none of a set whose texts would all be drawn.
        take: ``rest``, or with the same settings otherwise the texts ``held_out``.
        licenses: Licences that a text may have, as the table or the record spells them; empty for any.
        seed: Decides which texts share a chain.
        num_files: Files that the chains of one entry of ``datasets`` are spread over.
    """

    datasets: list[TaskSource]
    output: str
    chain_length: int = 3
    max_texts: int = 10_000
    max_texts_by_set: dict[str, int] = field(default_factory=dict)
    max_characters: int = 0
    max_same_responses: int = 0
    min_pairs: int = 1
    held_out_fraction: float = 0.0
    take: Literal["rest", "held_out"] = "rest"
    licenses: list[str] = field(default_factory=list)
    seed: int = 0
    num_files: int = 1

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        table = load_table()
        if not self.datasets:
            raise ValueError(f"datasets is empty; give one or more of {', '.join(table)}.")
        for name, count in Counter(source.name for source in self.datasets).items():
            if name not in table:
                raise ValueError(f"datasets names {name!r}, which is not in the table; it has {', '.join(table)}.")
            if count > 1:
                raise ValueError(f"datasets names {name!r} {count} times; put its files into one list.")
        if not 0 <= self.held_out_fraction < 1 or (self.take == "held_out" and not self.held_out_fraction):
            raise ValueError(
                f"held_out_fraction is {self.held_out_fraction} and take is {self.take!r}; the fraction must be from 0 "
                "to below 1, and above 0 to take the texts held out."
            )
        for name in ("max_characters", "max_same_responses"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (off) or more.")
        for name, limit in self.max_texts_by_set.items():
            if limit < 0:
                raise ValueError(f"max_texts_by_set gives {name!r} {limit} texts; it must be 0 or more.")
        for name in ("chain_length", "max_texts", "min_pairs", "num_files"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(kw_only=True, slots=True)
class _Gathered:
    """What the files of one source hold.

    Args:
        texts: The texts by id, each with the pairs of all records about it.
        rejects: Records and questions of no use.
        num_records: Records read, those about the same text counted once.
    """

    texts: dict[str, TaskText] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    num_records: int = 0


def find_files(source: TaskSource) -> list[InputFile]:
    """The files of a source.

    Raises:
        ValueError: There are none.
    """
    patterns = source.input or load_table()[source.name].hub_files
    if not patterns:
        raise ValueError(f"The set {source.name!r} is not on the hub; give its files as input.")
    try:
        return storage.find_input_files(patterns, suffixes=SUFFIXES)
    except ValueError:
        raise
    except Exception as error:
        # What a remote file system raises when it cannot be reached is its own and of no common type.
        raise ValueError(
            f"The files of {source.name!r} cannot be listed ({type(error).__name__}: {error}). Tried {patterns[0]}; "
            "without a network, give local files as input."
        ) from error


def gather_texts(urls: Iterable[str], *, dataset: TaskDataset, licenses: Sequence[str] = ()) -> _Gathered:
    """Reads and converts files; records about one text (same set, same id) are joined in the order of the files."""
    gathered = _Gathered()
    for url in urls:
        for entry in read_entries(url):
            questions: list[Reject] = []
            for found in [entry] if isinstance(entry, Reject) else convert_entry(entry, dataset=dataset):
                if isinstance(found, TaskText):
                    _add(gathered, found, licenses=licenses, questions=questions)
                    questions = []
                elif found.stage == GATE_STAGE:
                    # Those of a record come before its text, which says whether they may be kept.
                    questions.append(found)
                else:
                    gathered.num_records += 1
                    gathered.rejects.append(found)
            assert not questions
    return gathered


def _add(gathered: _Gathered, text: TaskText, *, licenses: Sequence[str], questions: Sequence[Reject]) -> None:
    """Takes a text, and the rejects of its questions, or rejects it."""
    document = text.document
    if licenses and text.license not in licenses:
        gathered.num_records += 1
        # Without the text and without its questions, which may not be used.
        detail = f"its licence is {text.license!r}"
        gathered.rejects.append(replace(_reject(text, reason="license", detail=detail), text=""))
        gathered.rejects += [replace(question, detail=detail, text="") for question in questions]
        return
    gathered.rejects += questions
    first = gathered.texts.get(document.doc_id)
    if first is not None and first.document.text != document.text:
        gathered.num_records += 1
        detail = f"id {document.doc_id!r} appears again with another text"
        gathered.rejects.append(_reject(text, reason="duplicate_id", detail=detail))
        return
    gathered.num_records += first is None
    pairs = () if first is None else first.pairs
    asked = {normalize(pair.instruction) for pair in pairs}
    kept = []
    for pair in text.pairs:
        if normalize(pair.instruction) in asked:
            gathered.rejects.append(_reject_repeat(text, pair))
        else:
            asked.add(normalize(pair.instruction))
            kept.append(pair)
    gathered.texts[document.doc_id] = replace(first or text, pairs=(*pairs, *kept))


def _reject_repeat(text: TaskText, pair: InstructionPair) -> Reject:
    """A question that the text has already: it would count for it, and teach a synthesizer to repeat itself."""
    return Reject(
        doc_id=text.document.doc_id,
        source=text.document.source,
        stage=GATE_STAGE,
        reason="repeated_question",
        detail="the text has it already",
        text=pair.instruction,
    )


def _reject(text: TaskText, *, reason: str, detail: str) -> Reject:
    return Reject(
        doc_id=text.document.doc_id,
        source=text.document.source,
        stage=TASK_STAGE,
        reason=reason,
        detail=detail,
        text=text.document.text[:_MAX_REJECT_CHARACTERS],
    )


def choose_texts(
    texts: Iterable[TaskText], *, config: TasksConfig, num_taken: Mapping[str, int] | None = None
) -> tuple[dict[str, list[TaskText]], list[Reject]]:
    """The texts to take by set, at most so many of each: those with the most pairs, ties by hash; and the rest.

    Args:
        texts: All texts of an entry of the config.
        config: What to take.
        num_taken: Texts by set that other entries of the config have given already.
    """
    usable: dict[str, list[TaskText]] = defaultdict(list)
    rejects = []
    for given in texts:
        text, repeats = _limit_same_responses(given, most=config.max_same_responses)
        rejects += repeats
        num_characters = len(text.document.text) + sum(len(p.instruction) + len(p.response) for p in text.pairs)
        if not text.pairs:
            rejects.append(_reject(text, reason="no_pair", detail="none of its questions can be used"))
        elif config.max_characters and num_characters > config.max_characters:
            detail = f"it has {num_characters} characters with its pairs, max_characters is {config.max_characters}"
            rejects.append(_reject(text, reason="too_long", detail=detail))
        elif len(text.pairs) < config.min_pairs:
            detail = f"it has {len(text.pairs)} pairs, min_pairs is {config.min_pairs}"
            rejects.append(_reject(text, reason="too_few_pairs", detail=detail))
        else:
            usable[text.document.source].append(text)
    by_set: dict[str, list[TaskText]] = {}
    for name, members in usable.items():
        held_out = _held_out_ids(members, config=config)
        by_set[name] = [text for text in members if (text.document.doc_id in held_out) == (config.take == "held_out")]
        reason = "not_held_out" if config.take == "held_out" else "held_out"
        detail = f"held_out_fraction is {config.held_out_fraction}"
        rejects += [
            _reject(text, reason=reason, detail=detail)
            for text in members
            if (text.document.doc_id in held_out) != (config.take == "held_out")
        ]
    for name, members in by_set.items():
        members.sort(key=lambda text: (-len(text.pairs), stable_hash(config.seed, "task text", text.document.doc_id)))
        limit = config.max_texts_by_set.get(name, config.max_texts)
        limit = max(0, limit - (num_taken or {}).get(name, 0))
        detail = f"the set has {len(members)} texts, of which {limit} are taken at most"
        rejects += [_reject(text, reason="over_max_texts", detail=detail) for text in members[limit:]]
        by_set[name] = members[:limit]
    return {name: members for name, members in by_set.items() if members}, rejects


def _limit_same_responses(text: TaskText, *, most: int) -> tuple[TaskText, list[Reject]]:
    """A text with the first pairs of each response, and rejects for the others, as the gate of synthesis has it."""
    gates = PairGateConfig(max_same_responses_in_text=most)
    judged = judge_pairs(text.pairs, document=text.document, gates=gates)
    kept, rejects = settle(judged, document=text.document, gates=gates)
    return replace(text, pairs=tuple(kept)), rejects


def _held_out_ids(texts: Sequence[TaskText], *, config: TasksConfig) -> set[str]:
    """The ids of a set's texts that are held out: none where nothing would be left to tune on."""
    ids = {text.document.doc_id for text in texts}
    held_out = {id_ for id_ in ids if is_held_out_text(id_, fraction=config.held_out_fraction, seed=config.seed)}
    return held_out if held_out < ids else set()


def is_held_out_text(doc_id: str, *, fraction: float, seed: int) -> bool:
    """Whether a text is among those held out."""
    return hash_fraction(seed, "held out task text", doc_id) < fraction


def make_chains(texts: Sequence[TaskText], *, chain_length: int, seed: int, synthesizer_id: str) -> list[Chain]:
    """Chains of the texts of one set, whose ids differ, formed by hash."""
    pairs = {text.document.doc_id: text.pairs for text in texts}
    states, duplicates = form_chains((text.document for text in texts), chain_length=chain_length, seed=seed)
    assert not duplicates, duplicates
    return [
        Chain(
            chain_id=state.chain_id,
            source=state.source,
            examples=tuple(Example(document=document, pairs=pairs[document.doc_id]) for document in state.pending),
            synthesizer_id=synthesizer_id,
        )
        for state in states
    ]


def read_tasks(config: TasksConfig) -> AugmentedCorpusManifest:
    """Reads the sets into a corpus, or finds that it is complete. An interrupted run starts over: it costs minutes.

    Raises:
        ValueError: The settings, the files or the output folder do not allow it.
    """
    config.check()
    files = {source.name: find_files(source) for source in config.datasets}
    inputs = {file.url: f"{file.size_bytes} bytes, {file.version}" for found in files.values() for file in found}
    inputs["table"] = table_sha256()
    state = claim_output(config.output, run=describe_run(command="tasks", config=asdict(config), inputs=inputs))
    if state == "completed":
        return read_augmented_corpus_manifest(config.output)
    synthesizer_id = f"task-datasets@{table_sha256()[:16]}"
    chains: list[ChainsReport] = []
    rejects: list[RejectsReport] = []
    summary: dict[str, Any] = {}
    num_records = 0
    num_taken: Counter[str] = Counter()
    set_names: set[str] = set()
    for index, (name, found) in enumerate(files.items()):
        gathered = gather_texts([f.url for f in found], dataset=load_table()[name], licenses=config.licenses)
        num_records += gathered.num_records
        set_names |= {text.document.source for text in gathered.texts.values()}
        set_names |= {reject.source for reject in gathered.rejects}
        by_set, left_out = choose_texts(gathered.texts.values(), config=config, num_taken=num_taken)
        num_taken.update({set_name: len(texts) for set_name, texts in by_set.items()})
        # A set of normalized records may have the name of one that is read in its own format.
        summary |= {
            set_name if set_name not in summary else f"{set_name} ({name})": counts
            for set_name, counts in _summary(by_set).items()
        }
        made = [
            chain
            for texts in by_set.values()
            for chain in make_chains(
                texts, chain_length=config.chain_length, seed=config.seed, synthesizer_id=synthesizer_id
            )
        ]
        chains += _write_chains(made, index=index, num_sources=len(files), config=config)
        rejects += _write_rejects([*gathered.rejects, *left_out], index=index, num_sources=len(files), config=config)
    unknown = sorted(config.max_texts_by_set.keys() - set_names)
    if unknown:
        raise ValueError(
            f"max_texts_by_set names {unknown[0]!r}, but the files hold the sets {', '.join(sorted(set_names))}. "
            f"Correct it, remove {config.output} and start again."
        )
    storage.write_json(storage.join(config.output, DATASETS_FILE), summary)
    return complete_artifact(
        config.output,
        augmented_corpus_manifest(
            num_records=num_records,
            documents_by_num_parts={},
            chains=chains,
            rejects=rejects,
            synthesizer_id=synthesizer_id,
            inputs=inputs,
            config=asdict(config),
        ),
    )


def _summary(by_set: Mapping[str, Sequence[TaskText]]) -> dict[str, Any]:
    return {
        name: {
            "licenses": sorted({text.license for text in texts}),
            "domains": sorted({text.domain for text in texts}),
            "task_types": sorted({text.task_type for text in texts}),
            "num_texts": len(texts),
            "num_pairs": sum(len(text.pairs) for text in texts),
        }
        for name, texts in sorted(by_set.items())
    }


def _write_chains(chains: Sequence[Chain], *, index: int, num_sources: int, config: TasksConfig) -> list[ChainsReport]:
    """One source's chains, spread over its files by hash; a file without a chain is not written."""
    files: dict[int, list[Chain]] = defaultdict(list)
    for chain in sorted(chains, key=lambda chain: chain.chain_id):
        files[stable_hash(0, "chain file", chain.chain_id) % config.num_files].append(chain)
    reports = []
    for number, members in sorted(files.items()):
        path = part_name("part", index=index * config.num_files + number, count=num_sources * config.num_files)
        entry = write_parquet(config.output, path=path, table=chains_to_table(members))
        reports.append(report_chains(entry, members))
    return reports


def _write_rejects(
    rejects: Sequence[Reject], *, index: int, num_sources: int, config: TasksConfig
) -> list[RejectsReport]:
    """One source's rejects, sorted, as one file; without a reject there is none."""
    if not rejects:
        return []
    path = f"rejects/{part_name('part', index=index, count=num_sources)}"
    table = rejects_to_table(sorted(rejects, key=astuple))
    return [report_rejects(write_parquet(config.output, path=path, table=table), rejects)]


def describe(manifest: AugmentedCorpusManifest, *, output: str) -> str:
    """What a run read, in a few lines."""
    accounts = manifest.accounts
    lines = [
        f"texts       {accounts.num_texts} = {accounts.num_augmented} taken + {accounts.num_rejected} rejected",
        f"pairs       {manifest.num_pairs} in {manifest.num_chains} chains",
        f"corpus      {output}",
    ]
    lines += [f"rejected    {count} {reason}" for reason, count in accounts.rejected_by_reason.items()]
    lines += [f"rejected    {count} questions, {reason}" for reason, count in manifest.rejected_pairs_by_reason.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit status."""
    config = parse_config(TasksConfig, arguments=arguments, command="tasks")
    manifest = read_tasks(config)
    print(describe(manifest, output=config.output))
    if not manifest.num_chains:
        print("error: nothing could be used; see the reasons above and the files in rejects/.")
        return 1
    return 0
