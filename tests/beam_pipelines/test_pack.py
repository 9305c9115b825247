import itertools
import json
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.pack import describe
from beam_pipelines.shard_writing import PackingConfig
from beam_pipelines.text_tokenization import TextTokenizer
from contracts.manifest import read_augmented_corpus_manifest, read_shard_manifest
from contracts.records import Document, InstructionPair
from synth_model.generation import Sampling
from templates import TemplateConfig, render_chain, render_document, render_instruction
from tests.beam_pipelines.pipeline_runs import (
    fake_engine,
    make_documents,
    parquet_digests,
    read_chains,
    read_rejects,
    read_rows,
    run_pack,
    run_synthesize,
    write_jsonl,
)
from tests.beam_pipelines.tokenizer_kinds import large_vocabulary, llama_like, sentences, t5_like

SEQUENCE_LENGTH = 128
MARKUP = "Special <s> tokens </s> in <|im_end|> the text, {braces}, %s and <QUE> all </END>, 😀\u2028\x00."
INSTRUCTIONS = [
    {"id": f"pair-{number}", "instruction": f"What is {number} plus one?", "response": f"It is {number + 1}. <s>"}
    for number in range(30)
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """An augmented corpus, raw documents and instructions; some of them cannot be used."""
    folder = tmp_path_factory.mktemp("inputs")
    documents = [*make_documents(40), {"id": "markup", "source": "web", "text": MARKUP}]
    run_synthesize([write_jsonl(folder / "corpus.jsonl", documents)], folder / "augmented", num_files=2)
    write_jsonl(folder / "raw.jsonl", [*make_documents(20, source="raw"), {"id": "odd", "text": MARKUP}, {"body": "x"}])
    write_jsonl(folder / "instructions.jsonl", [*INSTRUCTIONS, {"instruction": "Why?"}])
    with open(folder / "instructions.jsonl", "a", encoding="utf-8") as file:
        file.write("{oops\n")
    return folder


def component(name, kind, path, **settings):
    return ComponentConfig(name=name, kind=kind, input=[str(path)], **settings)


@pytest.fixture(scope="module")
def packed(inputs, tokenizer_folder, tmp_path_factory):
    """Every kind of component once, with held-out groups and several shards."""
    output = tmp_path_factory.mktemp("packed") / "shards"
    manifest = run_pack(
        [
            component("augmented", "chains", inputs / "augmented"),
            component("raw", "chain_documents", inputs / "augmented"),
            component("web", "documents", inputs / "raw.jsonl"),
            component("general", "instructions", inputs / "instructions.jsonl"),
        ],
        output,
        tokenizer=tokenizer_folder,
        sequence_length=SEQUENCE_LENGTH,
        num_shards=3,
        num_validation_shards=2,
        validation_fraction=0.25,
        add_bos=True,
    )
    return output, manifest


def rendered_texts(inputs):
    """What training texts there are, made from the inputs by the templates alone."""
    chains = read_chains(inputs / "augmented")
    with open(inputs / "raw.jsonl", encoding="utf-8") as file:
        records = [record for record in map(json.loads, file) if "text" in record]
    texts = [
        *(render_chain(chain, seed=0, component="augmented", config=TemplateConfig()) for chain in chains),
        *(
            render_document(example.document, component="raw", group_id=chain.chain_id)
            for chain in chains
            for example in chain.examples
        ),
        *(
            render_document(
                Document(doc_id=record["id"], source="", text=record["text"]), component="web", group_id=record["id"]
            )
            for record in records
        ),
        *(
            render_instruction(
                InstructionPair(instruction=record["instruction"], response=record["response"]),
                text_id=record["id"],
                group_id=record["id"],
                component="general",
            )
            for record in INSTRUCTIONS
        ),
    ]
    return {(text.component, text.text_id): text.text for text in texts}


def segments_by_text(rows):
    """The pieces of each text, in no order: rows are mixed."""
    pieces = defaultdict(list)
    for split, row in rows:
        ends = np.cumsum(row.segment_lengths)
        for start, end, text_id in zip([0, *ends[:-1]], ends, row.text_ids, strict=True):
            pieces[split, row.component, text_id].append(row.input_ids[start:end].tolist())
    return pieces


def test_shards_give_back_every_text_exactly_once(inputs, packed, tokenizer_folder):
    output, manifest = packed
    tokenizer = Tokenizer.from_file(f"{tokenizer_folder}/tokenizer.json")
    pieces = segments_by_text(read_rows(output, manifest))
    expected = rendered_texts(inputs)
    assert len(pieces) == len(expected)
    bos, eos = manifest.special_ids["bos"], manifest.special_ids["eos"]
    for (_, name, text_id), members in pieces.items():
        candidates = [list(itertools.chain.from_iterable(order)) for order in itertools.permutations(members)]
        whole = [ids for ids in candidates if ids[0] == bos and ids[-1] == eos]
        assert expected[name, text_id] in [tokenizer.decode(ids[1:-1], skip_special_tokens=False) for ids in whole]
        assert all(Counter(ids)[bos] == Counter(ids)[eos] == 1 for ids in whole)
    assert max(map(len, pieces.values())) > 1


def test_rows_keep_the_contract(packed):
    output, manifest = packed
    assert read_shard_manifest(str(output)) == manifest
    assert {entry.path: entry.sha256 for entry in manifest.shards} == parquet_digests(output)
    rows = read_rows(output, manifest)
    pad = manifest.special_ids["pad"]
    padding = defaultdict(int)
    for split, row in rows:
        length = int(row.segment_lengths.sum())
        assert row.input_ids.shape == (SEQUENCE_LENGTH,)
        assert set(row.input_ids[length:].tolist()) <= {pad}
        assert pad not in row.input_ids[:length]
        padding[split, row.component] += SEQUENCE_LENGTH - length
    for name, by_split in manifest.components.items():
        for split, counts in by_split.items():
            members = [row for row_split, row in rows if (row_split, row.component) == (split, name)]
            assert counts.num_rows == len(members)
            assert (
                counts.num_tokens
                == counts.num_available_tokens
                == sum(int(row.segment_lengths.sum()) for row in members)
            )
            assert counts.num_padding_tokens == padding[split, name]
            assert (counts.epochs, counts.num_dropped_tokens) == (1.0, 0)
            # Only the last row of a component in a shard may hold padding.
            assert counts.num_padding_tokens < SEQUENCE_LENGTH * len(manifest.shards_of(split))
            cut = [
                pieces for key, pieces in segments_by_text(rows).items() if key[:2] == (split, name) and len(pieces) > 1
            ]
            assert counts.num_truncations == len(cut)
    assert {split: sum(1 for s, _ in rows if s == split) for split in ("train", "validation")} == {
        split: manifest.num_rows(split) for split in ("train", "validation")
    }


def test_what_is_held_out_is_never_trained_on_raw_or_augmented(inputs, packed):
    output, manifest = packed
    documents_of = {
        chain.chain_id: {e.document.doc_id for e in chain.examples} for chain in read_chains(inputs / "augmented")
    }
    seen = defaultdict(set)
    for split, row in read_rows(output, manifest):
        for text_id in row.text_ids:
            if row.component in ("augmented", "raw"):
                seen[split, row.component] |= documents_of.get(text_id, {text_id})
            else:
                seen[split, row.component].add(text_id)
    for name in ("augmented", "raw", "web", "general"):
        assert seen["validation", name]
        assert seen["train", name].isdisjoint(seen["validation", name])
    assert seen["train", "augmented"] == seen["train", "raw"]
    assert seen["validation", "augmented"] == seen["validation", "raw"]


def test_rejects_and_inputs_are_in_the_manifest(inputs, packed):
    output, manifest = packed
    assert manifest.rejected_by_reason == {"read/no_pair": 1, "read/no_text": 1, "read/not_json": 1}
    assert sorted(reject.doc_id.rpartition("/")[2] for reject in read_rejects(output)) == [
        "instructions.jsonl:31",
        "instructions.jsonl:32",
        "raw.jsonl:22",
    ]
    augmented = read_augmented_corpus_manifest(str(inputs / "augmented"))
    assert manifest.inputs[str(inputs / "augmented")] == augmented.fingerprint
    assert f"shards      {output} (128 tokens a row)" in describe(manifest, output=str(output))


@pytest.fixture(scope="module")
def mixed(inputs, tokenizer_folder, tmp_path_factory):
    """A mixture by fraction, epochs and ratio, small beside its rows."""
    output = tmp_path_factory.mktemp("mixed") / "shards"
    components = [
        component("augmented", "chains", inputs / "augmented", epochs=1.5),
        component("raw", "chain_documents", inputs / "augmented", epochs=0.4),
        component("web", "documents", inputs / "raw.jsonl", epochs=2),
        component("general", "instructions", inputs / "instructions.jsonl", token_ratio=1.0, relative_to=["augmented"]),
    ]
    settings = {"tokenizer": tokenizer_folder, "sequence_length": 512, "num_shards": 2, "validation_fraction": 0.1}
    return components, settings, output, run_pack(components, output, **settings)


def test_a_mixture_is_exact_to_one_row(mixed):
    _, _, output, manifest = mixed
    train = {name: by_split["train"] for name, by_split in manifest.components.items()}
    for name, epochs in (("augmented", 1.5), ("raw", 0.4)):
        assert abs(train[name].num_tokens - epochs * train[name].num_available_tokens) <= 512
        assert train[name].num_padding_tokens == 0
    assert train["web"].num_tokens == 2 * train["web"].num_available_tokens
    assert abs(train["general"].num_tokens - 1.5 * train["augmented"].num_available_tokens) <= 512
    assert train["general"].epochs > 2
    times = Counter(
        text_id
        for (split, name, text_id), pieces in segments_by_text(read_rows(output, manifest)).items()
        if (split, name) == ("train", "web")
        for piece in pieces
        if piece[-1] == manifest.special_ids["eos"]
    )
    assert set(times.values()) == {2}


def test_validation_holds_each_text_once_even_where_a_row_would_hold_it_often(mixed):
    _, _, _, manifest = mixed
    counts = {
        name: by_split["validation"] for name, by_split in manifest.components.items() if "validation" in by_split
    }
    assert all(count.epochs == 1.0 for count in counts.values())
    assert any(count.num_tokens < 256 for count in counts.values())


def test_a_completed_packing_is_left_alone_and_another_one_is_refused(mixed, monkeypatch):
    components, settings, output, manifest = mixed
    before = parquet_digests(output)
    monkeypatch.setattr("beam_pipelines.pack.run_pipeline", lambda *_: pytest.fail("nothing was to be done"))
    assert run_pack(components, output, **settings) == manifest
    with pytest.raises(ValueError, match="already holds another run"):
        run_pack(components, output, **{**settings, "seed": 3})
    assert parquet_digests(output) == before


def test_an_interrupted_packing_goes_on(mixed, tmp_path, monkeypatch):
    components, settings, output, _ = mixed

    def stop(*_):
        raise KeyboardInterrupt

    again = tmp_path / "shards"
    with monkeypatch.context() as patch:
        patch.setattr("beam_pipelines.pack.run_pipeline", stop)
        with pytest.raises(KeyboardInterrupt):
            run_pack(components, again, **settings)
    run_pack(components, again, **settings)
    assert parquet_digests(again) == parquet_digests(output)
    assert not (again / "tokenized").exists()


def test_an_unfinished_corpus_and_one_without_text_are_refused(inputs, tokenizer_folder, tmp_path):
    with pytest.raises(ValueError, match="is not a completed artifact"):
        run_pack([component("a", "chains", tmp_path)], tmp_path / "out", tokenizer=tokenizer_folder)
    assert not (tmp_path / "out").exists()
    held_out = [component("a", "instructions", inputs / "instructions.jsonl")]
    with pytest.raises(ValueError, match=r"Component 'a' has no text: .*everything in it went to validation"):
        run_pack(held_out, tmp_path / "out", tokenizer=tokenizer_folder, validation_fraction=0.9999)
    assert not (tmp_path / "out" / "COMPLETED").exists()


def count_encodings(monkeypatch):
    """How many texts are tokenized, by component."""
    counts = Counter()
    encode = TextTokenizer.encode

    def counting(self, texts):
        counts.update(text.component for text in texts)
        return encode(self, texts)

    monkeypatch.setattr(TextTokenizer, "encode", counting)
    return counts


def test_another_mixture_of_the_same_components_tokenizes_nothing(mixed, tmp_path, monkeypatch):
    components, settings, output, manifest = mixed
    cache = str(tmp_path / "cache")
    counts = count_encodings(monkeypatch)
    again = run_pack(components, tmp_path / "first", cache=cache, **settings)
    assert again == replace(manifest, config=again.config, inputs=again.inputs)
    assert parquet_digests(tmp_path / "first") == parquet_digests(output)
    assert set(counts) == {"augmented", "raw", "web", "general"}
    counts.clear()
    augmented, raw, web, general = components
    other = [
        replace(augmented, name="renamed", epochs=1.0),
        replace(raw, fraction=0.5, epochs=1.0),
        replace(web, epochs=3),
        replace(general, token_ratio=None, relative_to=[], token_share=0.3),
    ]
    run_pack(other, tmp_path / "second", cache=cache, packing=PackingConfig(strategy="best_fit"), **settings)
    assert not counts
    run_pack([web], tmp_path / "third", cache=cache, **{**settings, "add_bos": True})
    assert set(counts) == {"web"}


def test_the_fingerprint_covers_the_mixture_and_not_the_cache(inputs, tokenizer_folder, tmp_path):
    web = component("web", "documents", inputs / "raw.jsonl")
    settings = {"tokenizer": tokenizer_folder, "sequence_length": 64}
    fingerprints = [
        run_pack([web], tmp_path / str(number), **settings, **changes).fingerprint
        for number, changes in enumerate(
            (
                {},
                {"cache": str(tmp_path / "cache")},
                {"add_bos": True},
                {"seed": 1},
                {"packing": PackingConfig(strategy="best_fit")},
            )
        )
    ]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == len(fingerprints) - 1


def test_a_fifth_converted_and_the_rest_raw(tokenizer_folder, tmp_path):
    """The general recipe: no document is trained on in both forms, and none is lost."""
    documents = make_documents(100)
    corpus = write_jsonl(tmp_path / "corpus.jsonl", documents)
    fifth = write_jsonl(tmp_path / "fifth.jsonl", documents[:20])
    run_synthesize([fifth], tmp_path / "augmented", chain_length=2)
    manifest = run_pack(
        [
            component("augmented", "chains", tmp_path / "augmented"),
            component("raw", "documents", corpus, exclude_documents_of=["augmented"]),
        ],
        tmp_path / "shards",
        tokenizer=tokenizer_folder,
        sequence_length=64,
        num_shards=3,
        validation_fraction=0.2,
    )
    converted = {e.document.doc_id for chain in read_chains(tmp_path / "augmented") for e in chain.examples}
    raw = {
        text_id
        for _, row in read_rows(tmp_path / "shards", manifest)
        if row.component == "raw"
        for text_id in row.text_ids
    }
    assert len(converted) == 20
    assert raw == {document["id"] for document in documents} - converted
    assert sum(counts.num_documents for counts in manifest.components["raw"].values()) == 80


def test_a_document_that_was_split_is_not_raw_too(tokenizer_folder, tmp_path):
    """Its parts have ids of their own; the whole stands for them, in training and in validation."""
    documents = make_documents(30)
    long = [{**document, "text": "\n\n".join([document["text"]] * 9)} for document in documents[:10]]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [*long, *documents[10:]])
    some = write_jsonl(tmp_path / "some.jsonl", [*long, *documents[10:15]])
    engine = fake_engine(context_length=160)
    run_synthesize([some], tmp_path / "augmented", chain_length=2, engine=engine, sampling=Sampling(max_new_tokens=64))
    augmented = {e.document.doc_id for chain in read_chains(tmp_path / "augmented") for e in chain.examples}
    assert sum("#part-" in doc_id for doc_id in augmented) > 15
    manifest = run_pack(
        [
            component("augmented", "chains", tmp_path / "augmented", fraction=0.8),
            component("raw", "documents", corpus, exclude_documents_of=["augmented"]),
        ],
        tmp_path / "shards",
        tokenizer=tokenizer_folder,
        sequence_length=64,
        num_shards=3,
        validation_fraction=0.2,
    )
    rows = read_rows(tmp_path / "shards", manifest)
    raw = {text_id for _, row in rows if row.component == "raw" for text_id in row.text_ids}
    drawn = {text_id for _, row in rows if row.component == "augmented" for text_id in row.text_ids}
    documents_drawn = {
        example.document.doc_id.split("#")[0]
        for chain in read_chains(tmp_path / "augmented")
        if chain.chain_id in drawn
        for example in chain.examples
    }
    assert raw == {document["id"] for document in documents} - documents_drawn
    assert 10 <= len(documents_drawn) <= 15


