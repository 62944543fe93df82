"""Chain of thought in words: the plain language models that COCONUT and CoLaR start from.

They are trained like backbones (src.train_backbone) and saved as plain GPT-2 or LLaMA checkpoints,
without the special tokens of latent reasoning.
"""

from transformers import GPT2LMHeadModel, LlamaForCausalLM

from src.models.gpt2 import GPT2Decoder
from src.models.llama import LlamaDecoder


class CoT:
    """Mixin of the two below. ``backbone``: the backbone whose prompt and answer the texts have."""

    special_tokens = {}
    backbone = None

    def encode(self, tokenizer, questions):
        """The prompts of questions: a list of token ids each."""
        prompts = [self.backbone.format_cot(question, [], "")[0] for question in questions]
        return tokenizer(prompts, add_special_tokens=False)["input_ids"]


class GPT2CoT(CoT, GPT2Decoder, GPT2LMHeadModel):
    """Layout: as GPT2LMHeadModel."""


class LlamaCoT(CoT, LlamaDecoder, LlamaForCausalLM):
    """Layout: as LlamaForCausalLM."""


COT_MODELS = {cls.config_class.model_type: cls for cls in (GPT2CoT, LlamaCoT)}
