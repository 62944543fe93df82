"""Chain of thought in words: the plain language models that COCONUT and CoLaR start from.

They are trained like backbones (src.train_backbone) and saved as plain GPT-2 or LLaMA checkpoints,
without the special tokens of latent reasoning.
"""


class CoT:
    """Combined with an architecture as a backbone is (src/models/architectures.py).

    ``backbone``: the backbone whose prompt and answer the texts have.
    """

    architectures = ("gpt2", "llama")
    class_names = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}  # in config.json
    special_tokens = {}
    backbone = None

    def encode(self, tokenizer, questions):
        """The prompts of questions: a list of token ids each."""
        prompts = [self.backbone.format_cot(question, [], "")[0] for question in questions]
        return tokenizer(prompts, add_special_tokens=False)["input_ids"]