def test_rejects_do_not_depend_on_the_order_of_files_and_stand_with_their_unit(tokenizer_folder, tmp_path):
    files = []
    for name in ("b", "a"):
        records = [{"id": f"{name}-{n}", "text": f"Text {n}."} for n in range(3)] + [{"body": name}]
        files.append(write_jsonl(tmp_path / f"{name}.jsonl", records))
    general = component("general", "instructions", write_jsonl(tmp_path / "i.jsonl", [*INSTRUCTIONS, {"x": 1}]))
    outputs = []
    for order in (files, files[::-1], [*files, f"{tmp_path}/./a.jsonl"]):
        outputs.append(tmp_path / str(len(outputs)))
        web = ComponentConfig(name="web", kind="documents", input=order)
        manifest = run_pack([web, general], outputs[-1], tokenizer=tokenizer_folder, sequence_length=64)
        assert manifest.rejected_by_reason == {"read/no_pair": 1, "read/no_text": 2}
        assert manifest.components["web"]["train"].num_texts == 6
    assert len(manifest.rejects) == 2
    assert sum(entry.num_rows for entry in manifest.rejects) == len(read_rejects(outputs[0])) == 3
    assert parquet_digests(outputs[0]) == parquet_digests(outputs[1]) == parquet_digests(outputs[2])


