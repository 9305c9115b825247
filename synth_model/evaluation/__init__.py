"""How good a synthesizer is: response accuracy and pair quality against gold pairs, on seen and unseen datasets.

`python -m synth_model evaluate` runs it; `synth_model.evaluation.config` says what is compared with what.

Source: Cheng et al. 2024 (arXiv 2406.14491), section 5.1, on the tuned synthesizer.
"""
