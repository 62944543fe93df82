"""The losses of LatentRM (You et al., arXiv 2510.07745, section 4) and its training-only targets.

Shapes: Q questions, N trajectories of each, T thoughts, D width, A answer tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from src.sampling import rng
from src.sampling.trajectories import thought_mask
from src.training.curriculum import DIGITS
from src.training.losses.coconut import DIGIT_CLASSES
from src.training.losses.order_preference import (
    NUM_CORRUPTIONS,
    corrupted_orders,
    mean_log_sigmoid,
    order_preference,
)


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
    which best-of-N and beam search choose, not r_t. The reward of an answer that the model reads is
    judged as that of one more thought, whose label is the outcome. answer_weight: weight of
    - log p(right answer), for a model that scores answers. order_weight: weight of the order
    preference of the thoughts, whose random numbers begin with ``seed``. The digit heads read from
    thought 2 k the digits of step k's true result, from the last thought those of the true answer
    ("true") and of the trajectory's answer ("own"): to judge a trajectory, the model must know
    both.
    """

    def __init__(
        self, model, loss_weights, cumulative=False, digits_weight=0.0, answer_weight=0.0,
        order_weight=0.0, seed=0,
    ):  # fmt: skip
        super().__init__()
        self.model, self.loss_weights, self.cumulative = model, loss_weights, cumulative
        self.digits_weight, self.answer_weight = digits_weight, answer_weight
        self.order_weight, self.seed = order_weight, seed
        if digits_weight:
            width = model.config.hidden_size
            self.digit_heads = nn.ModuleDict(
                {name: nn.Linear(width, DIGITS * DIGIT_CLASSES) for name in ("step", "true", "own")}
            )

    def forward(
        self, input_ids, attention_mask, latent_embeds, latent_lengths, labels, answer_ids,
        gold_ids, digits, corrects, predictions, question_ids=None, step=0,
    ):  # fmt: skip
        """{"loss": scalar, "scores": (Q, N), the sums of rewards} of a batch of ``collate``.

        step: number of the optimizer step, which keys random numbers with question_ids (Q,).
        """
        if self.answer_weight and self.training:  # learn the right answer, not the sampled one
            answer_ids = gold_ids[:, None].expand(-1, latent_embeds.shape[1], -1)  # (Q, N, A)
        pool = (input_ids, attention_mask, latent_embeds, latent_lengths)
        hidden, answer_rewards = self.model.read_pool(*pool, answer_ids)
        mask = thought_mask(latent_lengths, hidden.shape[2])  # (Q, N, T)
        rewards = self.model.classify(hidden) * mask  # (Q, N, T)
        judged = (rewards, labels, mask)
        if self.model.reads_answer:
            judged = _with_answer(*judged, answer_rewards, corrects)  # (Q, N, T + 1) each
        loss = self._ranking_loss(*judged)
        if self.digits_weight:
            loss = loss + self.digits_weight * self._digits_loss(hidden, digits)
        if self.order_weight and self.training:
            keys = self._keys(question_ids, latent_embeds.shape[1], step)
            loss = loss + self.order_weight * self._order_loss(pool, rewards, corrects, keys)
        if self.answer_weight:
            loss = loss - self.answer_weight * answer_rewards.mean() * self.training
        scores = rewards.sum(-1)  # (Q, N)
        if answer_rewards is not None:
            scores = scores + answer_rewards
        return {"loss": loss, "scores": scores}

    def _judged(self, rewards):
        return rewards.cumsum(-1) if self.cumulative else rewards

    def _ranking_loss(self, rewards, labels, mask):
        judged = self._judged(rewards)
        return sum(
            weight * REWARD_LOSSES[name](judged, labels, mask).mean()
            for name, weight in self.loss_weights.items()
        )

    def _keys(self, question_ids, num_trajectories, step):
        """Keys (Q, N) of src.sampling.rng: of a trajectory in a step, whatever its batch."""
        samples = torch.arange(num_trajectories, device=question_ids.device)
        keys = rng.row_keys(self.seed, question_ids[:, None], samples, samples.device)
        return rng.fold(keys, step)

    def _order_loss(self, pool, rewards, corrects, keys):
        """The order preference of a batch; rewards (Q, N, T) are those in the own order."""
        input_ids, attention_mask, thoughts, num_thoughts = pool
        steps = thoughts.shape[2]
        orders, exists = corrupted_orders(keys, num_thoughts, steps)  # (Q, N, K, T), (Q, N, K)
        corrupted = thoughts[:, :, None].take_along_dim(orders[..., None], dim=3)
        again = num_thoughts.repeat_interleave(NUM_CORRUPTIONS, dim=1)  # (Q, N * K)
        corrupted = corrupted.flatten(1, 2)  # (Q, N * K, T, D)
        hidden, _ = self.model.read_states(input_ids, attention_mask, corrupted, again)
        others = self.model.classify(hidden).unflatten(1, (-1, NUM_CORRUPTIONS))  # (Q, N, K, T)
        mask = thought_mask(num_thoughts, steps)  # (Q, N, T)
        own = mean_log_sigmoid(self._judged(rewards), mask)
        others = mean_log_sigmoid(self._judged(others), mask[:, :, None])
        return order_preference(own, others, exists, corrects).mean()

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


def _with_answer(rewards, labels, mask, answer_rewards, corrects):
    """Rewards, labels and mask (Q, N, T + 1) of thoughts and, last, of the answer (Q, N)."""
    return (
        torch.cat((rewards, answer_rewards[..., None]), dim=-1),
        torch.cat((labels, corrects[..., None].to(labels.dtype)), dim=-1),
        torch.cat((mask, torch.ones_like(mask[..., :1])), dim=-1),
    )