def test_where_nothing_was_tokenized_nothing_is_said_of_it(tokenizer_folder, tmp_path):
    empty = component("a", "documents", write_jsonl(tmp_path / "empty.jsonl", [{"body": "x"}]))
    with pytest.raises(ValueError, match=r"has no text: .*take the component out\.$"):
        run_pack([empty], tmp_path / "out", tokenizer=tokenizer_folder)


def test_an_impossible_mixture_says_where_its_tokens_are_kept(inputs, tokenizer_folder, tmp_path, monkeypatch):
    web = component("web", "documents", inputs / "raw.jsonl")
    general = component("general", "instructions", inputs / "instructions.jsonl", token_share=0.9, max_epochs=1)
    settings = {"tokenizer": tokenizer_folder, "sequence_length": 64}
    kept = str(tmp_path / "out" / "tokenized")
    with pytest.raises(ValueError, match=rf"max_epochs allows 1 times .*with another output, and {kept} as cache"):
        run_pack([web, general], tmp_path / "out", **settings)
    counts = count_encodings(monkeypatch)
    run_pack([web, replace(general, token_share=0.1)], tmp_path / "other", cache=kept, **settings)
    assert not counts


def test_a_cap_below_a_row_is_refused(inputs, tokenizer_folder, tmp_path):
    web = component("web", "documents", inputs / "raw.jsonl", max_tokens=63)
    with pytest.raises(ValueError, match=r"'web': max_tokens is 63, which is less than a row"):
        run_pack([web], tmp_path / "out", tokenizer=tokenizer_folder, sequence_length=64)
    assert not (tmp_path / "out").exists()


