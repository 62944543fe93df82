"""The loss of COCONUT's curriculum (Hao et al., arXiv 2412.06769)."""

import torch
import torch.nn.functional as F
from torch import nn

from src.models.kv_cache import DynamicSuffixCache, SinglePass
from src.models.tokenizers import END
from src.sampling.samplers import DETERMINISTIC, Sampling, dropout_hook
from src.training.curriculum import DIGITS, IGNORED, NO_DIGIT
from src.training.losses.base import BackboneLoss

DIGIT_CLASSES = NO_DIGIT + 1


class CoconutLoss(BackboneLoss):
    """Cross-entropy of the text after the thoughts, plus a training-only probe.

    The text: the explicit steps, each followed by a line break, then ``### N`` and the end of text
    (facebookresearch/coconut, dataset.py). It begins with the end-of-thinking token, which is given
    and no target. The loss is the mean over the targets of a batch; its gradient flows through the
    thoughts.

    The probe is one linear map that reads the result digits of step k from thought 2 k (step
    supervision in the manner of SIM-CoT, arXiv 2509.20317); its weight may be 0.

    The contrastive term keeps the thoughts of a batch apart (see ``contrastive_loss``).
    Shapes: B rows, S tokens of a text, K probed steps, D model width.
    """

    default_settings = {"probe": 0.0, "contrastive": 0.0}
    stage_keys = {"thoughts", "hidden_steps"}

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.probe = nn.Linear(model.config.hidden_size, DIGITS * DIGIT_CLASSES)

    def format_row(self, row, stage, speed=None):
        """The prompt, and the text after the thoughts: the explicit steps, then the answer."""
        explicit = [] if stage.hidden_steps < 0 else row["steps"][stage.hidden_steps :]
        text = END + self._format_text(row, explicit)
        return self.model.prompt_prefix + self.model.format_prompt(row["question"]), {"text": text}

    def _format_text(self, row, steps):
        return "\n".join(
            [*steps, self.model.format_answer(row["answer"]) + self.tokenizer.eos_token]
        )

    def forward(self, batch, stage, rng_keys=None):
        """The loss (scalar), and whether each row's text is predicted without a mistake (B,), so
        that greedy decoding yields it. rng_keys (B,): the rows' random keys, for dropout."""
        sampling = training_dropout(stage, self.model_dropout * self.training)
        thoughts, hidden = self.read(batch, "text", stage.thoughts, sampling, rng_keys)
        loss, right = self.text_loss(batch, "text", hidden)
        loss = loss + self.settings["probe"] * self.probe_loss(thoughts, batch.digits)
        if thoughts and self.settings["contrastive"]:
            loss = loss + self.settings["contrastive"] * contrastive_loss(thoughts)
        return loss, right

    def num_positions(self, batch, stage):
        """How many positions of the model a batch takes."""
        return batch.prompts.shape[1] + stage.thoughts + batch.texts["text"].shape[1] - 1

    def solved(self, batch, stage):
        """Whether each problem (B,) is solved greedily, explicit steps included."""
        _, hidden = self.read(batch, "text", stage.thoughts, DETERMINISTIC, None)
        return self.text_loss(batch, "text", hidden)[1]

    def text_loss(self, batch, name, hidden):
        """As ``cross_entropy``, of a text after its first token, from the states (B, S - 1, D)."""
        target = batch.texts[name][:, 1:]  # (B, S - 1)
        return cross_entropy(self.model, hidden, target, batch.num_targets[name])

    def probe_loss(self, thoughts, digits):
        """Cross-entropy of the digits (B, K, DIGITS) of the steps' results."""
        if not digits.numel():
            return zero_loss(self.probe)
        second_thoughts = torch.stack(thoughts[1::2], dim=1)  # (B, K, D)
        logits = self.probe(second_thoughts).float().unflatten(-1, (DIGITS, DIGIT_CLASSES))
        return F.cross_entropy(logits.flatten(0, 2), digits.flatten())

    def read(self, batch, name, num_thoughts, sampling, rng_keys, hidden_states=None):
        """The thoughts, a list of (B, D), and the states (B, S - 1, D) that predict a text.

        hidden_states: a list that receives all layers' states (B, S - 1, D), see Decoder.extend.
        """
        model, thoughts = self.model, []
        cache = DynamicSuffixCache(batch.prompts.device)
        hidden, prompt, hook = read_prompts(model, batch, sampling, rng_keys)
        for t in range(num_thoughts):
            if t:
                here = positions_after(batch, t - 1, 1)
                hidden = model.extend(thoughts[-1][:, None], here, prompt, cache, hook(here))[:, 0]
            thoughts.append(model.to_thought(hidden))  # (B, D)
        x = model.embed(batch.texts[name][:, :-1].clamp(min=0))  # (B, S - 1, D)
        if thoughts:  # the last one is read together with the text
            x = torch.cat((thoughts[-1][:, None].to(x.dtype), x), dim=1)  # (B, S, D)
        here = positions_after(batch, max(0, num_thoughts - 1), x.shape[1])
        hidden = model.extend(x, here, prompt, cache, hook(here), hidden_states)
        first = 1 if thoughts else 0
        if hidden_states is not None:
            hidden_states[:] = [states[:, first:] for states in hidden_states]
        return thoughts, hidden[:, first:]


