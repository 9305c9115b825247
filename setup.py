"""Packaging. Beam workers install this package with ``--setup_file ./setup.py``, at every start of a worker: what
stands in ``install_requires`` is therefore only what a worker of any pipeline needs, and the model stacks are extras.
"""

from setuptools import find_packages, setup

# Near-duplicates and language identification; the first brings scipy, which no other worker needs.
FILTERS = ["datasketch", "py3langid"]
ADAPTERS = ["peft"]
ENDPOINT = ["openai"]
S3 = ["s3fs"]
TRAIN = ["accelerate", "filelock>=3.10", "gguf", "psutil", "safetensors", "torch==2.13.0"]
EVALUATE = ["lm-eval"]
EVALUATION = ["rouge-score", "sacrebleu", "scipy"]  # of synthesizers
TENSORBOARD = ["tensorboard"]
WANDB = ["wandb"]
TEST = [
    *FILTERS,
    *ADAPTERS,
    *ENDPOINT,
    *S3,
    *EVALUATE,
    *EVALUATION,
    *TENSORBOARD,
    *WANDB,
    "hypothesis",
    "moto[server]",  # an S3 server of one's own
    "mypy",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "types-PyYAML",
]

setup(
    name="instruction-pretraining",
    version="0.1.0",
    description="Instruction Pre-Training: synthesize instruction-response pairs from raw text and pre-train on them",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(
        include=[
            f"{name}{suffix}"
            for name in ("contracts", "templates", "synth_model", "beam_pipelines", "trainer")
            for suffix in ("", ".*")
        ]
    ),
    package_data={
        "templates": ["bank/*.yaml"],
        "synth_model": ["prompts/*.yaml", "task_datasets/*.yaml", "evaluation/*.jinja", "tuning/*.jinja"],
        "beam_pipelines": ["example_data/*.jsonl", "mining_bank/*.yaml"],
        "trainer": ["model_card.md.jinja", "run_page_assets/*"],
    },
    install_requires=[
        "apache-beam==2.77.0",
        "fsspec",
        "jinja2",  # chat templates, pages, model cards
        "jsonargparse[signatures]",
        "numpy",
        "pyarrow",
        "pyyaml",
        "rich",
        "sentencepiece",
        "sentencex",
        "tokenizers",
        "transformers",
        "zstandard",
    ],
    extras_require={
        "transformers": ["psutil", "safetensors", "torch==2.13.0"],
        "train": TRAIN,
        "evaluate": EVALUATE,
        "evaluation": EVALUATION,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "liger": ["liger-kernel>=0.8.5"],
        "adapters": ADAPTERS,
        "endpoint": ENDPOINT,
        "filters": FILTERS,
        "openvino": ["openvino-genai"],
        "s3": S3,
        "gcs": ["gcsfs"],
        "vllm": ["vllm"],
        "test": TEST,
        "dev": [*TRAIN, *TEST],
    },
)
