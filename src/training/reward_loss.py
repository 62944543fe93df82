"""The losses of LatentRM (You et al., arXiv 2510.07745, section 4), and its training-only targets."""

import torch
import torch.nn.functional as F
from torch import nn

from src.models.latent_rm import log_prob, thought_mask
from src.training.coconut_loss import CLASSES
from src.training.curriculum import DIGITS


def contrastive(scores, labels, there):
    """- sum_n y_t^(n) log p_t^(n), p_t = softmax over the N trajectories of r_t; mean over steps.

    scores and labels (Q, N, T), there (Q, N, T): which thoughts exist; a step's softmax is over those.
    Returns the loss of each question (Q,), which nothing else in the batch moves. A question whose
    trajectories have all the same labels ranks nothing: 0.
    """
    apart = labels.masked_fill(~there, 0).amax(1) > labels.masked_fill(~there, 1).amin(1)  # (Q, T)
    log_p = scores.masked_fill(~there, torch.finfo(scores.dtype).min).log_softmax(1)
    steps = there.any(1)  # (Q, T)
    losses = -(labels * log_p.masked_fill(~there, 0)).sum(1)  # (Q, T)
    return (losses * steps).sum(1) / steps.sum(1) * apart.any(1)


def bce(scores, labels, there):
    """Binary cross-entropy of every r_t with its label (the paper's ablation), (Q,)."""
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none") * there
    return losses.sum((1, 2)) / there.sum((1, 2))


LOSSES = {"contrastive": contrastive, "bce": bce}


class RewardLoss(nn.Module):
    """A LatentRM, ``model``, with its loss and, for ``digits_weight`` > 0, heads that only training has.

    cumulative: the loss judges r_1 + .. + r_t in place of r_t, which is what best-of-N and beam search
    go by. The heads read from thought 2 k the digits of step k's true result, from the last thought
    those of the true answer and of the trajectory's own answer: who judges must know both.
    answer_weight: weight of the right answer's - log p, for a model that scores answers.
    """

    def __init__(self, model, loss_weights, cumulative=False, digits_weight=0.0, answer_weight=0.0):
        super().__init__()
        self.model, self.loss_weights, self.cumulative = model, loss_weights, cumulative
        self.digits_weight, self.answer_weight = digits_weight, answer_weight
        if digits_weight:
            width = model.config.hidden_size
            self.digit_heads = nn.ModuleDict(
                {name: nn.Linear(width, DIGITS * CLASSES) for name in ("step", "true", "own")}
            )

    def forward(
        self, input_ids, attention_mask, latent_embeds, latent_lengths, labels, answer_ids, gold_ids,
        digits, corrects, predictions,
    ):  # fmt: skip
        """{"loss": scalar, "scores": (Q, N)} for labels (Q, N, T); the scores are the trajectories' sums.

        answer_ids (Q, N, A) are the trajectories' own, gold_ids (Q, A) the right ones. digits: {"step":
        (Q, T // 2, 3), "true": (Q, 3), "own": (Q, N, 3)} or None. corrects and predictions (Q, N) go
        to the metrics.
        """
        answers = None
        if (
            self.answer_weight
        ):  # in training the right answer is learned, else the own one is scored
            gold = gold_ids[:, None].expand(-1, latent_embeds.shape[1], -1)
            answers = gold if self.training else answer_ids
        pool = (input_ids, attention_mask, latent_embeds, latent_lengths)
        hidden, logits = self.model.read(*pool, answers)
        there = thought_mask(latent_lengths, hidden.shape[2])  # (Q, N, T)
        scores = self.model.classify(hidden).float() * there
        judged = scores.cumsum(-1) if self.cumulative else scores
        parts = {name: LOSSES[name](judged, labels, there).mean() for name in self.loss_weights}
        loss = sum(self.loss_weights[name] * part for name, part in parts.items())
        if self.digits_weight:
            loss = loss + self.digits_weight * self._digits_loss(hidden, digits)
        totals = scores.sum(-1)  # (Q, N)
        if self.answer_weight:
            said = log_prob(logits, answers)  # (Q, N)
            loss = loss - self.answer_weight * said.mean() * self.training
            totals = totals + said
        return {"loss": loss, "scores": totals}

    def _digits_loss(self, hidden, digits):
        last, members = hidden[:, :, -1], hidden.shape[1]

        def loss(name, states, target):  # states (Q, N, ..., W), target (Q, N, ..., 3)
            logits = self.digit_heads[name](states).float().unflatten(-1, (DIGITS, CLASSES))
            return F.cross_entropy(logits.flatten(0, -2), target.flatten())

        def each(target):  # the same for all trajectories of a question
            return target[:, None].expand(-1, members, *target.shape[1:])

        return (
            loss("step", hidden[:, :, 1::2], each(digits["step"]))
            + loss("true", last, each(digits["true"]))
            + loss("own", last, digits["own"])
        )
