import pytest

from contracts.records import Document, Example, InstructionPair
from synth_model.generation import ChatMessage, Prompt
from synth_model.prompt_tokenizer import ModelTokenizer
from synth_model.wire_format import build_prompt
from tests.synth_model import tiny_model

CHAT = Prompt(
    messages=(ChatMessage(role="system", content="S"), ChatMessage(role="user", content="U")), response_prefix="Q:"
)


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    return ModelTokenizer(model_folder)


def test_no_second_bos_before_a_prompt_of_the_wire_format(tokenizer):
    earlier = Example(
        document=Document(doc_id="d", source="s", text="One <s>."),
        pairs=(InstructionPair(instruction="a?", response="b"),),
    )
    text = build_prompt([earlier], text="Two.", special_tokens=tokenizer.special_tokens)
    bos_id, eos_id = 0, 1
    (ids,) = tokenizer.encode([Prompt(text=text)])
    # One for each context; the one in the text is data.
    assert ids.count(bos_id) == 2
    assert ids.count(eos_id) == 1
    assert ids[0] == bos_id
    assert tokenizer.tokenizer.decode(ids) == text
    # The tokenizer itself would have added one.
    assert tokenizer.tokenizer(text)["input_ids"] == [bos_id, *ids]
    assert tokenizer.count([Prompt(text=text)]) == [len(ids)]


def test_a_conversation_goes_through_the_chat_template(tokenizer):
    rendered = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nQ:"
    assert tokenizer.render(CHAT) == rendered
    (ids,) = tokenizer.encode([CHAT])
    assert tokenizer.tokenizer.decode(ids) == rendered
    assert 0 not in ids
    assert tokenizer.count([CHAT, Prompt(text="ab")]) == [len(ids), 2]


def test_plain_texts_are_counted_without_special_tokens(tokenizer):
    assert tokenizer.count_text(["abc", "", "é", "<s>"]) == [3, 0, 2, 1]
    assert tokenizer.count_text([]) == []
    assert tokenizer.count([]) == []


def test_special_tokens_without_a_role_are_known_too(tokenizer):
    assert set(tokenizer.special_tokens) == set(tiny_model.SPECIAL_TOKENS)
    # Each of them is one token, which is why data must not hold it.
    assert tokenizer.count_text(list(tokenizer.special_tokens)) == [1] * len(tokenizer.special_tokens)


@pytest.mark.parametrize(
    ("chat_template", "start"),
    [
        (tiny_model.CHAT_TEMPLATE, "<|im_start|>user\n"),
        ("<s>{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}", "<s>[INST]"),
        (
            "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endfor %}",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n",
        ),
    ],
)
def test_the_start_of_a_users_turn_is_what_stands_before_its_words(tmp_path, chat_template, start):
    tiny_model.write_tokenizer(str(tmp_path), chat_template=chat_template)
    tokenizer = ModelTokenizer(str(tmp_path))
    assert tokenizer.user_turn_start() == start
    # Whatever the words, a conversation begins like that.
    for words in ("Why?", "{{ braces }}"):
        rendered = tokenizer.render(Prompt(messages=(ChatMessage(role="user", content=words),)))
        assert rendered.startswith(start)
        assert rendered.removeprefix(start).lstrip(" ").startswith(words)


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, "has no chat template; use an instruct model"),
        ("{{ raise_exception('Not today') }}", "refuses the conversation: Not today"),
        ("Say something.", "does not mark where the user's words begin"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not mark where the user's words begin"),
    ],
)
def test_a_template_without_the_start_of_a_users_turn_is_refused(tmp_path, chat_template, message):
    tiny_model.write_tokenizer(str(tmp_path), chat_template=chat_template)
    with pytest.raises(ValueError, match=message):
        ModelTokenizer(str(tmp_path)).user_turn_start()


def test_without_a_chat_template_a_conversation_is_refused(tmp_path):
    tiny_model.write_tokenizer(str(tmp_path), chat_template=None)
    tokenizer = ModelTokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="has no chat template; use an instruct model"):
        tokenizer.encode([CHAT])
    assert tokenizer.count([Prompt(text="abc")]) == [3]


def test_what_a_chat_template_refuses_is_told(tmp_path):
    tiny_model.write_tokenizer(str(tmp_path), chat_template="{{ raise_exception('System role not supported') }}")
    with pytest.raises(ValueError, match="refuses the conversation: System role not supported"):
        ModelTokenizer(str(tmp_path)).encode([CHAT])


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        tokenizer.encode([Prompt(text="a \ud800 b")])


def test_a_missing_tokenizer_is_named(tmp_path):
    folder = str(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"There is no model folder '.*absent'"):
        ModelTokenizer(folder)
    (tmp_path / "absent").mkdir()
    with pytest.raises(ValueError, match=r"No tokenizer could be loaded from '.*absent'"):
        ModelTokenizer(folder)
