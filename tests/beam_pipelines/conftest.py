import logging
import os

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.beam_pipelines.pipeline_runs import make_documents

# It speaks once more when the process ends, to a stream that the test run has closed by then.
logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)

SPECIAL_TOKENS = ("<s>", "</s>", "<|im_end|>")


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
    tokenizer.train_from_iterator([document["text"] for document in make_documents(20)], trainer)
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[1],
        pad_token=SPECIAL_TOKENS[2],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prism_path(shared_folder):
    """Beam's portable runner as a file, since it may not be downloaded here."""
    path = shared_folder / "tools" / "prism"
    if not os.access(path, os.X_OK):
        pytest.skip(f"{path} is absent or cannot be run")
    return str(path)
