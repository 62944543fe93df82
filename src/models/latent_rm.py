"""LatentRM (You et al., arXiv 2510.07745): a scalar reward r_t at the position of every thought."""

import torch
from torch import nn
from transformers import GPT2Model, GPT2PreTrainedModel, LlamaModel, LlamaPreTrainedModel

from src.models.caches import GrowingCache
from src.models.codi import new_projector
from src.models.gpt2 import GPT2Reader
from src.models.llama import LlamaReader
from src.sampling.engine import pad_right


class LatentRM:
    """r_t = g(x, h_1 .. h_t); a trajectory's score is the sum of its r_t. Mixin of the two below.

    Published layout: the backbone's body and ``classifier.{weight,bias}`` with one output. With
    ``config.scores_answer`` (not in the paper) the model also answers the question itself
    after the thoughts, by its word embeddings as output layer, and gives the trajectory one more reward:
    log p(the trajectory's answer | x, h_1 .. h_T).

    Shapes: Q questions, N trajectories of each, R = Q * N rows, T thoughts, D width of a thought, which
    is the model's own.
    """

    def add_heads(self, projector):
        """The parts on top of the body. projector: what a hidden state passes before the classifier."""
        self.projector = projector
        self.classifier = nn.Linear(self.config.hidden_size, 1)
        self.post_init()

    @property
    def scores_answer(self):
        """Whether there is a reward for the answer, beside those of the thoughts."""
        return bool(getattr(self.config, "scores_answer", False))

    def forward(self, input_ids, attention_mask, latent_embeds, latent_lengths=None, answer_ids=None):
        """Scores r_t (Q, N, T) of latent_embeds (Q, N, T, D) under the prompts input_ids (Q, L).

        latent_lengths (Q, N): how many of a trajectory's T thoughts exist, None: all; the others score 0.
        The prompt is read once for its N trajectories. Padding may stand on either side. A model that
        scores answers needs answer_ids (Q, N, A), padded on the right with -1; it returns (Q, N, T + 1).
        """
        answer_ids = answer_ids if self.scores_answer else None
        hidden, logits = self.read(input_ids, attention_mask, latent_embeds, latent_lengths, answer_ids)
        scores = self.classify(hidden)
        if latent_lengths is not None:
            scores = scores * existing(latent_lengths, hidden.shape[2])
        if logits is None:
            return scores
        return torch.cat((scores.float(), log_prob(logits, answer_ids)[..., None]), dim=-1)

    def read(self, input_ids, attention_mask, latent_embeds, latent_lengths=None, answer_ids=None):
        """Final hidden states (Q, N, T, D) at the thoughts, and with answer_ids
        (Q, N, A) the logits (Q, N, A, V) before each of their tokens; else None."""
        ids, lengths = _to_the_left(input_ids, attention_mask)
        prompt = self.read_prompts(ids, lengths)
        (count, thoughts), device = latent_embeds.shape[1:3], ids.device
        if latent_lengths is None:
            latent_lengths = torch.full(latent_embeds.shape[:2], thoughts, device=device)
        x = latent_embeds.flatten(0, 1).to(self.dtype)  # (R, T, D)
        if answer_ids is not None:
            x = joined(x, self._embed_answers(answer_ids.flatten(0, 1)), latent_lengths.flatten())
        positions = lengths.repeat_interleave(count)[:, None] + torch.arange(x.shape[1], device=device)
        positions = positions.clamp(
            max=self.config.max_position_embeddings - 1
        )  # only padding lies beyond
        hidden = self.extend(x, positions, prompt, GrowingCache())
        hidden = hidden.unflatten(0, latent_embeds.shape[:2])  # (Q, N, T + A, D)
        if answer_ids is None:
            return hidden, None
        before = latent_lengths[..., None] + torch.arange(
            answer_ids.shape[2], device=device
        )  # (Q, N, A)
        answers = hidden.take_along_dim(before[..., None], dim=2)  # (Q, N, A, D)
        return hidden[:, :, :thoughts], answers @ self.get_input_embeddings().weight.T

    def _embed_answers(self, answers):
        """Inputs (R, A, D): the end-of-thinking token, then answers (R, A) but for their last token; causal
        attention keeps the padding from what is asked for."""
        end = torch.full_like(answers[:, :1], self.config.end_latent_token_id)
        return self.embed(torch.cat((end, answers[:, :-1].clamp(min=0)), dim=1))

    def classify(self, hidden):
        """Scores (...) of hidden states (..., D)."""
        return self.classifier(self.projector(hidden)).squeeze(-1)

    def read_prompts(self, ids, lengths):
        """The PromptCache of prompts ids (Q, L), padded on the right, of true lengths (Q,)."""
        return self.prefill(self.embed(ids), lengths)[1]


class GPT2LatentRM(LatentRM, GPT2Reader, GPT2PreTrainedModel):
    """Published layout: ``transformer.*``; of a CODI also ``projector.*``, before the classifier."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.add_heads(new_projector(config))


class LlamaLatentRM(LatentRM, LlamaReader, LlamaPreTrainedModel):
    """Layout: ``model.*``."""

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.add_heads(nn.Identity())


LATENT_RMS = {cls.config_class.model_type: cls for cls in (GPT2LatentRM, LlamaLatentRM)}


def existing(latent_lengths, thoughts):
    """Which of the T thoughts exist, (..., T), for latent_lengths (...)."""
    return torch.arange(thoughts, device=latent_lengths.device) < latent_lengths[..., None]


def joined(thoughts, answers, lengths):
    """Inputs (R, T + A, D): each row's thoughts (R, T, D) that exist, its answer (R, A, D), and the rest."""
    count, both = thoughts.shape[1], torch.cat((thoughts, answers), dim=1)
    place = torch.arange(both.shape[1], device=lengths.device)  # (T + A,)
    after = (place + count - lengths[:, None]).clamp(max=both.shape[1] - 1)  # (R, T + A)
    return both.take_along_dim(torch.where(place < lengths[:, None], place, after)[..., None], dim=1)


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
            self.own = model.new_cache(rows, self.capacity)
        else:
            self.own = self.own.select(parents)
        positions = self.lengths.repeat_interleave(rows // len(self.lengths)) + self.own.length  # (R,)
        x = thoughts[:, None].to(model.dtype)  # (R, 1, D)
        hidden = model.extend(x, positions[:, None], self.prompt, self.own)
        return model.classify(hidden)[:, 0].float()

    def select(self, rows):
        """Keeps the given rows, an index tensor, in its order."""
        self.own = self.own.select(rows)
