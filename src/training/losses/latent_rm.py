"""The losses of LatentRM (You et al., arXiv 2510.07745, section 4) and its training-only targets.

Shapes: Q questions, N trajectories of each, T thoughts, D width, A answer tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from src.sampling.trajectories import thought_mask
from src.training.curriculum import DIGITS
from src.training.losses.coconut import DIGIT_CLASSES


def contrastive(scores, labels, mask):
    """- sum_n y_t^(n) log p_t^(n), p_t = softmax over n of r_t^(n) (You et al., section 4).

    scores r_t, labels y_t and mask, which thoughts exist, all (Q, N, T). The softmax is over
    existing thoughts. Returns (Q,), the mean over t (the paper's sum, divided by T); 0 where all
    trajectories of a question have the same labels, since nothing is ranked.
    """
    missing = ~mask
    highest, lowest = labels.masked_fill(missing, 0).amax(1), labels.masked_fill(missing, 1).amin(1)
    log_p = scores.masked_fill(missing, torch.finfo(scores.dtype).min).log_softmax(1)
    losses = -(labels * log_p.masked_fill(missing, 0)).sum(1)  # (Q, T)
    steps = mask.any(1)  # (Q, T)
    return (losses * steps).sum(1) / steps.sum(1) * (highest > lowest).any(1)


def bce(scores, labels, mask):
    """Binary cross-entropy of each r_t with its label (You et al., ablation); shapes as above."""
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none") * mask
    return losses.sum((1, 2)) / mask.sum((1, 2))


REWARD_LOSSES = {"contrastive": contrastive, "bce": bce}


class RewardLoss(nn.Module):
    """A LatentRM, ``model``, with its loss, and with ``digits_weight`` > 0 training-only heads.

    loss_weights: {name in REWARD_LOSSES: weight}. cumulative: the loss judges r_1 + .. + r_t, by
    which best-of-N and beam search choose, not r_t. answer_weight: weight of - log p(right answer),
    for a model that scores answers. The digit heads read from thought 2 k the digits of step k's
    true result, from the last thought those of the true answer ("true") and of the trajectory's
    answer ("own"): to judge a trajectory, the model must know both.
    """

    def __init__(self, model, loss_weights, cumulative=False, digits_weight=0.0, answer_weight=0.0):
        super().__init__()
        self.model, self.loss_weights, self.cumulative = model, loss_weights, cumulative
        self.digits_weight, self.answer_weight = digits_weight, answer_weight
        if digits_weight:
            width = model.config.hidden_size
            self.digit_heads = nn.ModuleDict(
                {name: nn.Linear(width, DIGITS * DIGIT_CLASSES) for name in ("step", "true", "own")}
            )

    def forward(
        self, input_ids, attention_mask, latent_embeds, latent_lengths, labels, answer_ids,
        gold_ids, digits, corrects, predictions,
    ):  # fmt: skip
        """{"loss": scalar, "scores": (Q, N), the sums of rewards} of a batch of ``collate``."""
        answers = None
        if self.answer_weight:  # learn the right answer, but score the sampled one
            golds = gold_ids[:, None].expand(-1, latent_embeds.shape[1], -1)  # (Q, N, A)
            answers = golds if self.training else answer_ids
        pool = (input_ids, attention_mask, latent_embeds, latent_lengths)
        hidden, states = self.model.read_states(*pool, answers)
        mask = thought_mask(latent_lengths, hidden.shape[2])  # (Q, N, T)
        rewards = self.model.classify(hidden) * mask  # (Q, N, T)
        loss = self._ranking_loss(rewards, labels, mask)
        if self.digits_weight:
            loss = loss + self.digits_weight * self._digits_loss(hidden, digits)
        scores = rewards.sum(-1)  # (Q, N)
        if self.answer_weight:
            answer_rewards = self.model.answer_log_probs(states, answers)  # (Q, N)
            loss = loss - self.answer_weight * answer_rewards.mean() * self.training
            scores = scores + answer_rewards
        return {"loss": loss, "scores": scores}

    def _ranking_loss(self, rewards, labels, mask):
        judged = rewards.cumsum(-1) if self.cumulative else rewards
        return sum(
            weight * REWARD_LOSSES[name](judged, labels, mask).mean()
            for name, weight in self.loss_weights.items()
        )

    def _digits_loss(self, hidden, digits):
        """Cross-entropy of the digits of results and answers, from the states (Q, N, T, D)."""
        last, num_trajectories = hidden[:, :, -1], hidden.shape[1]

        def loss(name, states, target):  # states (Q, N, ..., D), target (Q, N, ..., DIGITS)
            logits = self.digit_heads[name](states).float().unflatten(-1, (DIGITS, DIGIT_CLASSES))
            return F.cross_entropy(logits.flatten(0, -2), target.flatten())

        def for_each(target):  # the same for all trajectories of a question
            return target[:, None].expand(-1, num_trajectories, *target.shape[1:])

        return (
            loss("step", hidden[:, :, 1::2], for_each(digits["step"]))
            + loss("true", last, for_each(digits["true"]))
            + loss("own", last, digits["own"])
        )