def contrastive_loss(thoughts):
    """How much a batch's thoughts, T of (B, D), lie in the same direction (scalar).

    The mean over all pairs of max(0, cosine): that of SimCTG (arXiv 2202.06417) for the tokens of a
    text, with margin 1, since at its 0.5 few thoughts are too close; pairs of other questions count
    too.
    """
    x = F.normalize(torch.cat(thoughts).float(), dim=-1)  # (T B, D)
    too_close = (x @ x.T).clamp(min=0)  # (T B, T B)
    pairs = len(x) * (len(x) - 1)
    return (too_close.sum() - too_close.diagonal().sum()) / max(1, pairs)


def training_dropout(stage, model_dropout):
    """The Sampling of a training forward pass: GPT-2's own dropout, or that of the stage."""
    if model_dropout:
        return Sampling("dropout", model_dropout, dropout_embedding=True, dropout_attention=True)
    return Sampling("dropout", stage.dropout)


def read_prompts(model, batch, sampling, rng_keys):
    """The prompts' last states (B, D), their cache, and the dropout hook of positions (B, S)."""
    prompts, lengths = batch.prompts, batch.prompt_lengths

    def hook(positions):  # steps count from the prompt's last token, as in the sampling engine
        return dropout_hook(sampling, rng_keys, positions - (lengths[:, None] - 1))

    positions = torch.arange(prompts.shape[1], device=prompts.device).expand_as(prompts)
    hidden, cache = model.prefill(model.embed(prompts), lengths, hook(positions))
    return hidden, cache, hook


def read_words(model, batch, name, sampling, rng_keys, hidden_states=None):
    """The states (B, S, D) that predict all tokens of a text right after the prompt.

    hidden_states: a list that receives all layers' states (B, S - 1, D) at the text's tokens but
    the last one, see Decoder.extend.
    """
    before, prompt, hook = read_prompts(model, batch, sampling, rng_keys)  # (B, D)
    x = model.embed(batch.texts[name][:, :-1].clamp(min=0))  # (B, S - 1, D)
    here = positions_after(batch, 0, x.shape[1])
    after = model.extend(x, here, prompt, SinglePass(x.device), hook(here), hidden_states)
    return torch.cat((before[:, None], after), dim=1)


def words_loss(model, batch, name, hidden):
    """As ``cross_entropy``, of all tokens of a text, from the states (B, S, D) of read_words."""
    target = batch.texts[name]
    # num_targets leaves out the first token of each row, which is a target here
    return cross_entropy(model, hidden, target, batch.num_targets[name] + len(target))


def cross_entropy(model, hidden, target, num_targets):
    """Cross-entropy of tokens (B, S), summed over the batch and divided by num_targets (scalar),
    and whether each row (B,) is right, from the states (B, S, D) before the tokens."""
    logits = model.lm_head(hidden).float()  # (B, S, V)
    flat = (logits.flatten(0, 1), target.flatten())
    loss = F.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum")
    right = (logits.argmax(-1) == target) | (target == IGNORED)
    return loss / num_targets, right.all(1)


def positions_after(batch, first, count):
    """Positions (B, count) from the first-th after each prompt's end."""
    lengths = batch.prompt_lengths
    return lengths[:, None] + torch.arange(first, first + count, device=lengths.device)


def zero_loss(module):
    """0 that depends on all parameters: data-parallel training needs each of them in every step."""
    return sum(0.0 * p.sum() for p in module.parameters() if p.requires_grad)
