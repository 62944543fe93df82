"""Backbone times architecture: the classes that can be loaded and trained.

A backbone (src/models/coconut.py, codi.py, colar.py) says how a model is prompted, thinks and
answers. An architecture (src/models/gpt2.py, llama.py) is a language model with the forward pass of
src/models/decoder.py. A model's class has both as bases.
"""

from functools import cache

from src.models.gpt2 import GPT2LanguageModel
from src.models.llama import LlamaLanguageModel

ARCHITECTURES = {"gpt2": GPT2LanguageModel, "llama": LlamaLanguageModel}
_PREFIXES = {"gpt2": "GPT2", "llama": "Llama"}


def class_name(backbone, architecture):
    """The name of a class, which save_pretrained writes into config.json as ``architectures``.

    With the backbone's first architecture it is the backbone's own, as in the published
    checkpoints; LlamaCODI is CODI on LLaMA. A backbone may have ``class_names`` of its own.
    """
    if names := getattr(backbone, "class_names", None):
        return names[architecture]
    is_first = architecture == backbone.architectures[0]
    return backbone.__name__ if is_first else _PREFIXES[architecture] + backbone.__name__


@cache
def combine(backbone, architecture):
    """The class of a backbone on an architecture, a key of ARCHITECTURES.

    Raises ValueError where the backbone does not exist for it.
    """
    if architecture not in backbone.architectures:
        known = " and ".join(backbone.architectures)
        raise ValueError(f"{backbone.__name__} exists for {known}, not for {architecture}")
    bases = (backbone, ARCHITECTURES[architecture])
    about = {"__module__": backbone.__module__, "__doc__": backbone.__doc__}
    return type(class_name(backbone, architecture), bases, about)
