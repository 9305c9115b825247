import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.component_tokenization import Keeping, TokenizedUnit, tokenize_unit
from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.shard_selection import Holdings, count_holdings, select_texts, shard_counts
from beam_pipelines.tokenized_parts import document_key, is_drawn
from contracts.records import RenderedText
from tests.beam_pipelines.byte_tokenizer import ByteTokenizer

SEED = 5


def component(name, **settings):
    return ComponentConfig(**{"name": name, "kind": "documents", "input": ["x"], **settings})


def text(name, *doc_ids, content=None):
    return RenderedText(
        text_id=name,
        component="",
        text=content or f"The text {name}.",
        template_id="raw",
        doc_ids=doc_ids or (name,),
        group_id=name,
    )


def tokenize(folder, name, texts, *, validation_fraction=0.0, part_tokens=1 << 20):
    keeping = Keeping(part_tokens=part_tokens, validation_fraction=validation_fraction, seed=SEED)
    return TokenizedUnit(
        component=name, index=tokenize_unit(str(folder), texts, tokenizer=ByteTokenizer(), keeping=keeping)
    )


def select(units, components, name, *, split="train", count=1):
    """The ids of the texts that each shard holds of a component."""
    chosen = next(one for one in components if one.name == name)
    return [
        select_texts((split, number), count=count, component=chosen, components=components, units=units)
        .column("text_id")
        .to_pylist()
        for number in range(count)
    ]


def flat(shards):
    return [text_id for shard in shards for text_id in shard]


def drawn(names, fraction):
    keys = np.array([document_key(name, seed=SEED) for name in names], np.uint64)
    return {name for name, is_in in zip(names, is_drawn(keys, fraction=fraction), strict=True) if is_in}


NAMES = [f"doc-{number}" for number in range(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Raw documents in two units, and an augmented corpus of chains of two of them and of documents of its own."""
    folder = tmp_path_factory.mktemp("units")
    chains = [text(f"chain-{n}", NAMES[2 * n], NAMES[2 * n + 1]) for n in range(40)]
    return [
        tokenize(folder / "one", "raw", [text(name) for name in NAMES[:200]], part_tokens=500),
        tokenize(folder / "two", "raw", [text(name) for name in NAMES[200:]]),
        tokenize(folder / "three", "augmented", [*chains, text("own-chain", "own", "own-2")]),
    ]


def test_shards_hold_every_text_once_and_about_equally_many(corpus):
    shards = select(corpus, [component("raw")], "raw", count=4)
    assert sorted(flat(shards)) == sorted(NAMES)
    assert min(map(len, shards)) > 45


def test_fractions_of_the_same_documents_nest(corpus):
    fifth, half = component("raw", fraction=0.2), component("raw", fraction=0.5)
    few, many = (set(flat(select(corpus, [one], "raw", count=3))) for one in (fifth, half))
    assert few == drawn(NAMES, 0.2)
    assert few < many == drawn(NAMES, 0.5)
    assert 30 < len(few) < 90


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_document_of_another_component_is_left_out(corpus, count, fraction):
    components = [
        component("raw", exclude_documents_of=["augmented"]),
        component("augmented", kind="chains", fraction=fraction),
    ]
    chains = flat(select(corpus, components, "augmented", count=count))
    in_chains = {NAMES[2 * n + half] for n in range(40) for half in (0, 1) if f"chain-{n}" in chains}
    assert len(chains) == (41 if fraction == 1 else len(drawn(NAMES[:80:2], 0.5)) + len(drawn(["own"], 0.5)))
    raw = flat(select(corpus, components, "raw", count=count))
    assert sorted(raw) == sorted(set(NAMES) - in_chains)
    # In the same range of keys lie the second documents of chains that lie elsewhere.
    assert len(raw) > len(NAMES) - len(chains) * 2 - 1


def test_a_component_and_what_it_leaves(corpus):
    taken = [*corpus[:2], *(TokenizedUnit(component="rest", index=unit.index) for unit in corpus[:2])]
    components = [component("raw", fraction=0.2), component("rest", exclude_documents_of=["raw"])]
    few, rest = (set(flat(select(taken, components, name, count=3))) for name in ("raw", "rest"))
    assert few == drawn(NAMES, 0.2)
    assert rest == set(NAMES) - few


def test_a_document_that_is_validated_in_another_form_is_not_trained_on(tmp_path):
    raw = tokenize(tmp_path / "raw", "raw", [text(name) for name in NAMES])
    other = tokenize(tmp_path / "other", "other", [text(f"c-{name}", name) for name in NAMES], validation_fraction=0.5)
    components = [component("raw", exclude_documents_of=["other"]), component("other", kind="chains")]
    held_out = select([raw, other], components, "other", split="validation")[0]
    assert 50 < len(held_out) < 250
    assert select([raw, other], components, "raw") == [[]]


def test_holdings_are_what_is_selected(corpus):
    components = [component("raw", exclude_documents_of=["augmented"]), component("augmented", kind="chains")]
    for number in range(3):
        held = count_holdings(("train", number), count=3, components=components, units=corpus, max_usable=12)
        for one in components:
            table = select_texts(("train", number), count=3, component=one, components=components, units=corpus)
            lengths = table.column("num_tokens").to_numpy()
            assert held[one.name] == Holdings(
                num_documents=sum(table.column("num_documents").to_pylist()),
                num_texts=len(lengths),
                num_tokens=int(lengths.sum()),
                num_usable_tokens=12 * len(lengths),
            )
    assert count_holdings(("validation", 0), count=1, components=components, units=corpus, max_usable=None) == {}


@given(order=st.permutations(range(6)), cut=st.integers(0, 6))
def test_the_order_depends_on_nothing_but_the_texts(tmp_path_factory, order, cut):
    folder = tmp_path_factory.mktemp("units")
    # The same document under two ids, the same id with two texts, and one text twice.
    texts = [
        text("a"), text("b", "a"), text("c"), text("c", content="Another."), text("d"), text("d"),
    ]  # fmt: skip
    shuffled = [texts[number] for number in order]
    units = [
        tokenize(folder / "one", "raw", shuffled[:cut]),
        tokenize(folder / "two", "raw", shuffled[cut:], part_tokens=1),
    ]
    one = component("raw")
    table = select_texts(("train", 0), count=1, component=one, components=[one], units=units)
    in_order = sorted(
        texts, key=lambda t: (document_key(t.doc_ids[0], seed=SEED), t.text_id, t.text.encode("utf-16-le"))
    )
    assert table.column("text_id").to_pylist() == [t.text_id for t in in_order]
    assert table.column("ids").to_pylist() == [t.text.encode("utf-16-le") for t in in_order]


def test_as_many_shards_as_hold_what_is_asked_for(corpus):
    total = sum(part.num_tokens for unit in corpus for part in unit.index.texts)
    auto = {"train": None, "validation": None}
    assert shard_counts(corpus, num_shards=auto, shard_tokens=total) == {"train": 1, "validation": 1}
    assert shard_counts(corpus, num_shards=auto, shard_tokens=total // 3) == {"train": 4, "validation": 1}
    assert shard_counts(corpus, num_shards={"train": 7, "validation": 2}, shard_tokens=1) == {
        "train": 7,
        "validation": 2,
    }
