"""The adapter that comes with the project: what is in its folder, and that it writes pairs."""

import json
import os

import pytest
import yaml
from safetensors import safe_open

from beam_pipelines.command_line import parse_command
from beam_pipelines.synthesize import SynthesizeConfig
from contracts.records import Document
from synth_model.engines import EngineConfig, load_engine, load_tokenizer
from synth_model.generation import Completion, Sampling
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer
from synth_model.wire_format import SequenceMarks
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "synthesizers" / "smollm2-135m"
QUICKSTART = REPOSITORY / "configs" / "synthesize" / "quickstart.yaml"
RECIPE = REPOSITORY / "configs" / "finetune" / "smollm2_135m.yaml"
MODEL = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"
MAX_BYTES = 12_000_000
TEXT = (
    "A lease names the worker that may write to a partition. It ends after thirty seconds unless the worker renews it. "
    "When a lease has ended, any other worker may take the partition over."
)


def test_the_weights_are_small_and_belong_to_the_model_of_the_recipe():
    weights = FOLDER / "adapter_model.safetensors"
    assert weights.stat().st_size <= MAX_BYTES
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    config = json.loads((FOLDER / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == recipe["base_model_name"]
    assert config["r"] == recipe["pretrain"]["model"]["lora"]["rank"]
    with safe_open(weights, framework="pt") as file:
        names = set(file.keys())
        ranks = {min(file.get_slice(name).get_shape()) for name in names}
    # Seven matrices of each of thirty layers, two factors each.
    assert (len(names), ranks) == (7 * 30 * 2, {config["r"]})


def test_the_quickstart_asks_it_as_its_settings_say():
    config = parse_command(
        SynthesizeConfig, command="synthesize", description="", arguments=["--config", str(QUICKSTART)]
    )[0]
    settings = yaml.safe_load((FOLDER / "synthesizer.yaml").read_text("utf-8"))
    assert config.engine.adapter == settings["engine"]["adapter"] == str(FOLDER.relative_to(REPOSITORY))
    marks = SequenceMarks(**settings["synthesizer"]["marks"])
    assert (config.synthesizer.kind, config.synthesizer.marks) == (settings["synthesizer"]["kind"], marks)


def test_the_card_names_only_licences_that_the_recipe_allows():
    allowed = yaml.safe_load(RECIPE.read_text("utf-8"))["tasks"]["licenses"]
    assert not any(word in licence for licence in allowed for word in ("NC", "ND", "research", "unknown"))
    card = (FOLDER / "README.md").read_text("utf-8")
    rows = card.partition("| dataset | licences |")[2].partition("\n\n")[0].splitlines()[2:]
    licences = [row.split("|")[2].strip().replace("\\", "") for row in rows]
    assert len(licences) >= 20
    assert set(licences) <= set(allowed)


@pytest.mark.real_model
def test_it_writes_pairs_about_a_text():
    if not os.path.isdir(MODEL):
        pytest.skip(f"{MODEL} is absent; make model puts it there")
    marks = yaml.safe_load((FOLDER / "synthesizer.yaml").read_text("utf-8"))["synthesizer"]["marks"]
    engine_config = EngineConfig(model=str(MODEL), adapter=str(FOLDER), device="cpu")
    synthesizer = make_synthesizer(SynthesizerConfig(kind="wire_format", marks=SequenceMarks(**marks)))
    special_tokens = load_tokenizer(engine_config).special_tokens
    document = Document(doc_id="lease", source="docs", text=TEXT)
    prompt = synthesizer.build_prompt((), document=document, special_tokens=special_tokens)
    engine = load_engine(engine_config)
    (completion,) = engine.generate([prompt], sampling=Sampling(max_new_tokens=224, presence_penalty=2.0))
    assert isinstance(completion, Completion)
    pairs = synthesizer.parse(completion, special_tokens=special_tokens)
    assert pairs, completion.text
    assert any(word in pairs[0].instruction.lower() for word in ("lease", "worker", "partition")), pairs
