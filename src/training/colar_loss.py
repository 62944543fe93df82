"""CoLaR's compressed-embedding prediction (Tan et al., arXiv 2505.16552), its supervised stage."""

import torch
import torch.nn.functional as F
from torch import nn

from src.models.kv_cache import DynamicSuffixCache
from src.models.latent_rm import insert_after_thoughts
from src.sampling import rng
from src.sampling.engine import sample
from src.sampling.samplers import Sampling, dropout_hook
from src.sampling.trajectories import Request


class ColarLoss(nn.Module):
    """The embeddings of r consecutive tokens of the steps are merged, sum / sqrt(r), into one input.

    token: cross-entropy of one token drawn from the next group, of the end token after the last one, and of
    the answer. latent: mean squared error of the latent head against the next merged embedding, both in
    units of config.latent_embedding_std; no gradient goes to that target. Both are means of a row first.
    """

    weights = {"token": 1.0, "latent": 1.0}
    stage_keys = {"speeds"}

    def __init__(self, model, weights, eos):
        """weights: of the parts of the loss; eos: the end-of-text token."""
        super().__init__()
        self.model, self.w, self.eos = model, weights, eos

    def parts(self, row, stage, speed):
        """The prompt, the steps (of a problem without any the answer), and the text after them."""
        prompt = self.model.format_prompt(row["question"], speed)
        end = self.model.special_tokens["end_latent_token_id"]
        text = end + self.model.format_answer(row["answer"]) + self.eos
        return prompt, {"steps": " ".join(row["steps"]) or row["answer"], "text": text}

    def positions(self, batch, stage):
        """Positions of the model that a batch takes."""
        groups = -(-batch.texts["steps"].shape[1] // batch.speed)
        return batch.prompt.shape[1] + groups + batch.texts["text"].shape[1] - 1

    def forward(self, batch, stage, keys):
        """Loss (scalar), and right (B,): whether the answer is predicted right after the true steps.

        keys (B,): the rows' random keys, for dropout and for the tokens that are drawn.
        """
        groups, merged = self._merge(batch)  # (B, K, r), (B, K, D)
        there = (groups != -100).any(-1)  # (B, K)
        count, thoughts = there.sum(1), there.shape[1]
        hidden = self._read(batch, merged, count, Sampling("dropout", stage.dropout), keys)
        aim = merged.detach().float() / self.model.config.latent_embedding_std
        wrong = (self.model.lt_head(hidden[:, :thoughts]).float() - aim).pow(2).mean(-1)  # (B, K)
        latent = ((wrong * there).sum(1) / count).mean()
        text = batch.texts["text"]  # (B, S)
        place = count[:, None] + torch.arange(text.shape[1], device=count.device)  # (B, S)
        states = torch.cat(
            (hidden[:, :thoughts], hidden.take_along_dim(place[..., None], dim=1)), dim=1
        )  # (B, K + S, D)
        logits = self.model.lm_head(states).float()  # (B, K + S, V)
        target = torch.cat((_drawn(groups, keys), text), dim=1)  # (B, K + S)
        token = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=-100, reduction="none")
        token = (token.sum(1) / (target != -100).sum(1)).mean()
        right = ((logits.argmax(-1) == target) | (target == -100))[:, thoughts:].all(1)
        return self.w["token"] * token + self.w["latent"] * latent, right

    @torch.no_grad()
    def solved(self, batch, stage):
        """Whether each problem (B,) is solved greedily, with thoughts of the model's own."""
        prompts = [
            ids[:n].tolist() for ids, n in zip(batch.prompt, batch.lengths.tolist(), strict=True)
        ]
        text = [ids[ids != -100].tolist()[1:-1] for ids in batch.texts["text"]]  # the answer
        longest = max(map(len, text)) + 1
        request = Request(
            prompts, range(len(prompts)), 1, self.model.defaults.latent_length, longest
        )
        found = sample(self.model, request)
        pairs = zip(found.tokens, text, strict=True)
        return torch.tensor([answers[0] == right for answers, right in pairs])

    def _merge(self, batch):
        """The steps' ids in groups of r (B, K, r), padded with -100, and their merged embeddings."""
        steps, speed = batch.texts["steps"], batch.speed  # (B, P)
        groups = F.pad(steps, (0, -steps.shape[1] % speed), value=-100).unflatten(1, (-1, speed))
        embeds = self.model.embed(groups.clamp(min=0)) * (groups != -100)[..., None]  # (B, K, r, D)
        return groups, embeds.sum(2) / speed**0.5

    def _read(self, batch, merged, count, sampling, keys):
        """Hidden states (B, K + S, D): the prompt's end, the groups that exist, the text, and the rest."""
        model, lengths = self.model, batch.lengths

        def hook(positions):
            return dropout_hook(sampling, keys, positions - (lengths[:, None] - 1))

        whole = torch.arange(batch.prompt.shape[1], device=lengths.device).expand_as(batch.prompt)
        first, prompt = model.prefill(model.embed(batch.prompt), lengths, hook(whole))
        x = insert_after_thoughts(
            merged, model.embed(batch.texts["text"][:, :-1].clamp(min=0)), count
        )
        places = lengths[:, None] + torch.arange(x.shape[1], device=lengths.device)
        hidden = model.extend(x, places, prompt, DynamicSuffixCache(), hook(places))
        return torch.cat((first[:, None], hidden), dim=1)


def _drawn(groups, keys):
    """One token of each group (B, K, r), drawn by the rows' keys (B,); -100 where there is none."""
    place = torch.arange(groups.shape[1], device=groups.device)
    chance = rng.fold(keys[:, None], place) & 0x7FFFFFFF  # (B, K)
    index = chance % (groups != -100).sum(-1).clamp(
        min=1
    )  # tokens of a group come before its padding
    return groups.take_along_dim(index[..., None], dim=2)[..., 0]
