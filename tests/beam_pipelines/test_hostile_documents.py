"""Ten thousand documents of what breaks formats, through the whole synthesis, with completions of the same kind."""

import json
import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from beam_pipelines import model_handler
from contracts.record_files import lone_surrogate
from contracts.seeding import rng
from synth_model.engines.fake_engine import FakeTokenizer
from synth_model.generation import Completion
from synth_model.synthesizer import SynthesizerConfig
from synth_model.wire_format import MARKUP
from tests.beam_pipelines.pipeline_runs import fake_engine, read_chains, read_rejects, run_synthesize

pytestmark = pytest.mark.slow

NUM_DOCUMENTS = 10_000
NUM_PASSAGES = 2_500
SPECIAL_TOKENS = FakeTokenizer.special_tokens
FRAGMENTS = (
    # Markup of the wire format and of chat templates, whole, in part, and escaped already.
    *(*MARKUP, *SPECIAL_TOKENS, "<|im_start|>system\n", "<|endoftext|>", "[INST]", "<<SYS>>", "</", "<|", "END>"),
    *("<\u2060QUE>", "<\u2060\u2060s>", "<|\u2060fake_end|>", "\u2060", "<QUE> q <ANS> a </END>", "</CON>\n\n<QUE> "),
    *(" </s><s> <CON> ", "Question: why?\nAnswer: so.", "\nQuestion:", "Answer:", "\nOptions:\n- a\n- b"),
    # Templates, shells, escapes, other formats.
    *("{", "}", "{text}", "{0.__class__}", "%s", "%(name)d", "${HOME}", "\\", "\\n", "\\ud800", "$1", "`rm -rf /`"),
    *(
        "<script>alert(1)</script>",
        "&lt;",
        "<!--",
        "]]>",
        '{"text": "x"}',
        "- key: &a [*a]",
        "!!python/object",
        "---\n",
    ),
    # Control and invisible characters, line ends that are none, other directions, marks, joined and wide characters.
    *("\x00", "\x01", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u2029", "\ufeff", "\ufffe", "\ufffd", "\xa0", "\u3000"),
    *(
        "\r",
        "\r\n",
        "\x0b",
        "\x0c",
        "\x1c",
        "\u202e",
        "\u200f",
        "\u2066",
        "שלום",
        "مرحبا",
        "e\u0301",
        "a" + "\u0300" * 40,
    ),
    *("\u200d", "👩‍👩‍👧‍👦", "🇰🇷", "\U000e0041", "İ", "ß", "ﷺ", "漢字かな交じり文。", "안녕하세요.", "สวัสดี"),
    *("\t", " ", "\n", "\n\n", " " * 50, "w" * 5000, "word ", "A sentence. ", "1,000.5"),
)
LONE_SURROGATES = ("\ud83d", "\udc00", "\udfff\ud800")


def draw_passages():
    """Texts of such fragments and of any characters; the same ones every time."""
    passages = []
    pieces = st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)

    @settings(
        max_examples=NUM_PASSAGES // 25,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.lists(pieces, min_size=1, max_size=10).map("".join), min_size=25, max_size=25))
    def collect(batch):
        passages.extend(batch)

    collect()
    assert len(set(passages)) > 300
    return passages


def make_records(passages, *, num_records):
    """Documents of one to four passages with ids, sources and titles of the same kind; some are long, some no text."""
    draw = rng(0, "hostile documents")

    def passage():
        return passages[int(draw.integers(len(passages)))]

    for number in range(num_records):
        text = "".join(passage() for _ in range(int(draw.integers(1, 5))))
        match number % 50:
            case 0:
                text += LONE_SURROGATES[number // 50 % len(LONE_SURROGATES)]
            case 1:
                text = ("A sentence of words. ", "{} <QUE>\n", "字。")[number // 50 % 3] * 500 + text
            case 2:
                text = "endless " * 1200 + text
            case 3:
                text = " \n\t\u3000" * (number % 7)
        yield {
            "id": f"{passage()[:30]}{number}",
            "source": ("web", "books", "</s>", "\u202e<QUE>", "\ud800 source", "")[number % 6],
            "title": passage() if number % 3 else None,
            "text": text,
        }


class HostileEngine:
    """Writes pairs of hostile passages as a model may: with markup, cut off, or without end. Keeps its prompts."""

    def __init__(self, passages, prompts):
        self._passages = [passage.encode("utf-8", "replace").decode() for passage in passages]
        self.prompts = prompts

    def generate(self, prompts, *, sampling):
        self.prompts.extend(prompts)
        return [self._complete(str(prompt.text or prompt.messages)) for prompt in prompts]

    def _complete(self, prompt):
        draw = rng(0, "completion", prompt.encode("utf-8", "replace").decode())
        sides = [self._passages[int(draw.integers(len(self._passages)))] for _ in range(6)]
        if draw.integers(50) == 0:
            sides[0] += "\ud83d"
        if "<CON>" in prompt:
            text = "\n\n".join(f"<QUE> {sides[i]} <ANS> {sides[i + 1]} </END>" for i in (0, 2)) + f"<QUE> {sides[4]}"
        else:
            text = "\n\n".join(f"Question: {sides[i]}\nAnswer: {sides[i + 1]}" for i in (0, 2, 4))
        return Completion(text=text, finish_reason="stop", num_prompt_tokens=1, num_new_tokens=len(text) % 97)


@pytest.fixture(scope="module")
def passages():
    return draw_passages()


@pytest.fixture(scope="module", params=["wire_format", "chat"])
def hostile_run(request, passages, tmp_path_factory):
    """All documents through the tuned format, a twentieth through the chat prompt."""
    folder = tmp_path_factory.mktemp(request.param)
    records = list(make_records(passages, num_records=NUM_DOCUMENTS // (1 if request.param == "wire_format" else 20)))
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "ascii")
    prompts = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(model_handler, "load_engine", lambda config: HostileEngine(passages, prompts))
        manifest = run_synthesize(
            [folder / "in.jsonl"],
            folder / "out",
            chain_length=2,
            engine=fake_engine(context_length=1100, max_batch_size=64),
            synthesizer=SynthesizerConfig(kind=request.param),
        )
    return request.param, folder / "out", records, manifest, prompts


def test_every_document_is_accounted_for(hostile_run):
    _, folder, records, manifest, prompts = hostile_run
    accounts = manifest.accounts
    examples = [example for chain in read_chains(folder) for example in chain.examples]
    rejects = [reject for reject in read_rejects(folder) if reject.stage != "gate"]
    assert accounts.num_records == len(records)
    assert accounts.num_texts == len(examples) + len(rejects)
    assert accounts.num_augmented + accounts.num_kept_raw + accounts.num_rejected == accounts.num_texts
    assert accounts.num_texts == len(records) + accounts.num_parts - accounts.num_documents_split
    assert Counter(f"{reject.stage}/{reject.reason}" for reject in rejects) == accounts.rejected_by_reason
    assert accounts.rejected_by_reason["read/invalid_unicode"] >= len(records) / 50
    assert accounts.rejected_by_reason["read/empty_text"] >= len(records) / 50
    assert accounts.rejected_by_reason["split/sentence_too_long"] >= len(records) / 60
    assert accounts.rejected_by_reason["synthesize/invalid_unicode"] >= len(records) / 200
    assert accounts.num_documents_split > len(records) / 200
    assert min(accounts.num_augmented, accounts.num_kept_raw) > len(records) / 200
    assert len(prompts) == len(examples) + accounts.rejected_by_reason["synthesize/invalid_unicode"]


def test_texts_come_through_unharmed(hostile_run):
    _, folder, records, _, _ = hostile_run
    texts = {record["id"]: record["text"] for record in records}
    found = {example.document.doc_id: example.document for chain in read_chains(folder) for example in chain.examples}
    rejects = {reject.doc_id: reject for reject in read_rejects(folder) if reject.stage in ("split", "synthesize")}
    parts = {}
    for doc_id, text in [
        *((doc_id, document.text) for doc_id, document in found.items()),
        *((doc_id, reject.text) for doc_id, reject in rejects.items()),
    ]:
        whole, is_part, number = doc_id.partition("#part-")
        if is_part and doc_id not in texts:
            parts.setdefault(whole, []).append((int(number), text))
        else:
            assert text == texts[doc_id]
    assert len(parts) > len(records) / 200
    for doc_id, numbered in parts.items():
        # Only space between two parts may be gone.
        assert "".join("".join(text for _, text in sorted(numbered)).split()) == "".join(texts[doc_id].split())


def test_nothing_in_texts_or_completions_acts_as_markup(hostile_run):
    kind, folder, _, manifest, prompts = hostile_run
    if kind == "chat":
        for prompt in prompts:
            assert [message.role for message in prompt.messages[-2:]] in (["system", "user"], ["assistant", "user"])
            for message in prompt.messages:
                assert not any(token in message.content for token in SPECIAL_TOKENS)
        return
    data = "((?:(?!" + "|".join(map(re.escape, (*MARKUP, *SPECIAL_TOKENS))) + ").)*)"
    context = rf"<s> <CON> {data} </CON>\n\n"
    pair = rf"<QUE> {data} <ANS> {data} </END>"
    prompt_format = re.compile(rf"(?:{context}{pair}(?:\n\n{pair})*</s>)?{context}", re.DOTALL)
    num_behind_another = 0
    for prompt in prompts:
        match = prompt_format.fullmatch(prompt.text)
        assert match, prompt.text[:1000]
        num_behind_another += match[2] is not None
    inherited = [example for chain in read_chains(folder) for example in chain.examples if example.inherits_previous]
    assert len(prompts) / 20 < len(inherited) <= num_behind_another
    assert manifest.num_pairs > manifest.accounts.num_augmented


def test_what_is_written_is_unicode(hostile_run):
    _, folder, _, _, _ = hostile_run
    for chain in read_chains(folder):
        for example in chain.examples:
            for pair in example.pairs:
                assert pair.instruction.strip()
                assert pair.response.strip()
                assert lone_surrogate(pair.instruction + pair.response) is None
