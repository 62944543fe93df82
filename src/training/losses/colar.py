"""CoLaR's compressed-embedding prediction (Tan et al., arXiv 2505.16552), its supervised stage."""

import torch
import torch.nn.functional as F
from torch import nn

from src.models.kv_cache import SinglePass
from src.models.latent_rm import insert_after_thoughts
from src.sampling import rng
from src.sampling.engine import sample
from src.sampling.trajectories import Request
from src.training.curriculum import IGNORED
from src.training.losses.base import BackboneLoss
from src.training.losses.coconut import positions_after, read_prompts, training_dropout

_SAMPLE_SITE = -16  # of the random numbers of the sampled thoughts


class ColarLoss(BackboneLoss):
    """The embeddings of r tokens of the steps, a group, are merged into one input.

    A group of n <= r tokens becomes their sum / sqrt(n). token: weight of the cross-entropy of one
    token drawn from the next group, of the end token after the last one, and of the answer. latent:
    weight of the squared error of a sample from N(mean, std) against the next merged embedding, or
    the end token's after the last one, in units of config.latent_embedding_std. The latent head
    gives the mean; ``log_std``, which reads the same features, is needed in training only. Both
    terms are means over the batch's tokens (xiaomi-research/colar, src/models/colar.py).
    Shapes: B rows, K groups, r tokens of a group, S tokens of the text, D model width.
    """

    default_settings = {"token": 1.0, "latent": 1.0}
    stage_keys = {"speeds"}

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        mean = model.lt_head.mean
        self.log_std = nn.Linear(mean.in_features, mean.out_features)

    def format_row(self, row, stage, speed):
        """The prompt, the steps (without any: the answer), and the text after them."""
        prompt = self.model.prompt_prefix + self.model.format_prompt(row["question"], speed)
        end = self.model.special_tokens["end_latent_token_id"]
        text = end + self.model.format_answer(row["answer"]) + self.tokenizer.eos_token
        return prompt, {"steps": "\n".join(row["steps"]) or row["answer"], "text": text}

    def num_positions(self, batch, stage):
        """How many positions of the model a batch takes."""
        num_groups = -(-batch.texts["steps"].shape[1] // batch.speed)
        return batch.prompts.shape[1] + num_groups + batch.texts["text"].shape[1] - 1

    def forward(self, batch, stage, rng_keys):
        """The loss (scalar), and whether each answer is predicted right after the true steps (B,).
        rng_keys (B,): the rows' random keys, for dropout and for the tokens that are drawn."""
        groups, merged = self._merge(batch)  # (B, K, r), (B, K, D)
        num_thoughts = (groups != IGNORED).any(-1).sum(1)  # (B,)
        sampling = training_dropout(stage, self.model_dropout * self.training)
        hidden = self._read(batch, merged, num_thoughts, sampling, rng_keys)  # (B, K + S, D)
        latent = self._latent_loss(batch, hidden, merged, num_thoughts, rng_keys)
        token, right = self._token_loss(batch, hidden, num_thoughts, _draw(groups, rng_keys))
        return self.settings["token"] * token + self.settings["latent"] * latent, right

    def _latent_loss(self, batch, hidden, merged, num_thoughts, rng_keys):
        """Squared error of sampled thoughts (scalar); no gradient goes to its target."""
        end = self.model.embed(batch.texts["text"][:, :1])  # (B, 1, D), the closing token's
        target = insert_after_thoughts(merged, end, num_thoughts)  # (B, K + 1, D)
        target = target.detach().float() / self.model.config.latent_embedding_std
        features = self.model.lt_head.fc(hidden[:, : target.shape[1]])  # (B, K + 1, D')
        mean = self.model.lt_head.mean(features).float()  # (B, K + 1, D)
        std = self.log_std(features).float().exp()
        position = torch.arange(target.shape[1], device=target.device)  # (K + 1,)
        keys = rng.fold(rng_keys[:, None], position)  # (B, K + 1)
        thought = mean + std * rng.normal(keys, _SAMPLE_SITE, target.shape[2])
        errors = (thought - target).pow(2).mean(-1)  # (B, K + 1)
        errors = errors * (position <= num_thoughts[:, None])
        # a row has one target more than groups
        return errors.sum() / (batch.num_targets["steps"] + len(errors))

    def _token_loss(self, batch, hidden, num_thoughts, drawn):
        """Cross-entropy (scalar) of drawn tokens (B, K) and text; whether texts are right (B,)."""
        text, num_groups = batch.texts["text"], drawn.shape[1]  # (B, S)
        before_text = num_thoughts[:, None] + torch.arange(text.shape[1], device=text.device)
        answer_states = hidden.take_along_dim(before_text[..., None], dim=1)  # (B, S, D)
        states = torch.cat((hidden[:, :num_groups], answer_states), dim=1)  # (B, K + S, D)
        logits = self.model.lm_head(states).float()  # (B, K + S, V)
        target = torch.cat((drawn, text), dim=1)  # (B, K + S)
        logits = logits.transpose(1, 2)  # (B, V, K + S)
        loss = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        # num_targets leaves out the text's first token, the closing one, which is a target here
        num_targets = batch.num_targets["steps"] + batch.num_targets["text"] + len(target)
        loss = loss / num_targets
        right = (logits.argmax(1) == target) | (target == IGNORED)
        return loss, right[:, num_groups:].all(1)

    @torch.no_grad()
    def solved(self, batch, stage):
        """Whether each problem (B,) is solved greedily, with the model's own thoughts."""
        lengths, thoughts = batch.prompt_lengths.tolist(), self.model.defaults.latent_length
        prompts = [ids[:n].tolist() for ids, n in zip(batch.prompts, lengths, strict=True)]
        # without the end-of-thinking token and the end of text
        golds = [ids[ids != IGNORED].tolist()[1:-1] for ids in batch.texts["text"]]
        max_tokens = max(map(len, golds)) + 1
        sampled = sample(self.model, Request(prompts, range(len(golds)), 1, thoughts, max_tokens))
        pairs = zip(sampled.tokens, golds, strict=True)
        return torch.tensor([answers[0] == gold for answers, gold in pairs])

    def _merge(self, batch):
        """Groups of step tokens (B, K, r), padded with IGNORED, and their embeddings (B, K, D)."""
        steps, speed = batch.texts["steps"], batch.speed  # (B, P)
        padded = F.pad(steps, (0, -steps.shape[1] % speed), value=IGNORED)
        groups = padded.unflatten(1, (-1, speed))
        real = groups != IGNORED
        embeds = self.model.embed(groups.clamp(min=0)) * real[..., None]  # (B, K, r, D)
        sizes = real.sum(-1, keepdim=True).clamp(min=1)  # (B, K, 1)
        return groups, embeds.sum(2) / sizes**0.5

    def _read(self, batch, merged, num_thoughts, sampling, rng_keys):
        """States (B, K + S, D): at the prompt's end, a row's groups, its text, then the padding."""
        model = self.model
        first, prompt, hook = read_prompts(model, batch, sampling, rng_keys)
        text = model.embed(batch.texts["text"][:, :-1].clamp(min=0))  # (B, S - 1, D)
        x = insert_after_thoughts(merged, text, num_thoughts)  # (B, K + S - 1, D)
        positions = positions_after(batch, 0, x.shape[1])
        hidden = model.extend(x, positions, prompt, SinglePass(x.device), hook(positions))
        return torch.cat((first[:, None], hidden), dim=1)


def _draw(groups, rng_keys):
    """One token (B, K) of each group (B, K, r), by the rows' keys (B,); IGNORED for no group."""
    position = torch.arange(groups.shape[1], device=groups.device)
    random_bits = rng.fold(rng_keys[:, None], position) & 0x7FFFFFFF  # (B, K), not negative
    # a group's tokens come before its padding
    index = random_bits % (groups != IGNORED).sum(-1).clamp(min=1)
    return groups.take_along_dim(index[..., None], dim=2)[..., 0]
