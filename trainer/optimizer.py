"""AdamW with its parameter groups.

Weight decay pulls weight matrices towards zero. It is left off for norms and biases, whose size has a meaning of its
own, and for embeddings, most of whose rows get no gradient in most steps and would only fade.

Cost: two float32 values a parameter; the fused implementation does the update in one pass.

Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
"""

from __future__ import annotations

import torch

from trainer.config import OptimizerConfig


def create_optimizer(model: torch.nn.Module, *, optimizer: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of a model that are trained; the learning rate is set anew at every step."""
    # A tied output layer is the same parameter and so counts as the embedding that it is.
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed: list[torch.nn.Parameter] = []
    not_decayed: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_decayed = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if is_decayed else not_decayed).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": optimizer.weight_decay},
            {"params": not_decayed, "weight_decay": 0.0},
        ],
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
        fused=True,
    )
