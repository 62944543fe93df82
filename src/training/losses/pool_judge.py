"""The loss of a PoolJudge: the right answer among the candidates of a question's pool."""

import torch
from torch import nn

from src.models.candidates import Candidates, read_candidates
from src.sampling.trajectories import pad_right


class JudgeLoss(nn.Module):
    """A PoolJudge, ``model``, with its loss. The generator is read, never trained or saved."""

    def __init__(self, model, generator):
        super().__init__()
        self.model, self._generator = model, [generator]  # in a list it is no submodule

    def forward(
        self, prompts, thoughts, num_thoughts, candidates, corrects, predictions=None, step=0
    ):
        """{"loss": scalar, "scores": (Q, K)} of a batch of ``collate_candidates``.

        loss: - log of the share that right answers have in the softmax over the candidates, the
        mean over questions with right and wrong ones. predictions and step are the Trainer's.
        """
        generator = self._generator[0].to(corrects.device)
        candidates = Candidates([], **candidates)
        ids, lengths = (x.to(corrects.device) for x in pad_right(prompts, 0))  # (Q, L), (Q,)
        with torch.no_grad():
            prefix = generator.read_prompts(ids, lengths)
        reading = read_candidates(generator, prefix, thoughts, num_thoughts, candidates)
        scores = self.model(reading, candidates)  # (Q, K)
        wrong = candidates.exists & ~corrects
        mixed = corrects.any(1) & wrong.any(1)  # (Q,)
        of_right = scores.masked_fill(~corrects, float("-inf"))[mixed].logsumexp(1)
        losses = scores[mixed].logsumexp(1) - of_right
        return {"loss": losses.sum() / mixed.sum().clamp(min=1), "scores": scores}
