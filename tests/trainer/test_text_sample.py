import gzip
import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from contracts.seeding import hash_fraction, stable_hash
from trainer.text_sample import SLICE_CHARACTERS, BottomSample, sample_texts

TEXTS = st.lists(st.text(min_size=1, max_size=12), max_size=12)


def draw(texts, *, max_bytes, seed=0):
    sample = BottomSample(max_bytes=max_bytes, seed=seed, name="train")
    for text in texts:
        sample.add(text)
    return sample.texts()


@given(texts=TEXTS, max_bytes=st.integers(1, 80), data=st.data())
def test_the_lowest_numbers_as_far_as_they_fit_in_whatever_order_they_come(texts, max_bytes, data):
    expected, total = [], 0
    for text in sorted(texts, key=lambda text: (stable_hash(0, "train", text), text)):
        total += len(text.encode())
        if total > max_bytes:
            break
        expected.append(text)
    assert draw(data.draw(st.permutations(texts)), max_bytes=max_bytes) == expected


def test_a_text_that_would_still_fit_behind_one_that_did_not_is_left_out_in_any_order():
    texts = sorted("abcdefgh", key=lambda text: stable_hash(0, "train", text * 5))
    sized = [text * 5 for text in texts]
    # 5 + 5 + 5 bytes fit into 18, and the fourth would not; nothing behind it is taken.
    for order in itertools.islice(itertools.permutations(sized), 0, 40320, 500):
        assert draw(order, max_bytes=18) == sized[:3]


def test_the_seed_decides():
    texts = [f"text {number}" for number in range(50)]
    assert draw(texts, max_bytes=100) == draw(texts[::-1], max_bytes=100)
    assert draw(texts, max_bytes=100) != draw(texts, max_bytes=100, seed=1)


def write(path, texts):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return str(path)


def test_files_in_any_order_give_the_same_sample_and_no_text_is_trained_on_and_measured(tmp_path):
    all_texts = [f"text number {number}" for number in range(200)]
    urls = [
        write(tmp_path / "a.jsonl.gz", all_texts[:120]),
        write(tmp_path / "b.jsonl.gz", [*all_texts[120:], "\ud800", 3, None, " "]),
    ]
    settings = {
        "text_field": "text",
        "max_bytes": 1500,
        "max_measured_bytes": 200,
        "measured_share": 0.3,
        "seed": 7,
    }
    sample = sample_texts(urls, **settings)
    again = sample_texts(urls[::-1], **settings)
    assert sample.to_train == again.to_train
    assert sample.to_measure == again.to_measure
    assert (sample.num_texts, sample.num_unusable) == (200, 4)
    assert 1400 < sum(map(len, sample.to_train)) <= 1500
    measured = [text for texts in sample.to_measure.values() for text in texts]
    assert not set(measured) & set(sample.to_train)
    assert all(hash_fraction(7, "measured", text) < 0.3 for text in measured)
    assert set(sample.to_measure[urls[0]]) <= set(all_texts[:120])
    assert set(sample.to_measure[urls[1]]) <= set(all_texts[120:])
    assert all(150 < sum(map(len, texts)) <= 200 for texts in sample.to_measure.values())


def test_a_long_text_is_drawn_in_slices(tmp_path):
    book = "".join(chr(0x4E00 + number % 20_000) for number in range(SLICE_CHARACTERS * 2 + 10))
    url = write(tmp_path / "a.jsonl.gz", [book])
    sample = sample_texts(
        [url], text_field="text", max_bytes=10**6, max_measured_bytes=10**6, measured_share=0.0, seed=0
    )
    assert sorted(map(len, sample.to_train)) == [10, SLICE_CHARACTERS, SLICE_CHARACTERS]
    assert sorted(sample.to_train) == sorted(
        book[start : start + SLICE_CHARACTERS] for start in range(0, len(book), SLICE_CHARACTERS)
    )
    assert sample.num_texts == 1
