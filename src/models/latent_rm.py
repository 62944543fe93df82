"""LatentRM (You et al., arXiv 2510.07745): a scalar reward r_t at the position of every thought."""

import torch
from torch import nn
from transformers import GPT2Model, GPT2PreTrainedModel

from src.models import gpt2
from src.sampling.engine import pad_right


class LatentRM(GPT2PreTrainedModel):
    """r_t = g(x, h_1 .. h_t); a trajectory's score is the sum of its r_t.

    Published layout: ``transformer.*`` as GPT-2, ``classifier.{weight,bias}`` with one output. Where
    ``config.latent_hidden_size`` is set, thoughts of that width enter through ``latent_projection``
    (a reward model wider than its generator); otherwise they are as wide as the model and enter as
    they are. With ``config.scores_answer`` (not in the paper) the model also answers the question itself
    after the thoughts, by its word embeddings as output layer, and gives the trajectory one more reward:
    log p(the trajectory's answer | x, h_1 .. h_T).

    Shapes: Q questions, N trajectories of each, R = Q * N rows, T thoughts, D width of a thought.
    """

    def __init__(self, config):
        gpt2.check_config(config)
        super().__init__(config)
        self.transformer = GPT2Model(config)
        width = getattr(config, "latent_hidden_size", None)
        self.latent_projection = nn.Linear(width, config.n_embd) if width else nn.Identity()
        self.classifier = nn.Linear(config.n_embd, 1)
        self.post_init()

    @property
    def thought_width(self):
        """D, the width of the generator whose thoughts the model reads."""
        return getattr(self.config, "latent_hidden_size", None) or self.config.n_embd

    @property
    def scores_answer(self):
        """Whether there is a reward for the answer, beside those of the thoughts."""
        return bool(getattr(self.config, "scores_answer", False))

    def forward(self, input_ids, attention_mask, latent_embeds, answer_ids=None):
        """Scores r_t (Q, N, T) of latent_embeds (Q, N, T, D) under the prompts input_ids (Q, L).

        The prompt is read once for its N trajectories. Padding may stand on either side. A model that
        scores answers needs answer_ids (Q, N, A), padded on the right with -1; it returns (Q, N, T + 1).
        """
        answer_ids = answer_ids if self.scores_answer else None
        hidden, logits = self.read(input_ids, attention_mask, latent_embeds, answer_ids)
        scores = self.classify(hidden)
        if logits is None:
            return scores
        return torch.cat((scores, log_prob(logits, answer_ids)[..., None].to(scores)), dim=-1)

    def read(self, input_ids, attention_mask, latent_embeds, answer_ids=None):
        """Final hidden states (Q, N, T, W) at the thoughts, W the model's own width, and with answer_ids
        (Q, N, A) the logits (Q, N, A, V) before each of their tokens; else None."""
        ids, lengths = _to_the_left(input_ids, attention_mask)
        prompt = self.read_prompts(ids, lengths)
        (count, thoughts), device = latent_embeds.shape[1:3], ids.device
        x = self.embed_thoughts(latent_embeds.flatten(0, 1))  # (R, T, W)
        if answer_ids is not None:
            x = torch.cat((x, self._embed_answers(answer_ids.flatten(0, 1))), dim=1)  # (R, T + A, W)
        positions = lengths.repeat_interleave(count)[:, None] + torch.arange(x.shape[1], device=device)
        positions = positions.clamp(max=self.config.n_positions - 1)  # only padding lies beyond
        hidden = gpt2.extend(self.transformer, x, positions, prompt, gpt2.GrowingCache())
        hidden = hidden.unflatten(0, latent_embeds.shape[:2])  # (Q, N, T + A, W)
        if answer_ids is None:
            return hidden, None
        return hidden[:, :, :thoughts], hidden[:, :, thoughts:] @ self.transformer.wte.weight.T

    def embed_thoughts(self, thoughts):
        """Thoughts (..., D) as the model's inputs (..., W)."""
        return self.latent_projection(thoughts.to(self.dtype))

    def _embed_answers(self, answers):
        """Inputs (R, A): the end-of-thinking token, then answers (R, A) but for their last token; causal
        attention keeps the padding from what is asked for."""
        end = torch.full_like(answers[:, :1], self.config.end_latent_token_id)
        return self.transformer.wte(torch.cat((end, answers[:, :-1].clamp(min=0)), dim=1))

    def classify(self, hidden):
        """Scores (...) of hidden states (..., W)."""
        return self.classifier(hidden).squeeze(-1)

    def read_prompts(self, ids, lengths):
        """The PromptCache of prompts ids (Q, L), padded on the right, of true lengths (Q,)."""
        return gpt2.prefill(self.transformer, self.transformer.wte(ids), lengths)[1]


def log_prob(logits, answers):
    """log p (...) of answers (..., A), padded with -1, from the logits (..., A, V) before each token."""
    found = logits.float().log_softmax(-1).gather(-1, answers.clamp(min=0)[..., None])[..., 0]
    return found.masked_fill(answers < 0, 0).sum(-1)


def _to_the_left(input_ids, attention_mask):
    """The rows' tokens moved to the left, whatever side was padded, and their numbers (Q,)."""
    order = attention_mask.logical_not().byte().argsort(dim=1, stable=True)  # (Q, L)
    lengths = attention_mask.sum(1)
    return input_ids.gather(1, order)[:, : int(lengths.max())], lengths


class PrefixScorer:
    """Scores prefixes as they grow (beam search): a thought is read once, a prompt once a question."""

    def __init__(self, model):
        self.model = model

    def begin(self, prompts, capacity):
        """prompts: Q lists of token ids; capacity: thoughts T to come."""
        ids, lengths = (x.to(self.model.device) for x in pad_right(prompts, 0))
        self.prompt = self.model.read_prompts(ids, lengths)
        self.lengths, self.capacity, self.own = lengths, capacity, None

    def extend(self, thoughts, parents=None):
        """r_t (R,) of the next thought (R, D) of every row; a question's rows are adjacent.

        parents (R,): the rows, as they were, that the new rows continue; None at the first thought.
        """
        model, rows = self.model, len(thoughts)
        if parents is None:
            self.own = gpt2.FixedCache(model.config, rows, self.capacity, model.dtype, model.device)
        else:
            self.own = self.own.select(parents)
        positions = self.lengths.repeat_interleave(rows // len(self.lengths)) + self.own.length  # (R,)
        x = model.embed_thoughts(thoughts)[:, None]  # (R, 1, W)
        hidden = gpt2.extend(model.transformer, x, positions[:, None], self.prompt, self.own)
        return model.classify(hidden)[:, 0].float()

    def select(self, rows):
        """Keeps the given rows, an index tensor, in its order."""
        self.own = self.own.select(rows)
