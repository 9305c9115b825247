from synth_model.evaluation.known_texts import find_known_texts, text_key

WORDS = [f"word{number}" for number in range(100)]


def known(text, *, tuned_on):
    return find_known_texts([text], tuned_on=tuned_on) == {text_key(text)}


def test_a_text_in_another_layout_is_known():
    text = "The tide turns. It turns twice a day."
    assert known(text, tuned_on=["- the tide turns\n- it turns twice a day\n"])
    assert not known(text, tuned_on=["- the tide turns\n- it turns once a day\n"])
    # Without a word, the characters decide.
    assert known("+ - *", tuned_on=["+ -  *"])
    assert not known("+ - *", tuned_on=["+ - /"])


def test_a_text_that_stands_for_the_greater_part_in_what_was_tuned_on_is_known():
    text = " ".join(WORDS)
    assert known(" ".join(WORDS[20:90]), tuned_on=["Before. " + text + " Behind."])
    # 88 runs of 13 words: of 57 words 45 are known, of 56 exactly half are.
    assert known(text, tuned_on=[" ".join(WORDS[:57])])
    assert not known(text, tuned_on=[" ".join(WORDS[:56])])
    # Two texts that hold a half each are as good as one.
    assert known(text, tuned_on=[" ".join(WORDS[:55]), "other words", " ".join(WORDS[45:])])
    # Single sentences in common are no more than that.
    assert not known(text, tuned_on=[" ".join(WORDS[start : start + 12]) for start in range(0, 100, 5)])


def test_short_texts_are_compared_as_wholes():
    assert not known("Twice a day.", tuned_on=["The tide turns twice a day, as everyone knows who lives by the sea."])
    assert find_known_texts([], tuned_on=["The tide."]) == frozenset()
    assert find_known_texts(["The tide.", "The moon."], tuned_on=[]) == frozenset()
