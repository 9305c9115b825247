"""Loads a Hugging Face tokenizer as transformers does, and takes from it what packing needs.

That is its definition, and a second one for which special tokens are plain text. To ask the library for that
(``encode_special_tokens``) is not enough: it does no longer look for the strings, but a model whose vocabulary holds
them may still make them its tokens, as every Unigram model does. So they get other names in the second definition,
which no text can spell, and keep their ids.

transformers brings torch along: seconds, and half a gigabyte that would stay with the pipeline to its end. So a
process of its own does it, without torch, unless transformers is there already, and answers in JSON:
``python -m beam_pipelines.tokenizer_loading NAME_OR_PATH``.

Not done here: tokenizers without a fast (Rust) implementation.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from beam_pipelines.text_tokenization import TokenizerDescription


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedTokenizer:
    """A tokenizer as packing needs it.

    Args:
        description: What it is.
        definition: All of it, as the ``tokenizers`` library writes it.
        plain_definition: The same, but that special tokens' strings are plain text.
    """

    description: TokenizerDescription
    definition: str
    plain_definition: str


def load_tokenizer(name_or_path: str, *, add_bos: bool, add_eos: bool) -> LoadedTokenizer:
    """Loads a tokenizer.

    Args:
        name_or_path: Hub name or folder.
        add_bos: Whether its BOS will be needed.
        add_eos: Whether its EOS will be needed.

    Raises:
        ValueError: No such tokenizer, none with a fast implementation, or it lacks the BOS or EOS asked for.
    """
    load = load_here if "transformers" in sys.modules else _load_in_another_process
    loaded = load(name_or_path)
    for wanted, name in ((add_bos, "bos"), (add_eos, "eos")):
        if wanted and loaded.description.special_ids[name] is None:
            raise ValueError(f"add_{name} is on, but the tokenizer of {name_or_path!r} has no {name.upper()} token.")
    return loaded


def load_here(name_or_path: str) -> LoadedTokenizer:
    """As `load_tokenizer`, in this process.

    Raises:
        ValueError: No such tokenizer, or none with a fast implementation.
    """
    from synth_model.prompt_tokenizer import ModelTokenizer

    model_tokenizer = ModelTokenizer(name_or_path)
    tokenizer = model_tokenizer.tokenizer
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"The tokenizer of {name_or_path!r} has no fast implementation; convert it first.")
    description = TokenizerDescription(
        name=name_or_path,
        sha256=_definition_sha256(name_or_path, backend),
        # Not their number: a vocabulary may have gaps.
        vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values()),
        special_ids={name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
        special_tokens=model_tokenizer.special_tokens,
    )
    definition = backend.to_str()
    return LoadedTokenizer(
        description=description,
        definition=definition,
        plain_definition=without_special_tokens(definition, special_tokens=description.special_tokens),
    )


def without_special_tokens(definition: str, *, special_tokens: Sequence[str]) -> str:
    """A definition in which special tokens have names that no text can spell.

    Args:
        definition: As the ``tokenizers`` library writes it.
        special_tokens: Their strings.
    """
    content = json.loads(definition)
    # Models see text without NUL and space side by side: byte-level ones see neither, the others see no space.
    names = {token: f"\x00 special token {number} \x00" for number, token in enumerate(special_tokens)}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if "merges" in model:
        pairs = (pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    # It would look for the old names, and is not asked to do anything.
    content["post_processor"] = None
    return json.dumps(content, ensure_ascii=False)


def _load_in_another_process(name_or_path: str) -> LoadedTokenizer:
    answer = subprocess.run(
        [sys.executable, "-m", "beam_pipelines.tokenizer_loading", name_or_path],
        env={"TRANSFORMERS_VERBOSITY": "error", **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    loaded = json.loads(answer.stdout)
    if "error" in loaded:
        raise ValueError(loaded["error"])
    description = loaded.pop("description")
    return LoadedTokenizer(
        description=TokenizerDescription(**{**description, "special_tokens": tuple(description["special_tokens"])}),
        **loaded,
    )


def _definition_sha256(name_or_path: str, backend: Any) -> str:
    """The hash of the whole definition, as the file holds it: what loading adds to it is not part of it."""
    from tokenizers import Tokenizer
    from transformers.utils.hub import cached_file

    if os.path.isdir(name_or_path):
        path: str | None = os.path.join(name_or_path, "tokenizer.json")
    else:
        path = cached_file(name_or_path, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    definition = Tokenizer.from_file(path) if path and os.path.isfile(path) else backend
    return hashlib.sha256(definition.to_str().encode()).hexdigest()


def main(name_or_path: str) -> None:
    """Loads a tokenizer and prints it as JSON: the fields of `LoadedTokenizer`, or ``error``."""
    try:
        answer = asdict(load_here(name_or_path))
    except ValueError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    # To whoever asks, torch is not installed here: a tokenizer needs none.
    sys.modules["torch"] = None  # type: ignore[assignment]
    main(sys.argv[1])