def test_a_fraction_and_the_rest_of_the_same_documents(inputs, tokenizer_folder, tmp_path, monkeypatch):
    counts = count_encodings(monkeypatch)
    manifest = run_pack(
        [
            component("some", "documents", inputs / "raw.jsonl", fraction=0.4, epochs=2),
            component("rest", "documents", inputs / "raw.jsonl", exclude_documents_of=["some"]),
        ],
        tmp_path / "shards",
        tokenizer=tokenizer_folder,
        sequence_length=64,
    )
    seen = defaultdict(set)
    for _, row in read_rows(tmp_path / "shards", manifest):
        seen[row.component] |= set(row.text_ids)
    assert not seen["some"] & seen["rest"]
    assert len(seen["some"] | seen["rest"]) == 21
    assert 2 <= len(seen["some"]) <= 16
    # Each text is tokenized, and each reject reported, once.
    assert counts == {"some": 21}
    assert manifest.rejected_by_reason == {"read/no_text": 1}


def test_a_shard_is_a_fair_sample_of_the_mixture(tokenizer_folder, tmp_path):
    """Rows of a component are spread over shards, and over the places in a shard, as chance would spread them."""
    components = [
        component(
            name,
            "documents",
            write_jsonl(tmp_path / f"{name}.jsonl", make_documents(count, source=name)),
            epochs=epochs,
        )
        for name, count, epochs in (("many", 600, 1), ("few", 80, 3.5), ("some", 200, 0.5))
    ]
    manifest = run_pack(components, tmp_path / "shards", tokenizer=tokenizer_folder, sequence_length=64, num_shards=4)
    rows = read_rows(tmp_path / "shards", manifest)
    by_shard = np.array([[entry.rows_by_component[one.name] for one in components] for entry in manifest.shards])
    # Texts are dealt to shards, so rows of one text come together: seven rows are about two texts here.
    assert chi_square(by_shard / 3.5) < CHI_SQUARE_999[6]
    start = 0
    for entry in manifest.shards:
        names = [row.component for _, row in rows[start : start + entry.num_rows]]
        start += entry.num_rows
        quarters = [names[quarter * len(names) // 4 : (quarter + 1) * len(names) // 4] for quarter in range(4)]
        by_quarter = np.array([[quarter.count(one.name) for one in components] for quarter in quarters])
        assert chi_square(by_quarter) < CHI_SQUARE_999[6]
    # The test would notice a mixture that is not one.
    assert chi_square(np.diag(by_shard.sum(axis=0))) > CHI_SQUARE_999[4]


# What chance exceeds once in a thousand times, by degrees of freedom.
CHI_SQUARE_999 = {4: 18.47, 6: 22.46}


def chi_square(counts):
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_an_impossible_request_says_what_is_available(inputs, tokenizer_folder, tmp_path):
    components = [
        component("web", "documents", inputs / "raw.jsonl"),
        component("general", "instructions", inputs / "instructions.jsonl", token_share=0.9, max_epochs=1.0),
    ]
    with pytest.raises(ValueError, match=r"Component 'general': \d+ tokens are asked for, but its texts have \d+"):
        run_pack(components, tmp_path / "out", tokenizer=tokenizer_folder)
    assert not (tmp_path / "out" / "COMPLETED").exists()


@pytest.mark.parametrize("kind", [llama_like, t5_like, large_vocabulary], ids=lambda kind: kind.__name__)
def test_rows_decode_to_their_texts_with_every_kind_of_tokenizer(kind, tmp_path):
    tokenizer = kind(str(tmp_path / "tokenizer"))
    contents = (
        [f"w{n} w{69_000 + n} w65535 w65536" for n in range(20)]
        if kind is large_vocabulary
        else [" ".join(sentences()[n : n + 5]).strip() for n in range(0, 100, 5)]
    )
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(contents)])
    manifest = run_pack(
        [component("raw", "documents", corpus)], tmp_path / "out", tokenizer=tokenizer.folder, sequence_length=512,
        packing=PackingConfig(strategy="best_fit"),
    )  # fmt: skip
    decode = AutoTokenizer.from_pretrained(tokenizer.folder).decode
    for (_, _, text_id), (ids,) in segments_by_text(read_rows(tmp_path / "out", manifest)).items():
        assert ids[-1] == manifest.special_ids["eos"]
        text = contents[int(text_id)]
        assert ids[:-1] == tokenizer.encode(text)
        if kind is not large_vocabulary:
            assert decode(ids[:-1]) == tokenizer.restores(text)
    column = pq.read_schema(tmp_path / "out" / manifest.shards[0].path).field("input_ids").type.value_type
    assert column == (pa.uint32() if kind is large_vocabulary else pa.uint16())
