from dataclasses import replace

import pytest

from contracts import storage
from synth_model.engines import EngineConfig
from synth_model.evaluation.completing import LoadedEngine, complete_prompts
from synth_model.evaluation.completion_log import CompletionLog
from synth_model.generation import Completion, Failure, Prompt, Sampling

ENGINE = EngineConfig(kind="fake", max_batch_size=4)
SAMPLING = Sampling(max_new_tokens=8)
PROMPTS = {f"key {number}": Prompt(text="word " * (number + 1), num_tokens=number + 1) for number in range(10)}


def completion(text="t"):
    return Completion(text=text, finish_reason="stop", num_prompt_tokens=1, num_new_tokens=1)


class Engine:
    """Completes every prompt with its own text, but fails for two words and dies before its third batch if asked to."""

    def __init__(self, *, dies=False):
        self.batches = []
        self.dies = dies
        self.is_closed = False

    def generate(self, prompts, *, sampling):
        if self.dies and len(self.batches) == 2:
            raise ConnectionError("gone")
        assert sampling == SAMPLING
        self.batches.append(len(prompts))
        return [
            Failure(reason="bad", detail="two words") if prompt.text == "word word " else completion(prompt.text)
            for prompt in prompts
        ]

    def close(self):
        self.is_closed = True


def complete(prompts, *, engine, log, config=ENGINE):
    counts = []
    outcomes = complete_prompts(
        prompts, engine=config, sampling=SAMPLING, load=lambda: engine, log=log, report=counts.append
    )
    assert sum(counts) == len(outcomes)
    return outcomes


def test_every_prompt_gets_its_outcome_and_completions_are_kept(tmp_path):
    engine, log = Engine(), CompletionLog(str(tmp_path / "log"))
    outcomes = complete(PROMPTS, engine=engine, log=log)
    assert engine.batches == [4, 4, 2]
    assert outcomes["key 1"] == Failure(reason="bad", detail="two words")
    made = {key: completion(prompt.text) for key, prompt in PROMPTS.items() if key != "key 1"}
    assert {key: outcome for key, outcome in outcomes.items() if key != "key 1"} == made
    assert log.read() == made, "a failure is not kept"


def test_what_was_done_before_an_engine_died_is_not_asked_again(tmp_path):
    log = CompletionLog(str(tmp_path / "log"))
    with pytest.raises(ConnectionError):
        complete(PROMPTS, engine=Engine(dies=True), log=log)
    done = log.read()
    assert len(done) == 8
    engine = Engine()
    rest = {key: prompt for key, prompt in PROMPTS.items() if key not in done}
    assert complete(rest, engine=engine, log=log).keys() == rest.keys()
    assert engine.batches == [2]
    assert len(log.read()) == 9


def test_an_engine_that_schedules_by_itself_gets_more_at_once(tmp_path):
    engine = Engine()
    config = replace(ENGINE, kind="vllm", model="m")
    complete(PROMPTS, engine=engine, log=CompletionLog(str(tmp_path)), config=config)
    assert engine.batches == [10]


@pytest.mark.parametrize("text", ["", "a\nb\u2028c\r\u0085d", "\ud800", "潮\x00", '"}\n{'])
def test_the_log_keeps_any_text(tmp_path, text):
    log = CompletionLog(str(tmp_path / "log"))
    assert log.read() == {}
    log.append({})
    log.append({"a": completion(text), "b": completion("other")})
    log.append({"c": completion(text + "!")})
    assert log.read() == {"a": completion(text), "b": completion("other"), "c": completion(text + "!")}
    assert len(storage.list_files(str(tmp_path / "log"))) == 2


def test_the_log_works_on_other_storage():
    log = CompletionLog("memory://evaluation/log")
    log.append({"a": completion()})
    assert CompletionLog("memory://evaluation/log").read() == {"a": completion()}


def test_an_engine_is_loaded_when_it_is_needed_once_and_closed(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "synth_model.evaluation.completing.load_engine", lambda config: loaded.append(Engine()) or loaded[-1]
    )
    with LoadedEngine(ENGINE):
        pass
    assert loaded == []
    with LoadedEngine(ENGINE) as load:
        assert load() is load()
    assert len(loaded) == 1
    assert loaded[0].is_closed
