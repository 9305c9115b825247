"""The instruction synthesizer: wire format and chat prompts, chain state, engines; later its tuning and evaluation.

Torch and transformers are imported inside an engine's load, so that submitting a job needs no model stack.
"""
