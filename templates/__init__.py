"""Templates of pre-training texts: a chain of texts with their instruction-response pairs becomes one training text.

The wordings are data (``bank/*.yaml``), rendering is one function. The word *template* has nothing to do with job
templates of a pipeline runner here.
"""

from templates.bank import bank_sha256
from templates.config import FamilyWeights, TemplateConfig
from templates.rendering import render_chain, render_document, render_instruction

__all__ = [
    "FamilyWeights",
    "TemplateConfig",
    "bank_sha256",
    "render_chain",
    "render_document",
    "render_instruction",
]
