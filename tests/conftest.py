import os
import pathlib

import pytest
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "</s>", "<|im_end|>")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# A machine with other work on it may take long over one example; how long says nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def shared_folder():
    """The folder of published reference cases and tools; tests that need it are skipped where it is absent."""
    folder = pathlib.Path(os.environ.get("IPT_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set IPT_SHARED to the folder with reference_cases/ and tools/")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A byte-level BPE with BOS ``<s>``, EOS ``</s>`` and padding ``<|im_end|>`` in a Hugging Face folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(REPOSITORY / "beam_pipelines" / "example_data" / "general_instructions.jsonl")], trainer)
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[1],
        pad_token=SPECIAL_TOKENS[2],
    ).save_pretrained(folder)
    return folder
