import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from synth_model.word_ngrams import find_words, ngram_hashes, word_hashes

words = st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=30)


def test_words_are_runs_of_letters_and_digits_whatever_stands_between():
    assert [match.group() for match in find_words("It's 5 mg, naïve_word!")] == ["It", "s", "5", "mg", "naïve", "word"]
    assert (word_hashes("The  cat\nSAT.") == word_hashes('"the", Cat (sat)')).all()


def test_scripts_without_spaces_are_taken_character_by_character():
    assert [match.group() for match in find_words("链表2个 linked")] == ["链", "表", "2", "个", "linked"]


def test_no_words_are_no_hashes():
    assert word_hashes(" .\n").shape == (0,)
    assert ngram_hashes(word_hashes(""), length=3).shape == (0,)


@given(words, words, st.integers(1, 4))
def test_ngrams_are_equal_exactly_where_their_words_are(first, second, length):
    def ngrams(sequence):
        return [tuple(sequence[start : start + length]) for start in range(len(sequence) - length + 1)]

    hashes = [ngram_hashes(word_hashes(" ".join(sequence)), length=length) for sequence in (first, second)]
    assert [len(found) for found in hashes] == [len(ngrams(first)), len(ngrams(second))]
    by_hash = np.equal.outer(*hashes).tolist()
    assert by_hash == [[left == right for right in ngrams(second)] for left in ngrams(first)]
