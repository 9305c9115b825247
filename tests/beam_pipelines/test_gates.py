"""The gates in a whole synthesis: accounts, distributions, resuming; and the limit on repeats against an oracle."""

import json
import pickle
import random
import tempfile
from collections import Counter
from dataclasses import replace

import apache_beam as beam
import pytest

from beam_pipelines import model_handler, scoring_handler
from beam_pipelines.command_line import beam_options
from beam_pipelines.synthesize import describe
from beam_pipelines.transforms.count_scores import CountScores
from beam_pipelines.transforms.limit_repeated_instructions import LimitRepeatedInstructions
from contracts.manifest import read_augmented_corpus_manifest
from contracts.records import Chain, Document, Example, InstructionPair
from contracts.score_histograms import histogram_from_counts
from contracts.seeding import stable_hash_hex
from synth_model.engines import load_engine
from synth_model.engines.fake_engine import FakeEngine, FakeTokenizer
from synth_model.gates.config import PairGateConfig
from synth_model.gates.context_dependence import add_context_dependence, scoring_requests
from synth_model.gates.judging import SCORE_EDGES, judge_pairs, score_counts, settle
from synth_model.generation import Sampling
from synth_model.synthesizer import make_synthesizer
from synth_model.text_similarity import jaccard, normalize, shingles
from tests.beam_pipelines.pipeline_runs import (
    IN_MEMORY,
    fake_engine,
    make_documents,
    parquet_digests,
    read_chains,
    read_examples,
    read_rejects,
    run_synthesize,
    synthesize_config,
    write_jsonl,
)

NUM_DOCUMENTS = 40
GATES = PairGateConfig(
    min_grounding=0.7,
    max_instruction_overlap=0.18,
    max_similarity_in_text=0.4,
    min_language_probability=0.4,
    min_language_characters=30,
    max_response_characters=38,
    min_context_dependence=1.3,
    max_repeats_in_corpus=1,
    max_similarity_in_corpus=0.45,
)
SETTINGS = {"chain_length": 1, "sampling": Sampling(max_new_tokens=400), "engine": fake_engine(max_pairs=5)}


class InterruptedByTestError(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "in.jsonl", make_documents(NUM_DOCUMENTS))


