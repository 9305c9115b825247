"""Tuning an instruction synthesizer: what `synth_model.finetune` is made of."""
