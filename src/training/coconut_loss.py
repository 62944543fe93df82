"""The loss of COCONUT's curriculum, with step supervision of the thoughts for small models."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from src.models.kv_cache import DynamicSuffixCache
from src.models.tokenizers import END
from src.sampling.samplers import Sampling, dropout_hook
from src.training.curriculum import DIGITS, NO_DIGIT

CLASSES = NO_DIGIT + 1


class CoconutLoss(nn.Module):
    """Cross-entropy of the text after the thoughts (arXiv 2412.06769), plus a training-only probe.

    The probe is one linear map that reads the result digits of step k from thought 2 k (step
    supervision in the manner of SIM-CoT, arXiv 2509.20317); its weight may be 0.
    """

    weights = {"probe": 0.0}
    stage_keys = {"thoughts", "hidden_steps"}

    def __init__(self, model, weights, eos):
        """weights: of the parts of the loss beside the text's; eos: the end-of-text token."""
        super().__init__()
        self.model, self.w, self.eos = model, weights, eos
        self.probe = nn.Linear(model.config.hidden_size, DIGITS * CLASSES)

    def parts(self, row, stage, speed=None):
        """The prompt, and the text after the thoughts: the steps that are left, then the answer."""
        left = [] if stage.hidden_steps < 0 else row["steps"][stage.hidden_steps :]
        return self.model.format_prompt(row["question"]), {"text": self._text(row, left)}

    def _text(self, row, steps):
        return END + " ".join([*steps, self.model.format_answer(row["answer"]) + self.eos])

    def forward(self, batch, stage, keys=None):
        """Loss (scalar), and right (B,): whether each row's text is predicted without a mistake.

        With the whole text predicted right token by token, greedy decoding yields just that text.
        Dropout acts where sampling drops, under masks of the rows' random keys (B,).
        """
        sampling = Sampling("dropout", stage.dropout)
        thoughts, hidden = self.read(batch, "text", stage.thoughts, sampling, keys)
        loss, right = self.text_loss(batch, "text", hidden)
        return loss + self.w["probe"] * self.probe_loss(thoughts, batch.digits), right

    def positions(self, batch, stage):
        """Positions of the model that a batch takes."""
        return batch.prompt.shape[1] + stage.thoughts + batch.texts["text"].shape[1] - 1

    def solved(self, batch, stage):
        """Whether each problem (B,) is solved greedily; explicit steps that are left must be right too."""
        return self(batch, replace(stage, dropout=0.0))[1]

    def text_loss(self, batch, name, hidden):
        """Cross-entropy of a text, divided over the whole batch, from the hidden states (B, S - 1, D)
        before its tokens, and whether each row (B,) is all right."""
        logits = self.model.lm_head(hidden).float()  # (B, S - 1, V)
        target = batch.texts[name][:, 1:]  # (B, S - 1)
        flat = (logits.flatten(0, 1), target.flatten())
        loss = F.cross_entropy(*flat, ignore_index=-100, reduction="sum") / batch.n_targets[name]
        return loss, ((logits.argmax(-1) == target) | (target == -100)).all(1)

    def probe_loss(self, thoughts, digits):
        """Cross-entropy of the digits (B, K, 3) of the steps' results."""
        if not digits.numel():
            return idle(self.probe)
        read = torch.stack(thoughts[1::2], dim=1)  # (B, K, D)
        logits = self.probe(read).float().unflatten(-1, (DIGITS, CLASSES))  # (B, K, 3, 11)
        return F.cross_entropy(logits.flatten(0, 2), digits.flatten())

    def read(self, batch, name, thoughts, sampling, keys, layers=None):
        """The thoughts, each (B, D), and the hidden states (B, S - 1, D) that predict a text. layers: a list
        that receives what each block gives for the text."""
        model, lengths = self.model, batch.lengths

        def places(first, count):  # (B, count) positions, counted from the prompt's end
            return lengths[:, None] + torch.arange(first, first + count, device=lengths.device)

        def hook(positions):
            steps = positions - (lengths[:, None] - 1)
            return dropout_hook(sampling, keys, steps)

        whole = torch.arange(batch.prompt.shape[1], device=lengths.device).expand_as(batch.prompt)
        hidden, prompt = model.prefill(model.embed(batch.prompt), lengths, hook(whole))
        own, states = DynamicSuffixCache(), []
        for t in range(thoughts):
            if t:
                here = places(t - 1, 1)
                hidden = model.extend(states[-1][:, None], here, prompt, own, hook(here))[:, 0]
            states.append(model.to_thought(hidden))  # (B, D)
        x = model.embed(batch.texts[name][:, :-1].clamp(min=0))  # (B, S - 1, D)
        if states:
            x = torch.cat((states[-1][:, None].to(x.dtype), x), dim=1)  # (B, S, D)
        here = places(max(0, thoughts - 1), x.shape[1])
        hidden = model.extend(x, here, prompt, own, hook(here), layers)
        first = 1 if states else 0
        if layers is not None:
            layers[:] = [layer[:, first:] for layer in layers]
        return states, hidden[:, first:]


def idle(module):
    """0, by way of all parameters: data-parallel training asks that they take part in every step."""
    return sum(0.0 * p.sum() for p in module.parameters() if p.requires_grad)
