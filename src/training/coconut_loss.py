"""The loss of COCONUT's curriculum, with step supervision of the thoughts for small models."""

import torch
import torch.nn.functional as F
from torch import nn

from src.models import gpt2
from src.sampling.samplers import Sampling, dropout_hook
from src.training.curriculum import DIGITS, NO_DIGIT

CLASSES = NO_DIGIT + 1


class CoconutLoss(nn.Module):
    """Cross-entropy of the text after the thoughts, plus a training-only probe.

    The probe is one linear map that reads the result digits of step k from thought 2 k (step
    supervision in the manner of SIM-CoT, arXiv 2509.20317); its weight may be 0.
    """

    def __init__(self, model, probe_weight):
        super().__init__()
        self.model, self.probe_weight = model, probe_weight
        self.probe = nn.Linear(model.config.n_embd, DIGITS * CLASSES)

    def forward(self, batch, thoughts, dropout=0.0, keys=None):
        """Loss (scalar), and right (B,): whether each row's text is predicted without a mistake.

        With the whole text predicted right token by token, greedy decoding yields just that text.
        Dropout acts where sampling drops, under masks of the rows' random keys (B,).
        """
        states, hidden = self._read(batch, thoughts, Sampling("dropout", dropout), keys)
        logits = self.model.lm_head(hidden).float()  # (B, S - 1, V)
        target = batch.text[:, 1:]  # (B, S - 1)
        flat = (logits.flatten(0, 1), target.flatten())
        loss = F.cross_entropy(*flat, ignore_index=-100, reduction="sum") / batch.n_targets
        right = ((logits.argmax(-1) == target) | (target == -100)).all(1)
        return loss + self.probe_weight * self._probe_loss(states, batch.digits), right

    def _probe_loss(self, states, digits):
        if not digits.numel():  # all parameters take part in every step: data-parallel training asks it
            return 0.0 * self.probe.weight.sum() + 0.0 * self.probe.bias.sum()
        read = torch.stack(states[1::2], dim=1)  # (B, K, D)
        logits = self.probe(read).float().unflatten(-1, (DIGITS, CLASSES))  # (B, K, 3, 11)
        return F.cross_entropy(logits.flatten(0, 2), digits.flatten())

    def _read(self, batch, thoughts, sampling, keys):
        """The thoughts, each (B, D), and the hidden states (B, S - 1, D) that predict the text."""
        model, lengths = self.model, batch.lengths

        def places(first, count):  # (B, count) positions, counted from the prompt's end
            return lengths[:, None] + torch.arange(first, first + count, device=lengths.device)

        def hook(positions):
            steps = positions - (lengths[:, None] - 1)
            return dropout_hook(sampling, keys, steps)

        whole = torch.arange(batch.prompt.shape[1], device=lengths.device).expand_as(batch.prompt)
        hidden, prompt = model.prefill(model.embed(batch.prompt), lengths, hook(whole))
        own, states = gpt2.GrowingCache(), []
        for t in range(thoughts):
            if t:
                here = places(t - 1, 1)
                hidden = model.extend(states[-1][:, None], here, prompt, own, hook(here))[:, 0]
            states.append(model.to_thought(hidden))  # (B, D)
        x = model.embed(batch.text[:, :-1].clamp(min=0))  # (B, S - 1, D)
        if states:
            x = torch.cat((states[-1][:, None].to(x.dtype), x), dim=1)  # (B, S, D)
        here = places(max(0, thoughts - 1), x.shape[1])
        hidden = model.extend(x, here, prompt, own, hook(here))
        return states, hidden[:, 1:] if states else hidden