@pytest.fixture(scope="module")
def ungated(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ungated") / "out"
    return folder, run_synthesize([corpus], folder, **SETTINGS)


@pytest.fixture(scope="module")
def gated(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated") / "out"
    return folder, run_synthesize([corpus], folder, gates=GATES, **SETTINGS)


def judge_all(examples, gates, config):
    """What each text's pairs are worth, without Beam."""
    engine = FakeEngine(config.engine.fake, context_length=config.engine.context_length)
    judged = {}
    for doc_id, example in examples.items():
        pairs = judge_pairs(example.pairs, document=example.document, gates=gates)
        requests = scoring_requests(
            [item.pair for item in pairs if item.refusal is None],
            document=example.document,
            synthesizer=make_synthesizer(config.synthesizer),
            special_tokens=FakeTokenizer.special_tokens,
        )
        judged[doc_id] = add_context_dependence(pairs, engine.score(requests), gates=gates)
    return judged


def test_a_gated_run_is_an_ungated_one_less_what_the_gates_reject(ungated, gated, tmp_path):
    """With chains of one text no completion depends on a gate."""
    config = synthesize_config([], "", **SETTINGS)
    before = read_examples(ungated[0])
    judged = judge_all(before, GATES, config)
    rejects = [reject for reject in read_rejects(gated[0]) if reject.reason != "repeated_in_corpus"]
    expected = [
        reject
        for doc_id, items in judged.items()
        for reject in settle(items, document=before[doc_id].document, gates=GATES)[1]
    ]
    assert sorted(rejects, key=repr) == sorted(expected, key=repr)
    assert {reject.reason for reject in rejects} == {
        "ungrounded", "repeats_instruction", "similar_in_text", "other_language", "response_too_long",
        "context_independent",
    }  # fmt: skip
    counts = Counter(count for items in judged.values() for count in score_counts(items))
    for gate, histogram in gated[1].pair_scores.items():
        if gate != "similarity_in_corpus":
            of_gate = [((index, failed), num) for (name, (index, failed)), num in counts.items() if name == gate]
            assert histogram == histogram_from_counts(of_gate, edges=SCORE_EDGES[gate])
            assert histogram.num_failed > 0


def test_the_accounts_of_a_gated_run_add_up(ungated, gated):
    folder, manifest = gated
    rejects = read_rejects(folder)
    assert Counter(f"gate/{reject.reason}" for reject in rejects) == Counter(manifest.rejected_pairs_by_reason)
    assert manifest.rejected_pairs_by_reason["gate/repeated_in_corpus"] > 0
    assert manifest.num_pairs + len(rejects) == ungated[1].num_pairs
    examples = read_examples(folder)
    assert sum(len(example.pairs) for example in examples.values()) == manifest.num_pairs > 0
    # A text without a pair left is raw text.
    emptied = [id_ for id_, example in examples.items() if not example.pairs and read_examples(ungated[0])[id_].pairs]
    assert len(emptied) > 0
    assert manifest.accounts.num_kept_raw == ungated[1].accounts.num_kept_raw + len(emptied)
    assert manifest.accounts.num_texts == NUM_DOCUMENTS
    # Every pair is measured by every gate but the two that ask about those that have passed.
    scores = manifest.pair_scores
    assert {gate: scores[gate].num_scores for gate in scores} == {
        **dict.fromkeys(
            ("grounding", "instruction_overlap", "similarity_in_text", "language_probability", "response_characters"),
            ungated[1].num_pairs,
        ),
        "context_dependence": manifest.num_pairs
        + sum(
            manifest.rejected_pairs_by_reason[f"gate/{name}"] for name in ("context_independent", "repeated_in_corpus")
        ),
        "similarity_in_corpus": manifest.num_pairs + manifest.rejected_pairs_by_reason["gate/repeated_in_corpus"],
    }
    assert read_augmented_corpus_manifest(str(folder)) == manifest
    described = describe(manifest, output="OUT")
    assert "scores      context dependence: quartiles" in described
    assert f"{scores['grounding'].num_failed} of {ungated[1].num_pairs} failed" in described


def test_a_reporting_run_measures_and_rejects_nothing(ungated, gated, corpus, tmp_path):
    manifest = run_synthesize([corpus], tmp_path / "out", gates=replace(GATES, report_only=True), **SETTINGS)
    assert parquet_digests(tmp_path / "out") == parquet_digests(ungated[0])
    assert manifest.rejected_pairs_by_reason == {}
    assert {**manifest.pair_scores, "similarity_in_corpus": None} == {
        **gated[1].pair_scores, "similarity_in_corpus": None
    }  # fmt: skip
    assert manifest.pair_scores["similarity_in_corpus"].num_scores == ungated[1].num_pairs


@pytest.fixture
def asked(monkeypatch):
    """How often an engine was loaded, and what was scored; ``limit`` requests in, scoring raises."""

    class Asked:
        limit = float("inf")
        loads = 0

        def __init__(self):
            self.prompts, self.requests = [], []

    seen = Asked()

    class Engine:
        def __init__(self, engine):
            self._engine = engine
            seen.loads += 1

        def generate(self, prompts, *, sampling):
            seen.prompts += prompts
            return self._engine.generate(prompts, sampling=sampling)

        def score(self, requests):
            if len(seen.requests) + len(requests) > seen.limit:
                raise InterruptedByTestError
            seen.requests += requests
            return self._engine.score(requests)

    for module in (model_handler, scoring_handler):
        monkeypatch.setattr(module, "load_engine", lambda config: Engine(load_engine(config)))
    return seen


CHAINS = {**SETTINGS, "chain_length": 2, "gates": PairGateConfig(min_context_dependence=1.3)}


def test_an_interrupted_run_scores_only_what_is_missing_with_one_model_for_both(corpus, asked, tmp_path):
    uninterrupted = run_synthesize([corpus], tmp_path / "whole", **CHAINS)
    assert asked.loads == 1
    num_scored = len(asked.requests)
    assert len(set(asked.requests)) == num_scored
    num_rejected = uninterrupted.rejected_pairs_by_reason["gate/context_independent"]
    assert 0 < num_rejected < uninterrupted.num_pairs
    # Of all rounds.
    assert uninterrupted.pair_scores["context_dependence"].num_scores == uninterrupted.num_pairs + num_rejected

    asked.requests.clear()
    asked.limit = num_scored // 2
    with pytest.raises(Exception, match="InterruptedByTestError"):
        run_synthesize([corpus], tmp_path / "out", **CHAINS)
    paid = list(asked.requests)
    assert len(paid) > num_scored // 4
    asked.requests.clear()
    asked.prompts.clear()
    asked.limit = float("inf")
    run_synthesize([corpus], tmp_path / "out", **CHAINS)
    assert len(asked.requests) == num_scored - len(paid)
    assert not set(asked.requests) & set(paid)
    assert len(asked.prompts) < NUM_DOCUMENTS
    assert parquet_digests(tmp_path / "out") == parquet_digests(tmp_path / "whole")

    # All of it is in the journal.
    (tmp_path / "out" / "COMPLETED").unlink()
    asked.requests.clear()
    asked.prompts.clear()
    run_synthesize([corpus], tmp_path / "out", **CHAINS)
    assert asked.requests == asked.prompts == []


def test_later_texts_of_a_chain_see_no_rejected_pair(corpus, asked, tmp_path):
    run_synthesize([corpus], tmp_path / "out", **CHAINS)
    rejected = {reject.doc_id: reject for reject in read_rejects(tmp_path / "out")}
    prompts = [prompt.text for prompt in asked.prompts]
    num_inheriting = 0
    for chain in read_chains(tmp_path / "out"):
        for earlier, later in zip(chain.examples, chain.examples[1:], strict=False):
            if later.inherits_previous and earlier.document.doc_id in rejected:
                instruction = json.loads(rejected[earlier.document.doc_id].text)["instruction"]
                (prompt,) = (text for text in prompts if text.endswith(f"<CON> {later.document.text} </CON>\n\n"))
                num_inheriting += 1
                assert f"<QUE> {instruction} <ANS>" not in prompt
                assert f"<QUE> {earlier.pairs[-1].instruction} <ANS>" in prompt
    assert num_inheriting > 0


def test_pairs_that_cannot_be_scored_are_rejected_and_tried_again(corpus, tmp_path):
    settings = {**CHAINS, "chain_length": 1, "engine": fake_engine(failure_rate=0.1)}
    manifest = run_synthesize([corpus], tmp_path / "out", **settings)
    unscored = [reject for reject in read_rejects(tmp_path / "out") if reject.reason == "unscored"]
    assert manifest.rejected_pairs_by_reason["gate/unscored"] == len(unscored) > 0
    assert {reject.detail.partition(":")[0] for reject in unscored} == {"scoring_failed"}
    assert manifest.accounts.num_rejected == manifest.accounts.rejected_by_reason["synthesize/generation_failed"] > 0


@pytest.mark.slow
def test_processes_share_the_model_that_completes_and_scores(corpus, tmp_path):
    in_memory = run_synthesize([corpus], tmp_path / "one", **CHAINS)
    beam_arguments = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    several = run_synthesize([corpus], tmp_path / "two", beam=beam_arguments, **CHAINS)
    assert parquet_digests(tmp_path / "two") == parquet_digests(tmp_path / "one")
    assert several.pair_scores == in_memory.pair_scores


def test_gates_that_cannot_work_are_refused_before_any_work(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("synth_model.gates.config.SCORING_KINDS", ("transformers",))
    with pytest.raises(ValueError, match=r"gates\.min_context_dependence needs an engine.*'fake' cannot"):
        run_synthesize([corpus], tmp_path / "out", **CHAINS)
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(ValueError, match="package datasketch"):
        run_synthesize([corpus], tmp_path / "out", gates=PairGateConfig(max_repeats_in_corpus=5))
    assert not (tmp_path / "out").exists()


ASKED = (
    "What is the main idea of the text?",
    "what is  the main idea of this text?",
    "Which river does the author name first?",
    "Which river does the author name last?",
    "How many stones are in the garden of the old mill?",
)


def make_chains(num_chains):
    """Chains of two examples whose instructions repeat one another, exactly or nearly, and some that do not."""
    draw = random.Random(7)
    chains = []
    for number in range(num_chains):
        examples = []
        for place in range(2):
            pairs = [
                InstructionPair(
                    instruction=draw.choice(ASKED) if draw.random() < 0.7 else f"What is {draw.getrandbits(64):x}?",
                    response="r",
                )
                for _ in range(draw.randint(0, 3))
            ]
            examples.append(
                Example(
                    document=Document(doc_id=f"d{number}-{place}", source="web", text=f"Text {number}."),
                    pairs=tuple(pairs),
                    inherits_previous=bool(pairs) and place == 1,
                )
            )
        chains.append(Chain(chain_id=f"c{number}", source="web", examples=tuple(examples), synthesizer_id="s"))
    return chains


def limit(chains, gates):
    """Chains by id, rejects and score counts."""
    with tempfile.TemporaryDirectory() as folder:
        with beam.Pipeline(options=beam_options(IN_MEMORY)) as pipeline:
            outputs = pipeline | beam.Create(chains) | LimitRepeatedInstructions(gates=gates)
            found = {
                **{name: outputs[name] for name in ("chains", "rejects")},
                "scores": outputs["scores"] | CountScores(),
            }
            for name, collection in found.items():
                _ = (
                    collection
                    | f"List {name}" >> beam.combiners.ToList()
                    | f"Write {name}" >> beam.Map(write, f"{folder}/{name}")
                )
        kept, rejects, scores = (read(f"{folder}/{name}") for name in ("chains", "rejects", "scores"))
    return {chain.chain_id: chain for chain in kept}, rejects, dict(scores)


def write(elements, path):
    with open(path, "wb") as file:
        pickle.dump(elements, file)


def read(path):
    with open(path, "rb") as file:
        return pickle.load(file)


def places(chains):
    """Each instruction with where it stands, in the order in which they may stay."""
    return sorted(
        (
            stable_hash_hex(0, "repeated instruction", chain.source, example.document.doc_id, index),
            example.document.doc_id,
            pair.instruction,
        )
        for chain in chains
        for example in chain.examples
        for index, pair in enumerate(example.pairs)
    )


@pytest.mark.parametrize("max_repeats", [1, 3, 10])
@pytest.mark.parametrize("max_similarity", [0.75, 1.0])
def test_so_many_repeats_stay_as_may_and_those_come_first(max_repeats, max_similarity):
    chains = make_chains(60)
    gates = PairGateConfig(max_repeats_in_corpus=max_repeats, max_similarity_in_corpus=max_similarity)
    limited, rejects, scores = limit(chains, gates)
    # The oracle takes one instruction after the other and compares it with all that stay.
    staying = []
    for _, doc_id, instruction in places(chains):
        if max_similarity == 1:
            alike = [other for _, other in staying if normalize(other) == normalize(instruction)]
        else:
            own = shingles(instruction)
            alike = [other for _, other in staying if jaccard(own, shingles(other)) > max_similarity]
        if len(alike) < max_repeats:
            staying.append((doc_id, instruction))
    assert Counter((doc_id, asked) for _, doc_id, asked in places(limited.values())) == Counter(staying)
    assert 0 < len(rejects) == len(places(chains)) - len(staying)
    assert {reject.reason for reject in rejects} == {"repeated_in_corpus"}
    most_common = Counter(normalize(asked) for _, asked in staying).most_common(1)[0][1]
    assert most_common == max_repeats
    assert scores["similarity_in_corpus"].num_scores == len(places(chains))
    assert scores["similarity_in_corpus"].num_failed == len(rejects)


def test_what_stays_does_not_depend_on_order_and_emptied_texts_are_raw():
    chains = make_chains(40)
    gates = PairGateConfig(max_repeats_in_corpus=1, max_similarity_in_corpus=0.75)
    limited, rejects, _ = limit(chains, gates)
    again, other_rejects, _ = limit(random.Random(1).sample(chains, len(chains)), gates)
    assert again == limited
    assert sorted(map(repr, rejects)) == sorted(map(repr, other_rejects))
    num_emptied = num_later = 0
    for chain in chains:
        for before, after in zip(chain.examples, limited[chain.chain_id].examples, strict=True):
            assert after.document == before.document
            assert after.inherits_previous == (before.inherits_previous and bool(after.pairs))
            num_emptied += bool(before.pairs) and not after.pairs
        first, second = limited[chain.chain_id].examples
        num_later += bool(chain.examples[0].pairs) and not first.pairs and second.inherits_previous
    assert num_emptied > 0
    assert num_later > 0
    assert limit(chains, replace(gates, report_only=True))[0] == {chain.chain_id: chain for chain in chains}
