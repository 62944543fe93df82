"""The loss of a chain of thought in words, with which COCONUT and CoLaR start."""

import torch

from src.training.curriculum import IGNORED
from src.training.losses.base import BackboneLoss
from src.training.losses.coconut import read_words, training_dropout, words_loss

COT = "cot"  # its model_type in a recipe
_EXTRA_TOKENS = 32  # that a greedy text may be longer than the longest right one of its batch


class CotLoss(BackboneLoss):
    """Cross-entropy of the steps and the answer after the question; no thoughts, no markers.

    The texts are those of ``model.backbone.format_cot``. Shapes: B rows, S tokens of the text.
    """

    def format_row(self, row, stage, speed=None):
        """The prompt, and the text after it: the steps, then the answer."""
        backbone = self.model.backbone
        prompt, text = backbone.format_cot(row["question"], row["steps"], row["answer"])
        return prompt, {"text": text + self.tokenizer.eos_token}

    def num_positions(self, batch, stage):
        """How many positions of the model a batch takes."""
        return batch.prompts.shape[1] + batch.texts["text"].shape[1] - 1

    def forward(self, batch, stage, rng_keys=None):
        """The loss (scalar), and whether each row's text is predicted without a mistake (B,).

        rng_keys (B,): the rows' random keys, for dropout.
        """
        sampling = training_dropout(stage, self.model_dropout * self.training)
        hidden = read_words(self.model, batch, "text", sampling, rng_keys)  # (B, S, D)
        return words_loss(self.model, batch, "text", hidden)

    @torch.no_grad()
    def solved(self, batch, stage):
        """Whether each problem (B,) is solved greedily: the model writes its own steps."""
        prompts, text = batch.prompts, batch.texts["text"]
        places = torch.arange(prompts.shape[1], device=prompts.device)
        real = places >= (prompts.shape[1] - batch.prompt_lengths[:, None])  # padded on the left
        shift = prompts.shape[1] - batch.prompt_lengths[:, None]
        source = (places - shift).clamp(min=0)
        written = self.model.generate(
            prompts.gather(1, source), attention_mask=real.long(), do_sample=False,
            max_new_tokens=text.shape[1] + _EXTRA_TOKENS, pad_token_id=self.tokenizer.eos_token_id,
        )  # fmt: skip
        answers = self._answers(written[:, prompts.shape[1] :])
        golds = self._answers(text.masked_fill(text == IGNORED, self.tokenizer.eos_token_id))
        pairs = zip(answers, golds, strict=True)
        return torch.tensor([answer is not None and answer == gold for answer, gold in pairs])

    def _answers(self, ids):
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [self.model.backbone.parse_answer(text) for text in texts]
