"""What the submitting process finds out about an engine before a run: whether it can work.

Cost: the tokenizer's load.
"""

from __future__ import annotations

from beam_pipelines.command_line import LOCAL_RUNNERS
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.engines.endpoint_engine import EndpointEngine
from synth_model.engines.model_loading import find_adapter, resolve_device
from synth_model.generation import ChatMessage, Prompt


def check_engine(engine: EngineConfig, *, runner: str, prompt: Prompt | None = None) -> None:
    """With a local runner the worker is this machine, so a missing device or model can be told at once.

    Args:
        engine: Which model runs where.
        runner: Beam's runner; with any but a local one nothing is checked.
        prompt: A prompt to encode, such as one that needs the model's chat template. An endpoint is sent it.

    Raises:
        ValueError: The device, the model, the adapter or the endpoint is not there, or it cannot take the prompt.
    """
    if engine.kind == "fake" or runner not in LOCAL_RUNNERS:
        return
    if engine.kind == "endpoint":
        endpoint = EndpointEngine(engine)
        try:
            endpoint.check(prompt or Prompt(messages=(ChatMessage(role="user", content="Hello"),)))
        finally:
            endpoint.close()
        return
    if engine.device == "cuda":
        resolve_device(engine.device)
    if engine.adapter:
        find_adapter(engine.adapter)
    load_tokenizer(engine).count([] if prompt is None else [prompt])
