"""Accelerate pre-trainer: reads packed shards through the contract, trains, exports a Hugging Face model."""
