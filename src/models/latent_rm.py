"""LatentRM (You et al., arXiv 2510.07745, section 4): a scalar reward r_t for every thought.

Shapes: Q questions, N trajectories of each, R = Q * N rows, T thoughts, A answer tokens, L prompt
length, D width of a thought, which is the model's own, V vocabulary.
"""

import torch
from torch import nn
from torch.func import functional_call
from transformers import GPT2Model, GPT2PreTrainedModel, LlamaModel, LlamaPreTrainedModel

from src.models.codi import new_projector
from src.models.gpt2 import GPT2Decoder
from src.models.llama import LlamaDecoder
from src.sampling.logits import token_log_probs
from src.sampling.trajectories import thought_mask


class LatentRM:
    """r_t = g(x, h_1 .. h_t); a trajectory's score is the sum of its r_t. Mixin of the two below.

    Published layout: the backbone's body and ``classifier.{weight,bias}`` with one output; for CODI
    also ``projector.*``. Two keys of the config, which are not in the paper and exclude each other,
    give the trajectory one more reward. ``scores_answer``: the model also answers the question
    itself after the thoughts, with its word embeddings as output layer; the reward is log p(the
    trajectory's answer | x, h_1 .. h_T). ``reads_answer``: the model reads the trajectory's answer
    after the thoughts; the reward is the classifier's at the answer's last token.
    """

    judges_pools = False  # a PoolJudge does

    def add_heads(self):
        """Adds the classifier, and CODI's projector between a hidden state and it."""
        self.projector = new_projector(self.config)
        self.classifier = nn.Linear(self.config.hidden_size, 1)
        self.post_init()

    @property
    def scores_answer(self):
        """Whether the answer's log-probability under this model is one more reward."""
        return bool(getattr(self.config, "scores_answer", False))

    @property
    def reads_answer(self):
        """Whether the classifier gives one more reward at the end of the answer."""
        return bool(getattr(self.config, "reads_answer", False))

    @property
    def rewards_answer(self):
        """Whether there is a reward for the answer, beside those of the thoughts."""
        return self.scores_answer or self.reads_answer

    def forward(
        self, input_ids, attention_mask, latent_embeds, latent_lengths=None, answer_ids=None
    ):
        """Rewards r_t (Q, N, T) of latent_embeds (Q, N, T, D) after prompts input_ids (Q, L).

        latent_lengths (Q, N): how many of a trajectory's T thoughts exist, None: all; the others
        get 0. The prompt is read once for its N trajectories. Padding may be on either side. A
        model that rewards answers needs answer_ids (Q, N, A), padded on the right with -1; it
        returns (Q, N, T + 1).
        """
        pool = (input_ids, attention_mask, latent_embeds, latent_lengths)
        hidden, of_answer = self.read_pool(*pool, answer_ids)
        rewards = self.classify(hidden)
        if latent_lengths is not None:
            rewards = rewards * thought_mask(latent_lengths, hidden.shape[2])
        if of_answer is None:
            return rewards
        return torch.cat((rewards.float(), of_answer[..., None]), dim=-1)

    def read_pool(
        self, input_ids, attention_mask, latent_embeds, latent_lengths=None, answer_ids=None
    ):
        """Final hidden states (Q, N, T, D) at the thoughts, and the answers' rewards (Q, N).

        The rewards are None where the model does not reward answers. Arguments as in ``forward``.
        """
        pool = (input_ids, attention_mask, latent_embeds, latent_lengths)
        if self.reads_answer:
            hidden, ends = self.read_answers(*pool, answer_ids)
            return hidden, self.classify(ends)
        if not self.scores_answer:
            return self.read_states(*pool)
        hidden, states = self.read_states(*pool, answer_ids)
        return hidden, self.answer_log_probs(states, answer_ids)

    def answer_log_probs(self, states, answer_ids):
        """log p (Q, N), float32, of answer_ids (Q, N, A), from the states of ``read_states``."""
        log_probs = token_log_probs(self, self._output_weight, states, answer_ids.clamp(min=0))
        return log_probs.masked_fill(answer_ids < 0, 0).sum(-1)

    def read(self, input_ids, attention_mask, latent_embeds, latent_lengths=None, answer_ids=None):
        """Final hidden states (Q, N, T, D) at the thoughts, and the answers' logits.

        The logits (Q, N, A, V) stand before each token of answer_ids (Q, N, A); without
        answer_ids they are None. Arguments as in ``forward``.
        """
        pool = (input_ids, attention_mask, latent_embeds, latent_lengths)
        hidden, states = self.read_states(*pool, answer_ids)
        return hidden, None if states is None else states @ self._output_weight.T

    @property
    def _output_weight(self):
        return self.get_input_embeddings().weight  # (V, D)

    def read_states(
        self, input_ids, attention_mask, latent_embeds, latent_lengths=None, answer_ids=None
    ):
        """As ``read``, with the hidden states (Q, N, A, D) in place of the logits."""
        if latent_lengths is None:
            latent_lengths = _all_thoughts(latent_embeds)
        pool = (input_ids, attention_mask, latent_embeds, latent_lengths)
        if answer_ids is None:
            return self._read_rows(*pool), None
        hidden = self._read_rows(*pool, answer_ids[..., :-1])  # (Q, N, T + A, D)
        before = torch.arange(answer_ids.shape[2], device=hidden.device)
        before = latent_lengths[..., None] + before  # (Q, N, A)
        states = hidden.take_along_dim(before[..., None], dim=2)  # (Q, N, A, D)
        return hidden[:, :, : latent_embeds.shape[2]], states

    def read_answers(self, input_ids, attention_mask, latent_embeds, latent_lengths, answer_ids):
        """Final hidden states (Q, N, T, D) at the thoughts, (Q, N, D) at the answers' last tokens.

        An answer that was cut off at the model's last position has one token more than there are
        positions: its last two tokens then share the last position.
        """
        if latent_lengths is None:
            latent_lengths = _all_thoughts(latent_embeds)
        pool = (input_ids, attention_mask, latent_embeds, latent_lengths)
        hidden = self._read_rows(*pool, answer_ids)  # (Q, N, T + 1 + A, D)
        last = latent_lengths + (answer_ids >= 0).sum(-1)  # (Q, N), past the end-of-thinking token
        ends = hidden.take_along_dim(last[..., None, None], dim=2)[:, :, 0]  # (Q, N, D)
        return hidden[:, :, : latent_embeds.shape[2]], ends

    def _read_rows(self, input_ids, attention_mask, latent_embeds, latent_lengths, answer_ids=None):
        """Final hidden states (Q, N, T, D), with answer_ids (Q, N, A) those (Q, N, T + 1 + A, D).

        After a row's thoughts that exist come the end-of-thinking token and the answer.
        """
        ids, prompt_lengths = _pad_right(input_ids, attention_mask)
        shape = latent_embeds.shape[:2]
        x = latent_embeds.flatten(0, 1).to(self.dtype)  # (R, T, D)
        if answer_ids is not None:
            x = self.append_answers(x, latent_lengths.flatten(), answer_ids.flatten(0, 1))
        positions = torch.arange(x.shape[1], device=ids.device)
        positions = prompt_lengths.repeat_interleave(shape[1])[:, None] + positions
        # of padding, and see read_answers
        positions = positions.clamp(max=self.config.max_position_embeddings - 1)
        hidden = self.read_together(self.embed(ids), prompt_lengths, x, positions)
        return hidden.unflatten(0, shape)

    def append_answers(self, thoughts, num_thoughts, answers):
        """Inputs (R, T + 1 + A, D) that continue R rows: thoughts, end-of-thinking token, answers.

        thoughts (R, T, D), of which num_thoughts (R,) exist; answers (R, A), padded with -1.
        """
        return insert_after_thoughts(thoughts, self._embed_answers(answers), num_thoughts)

    def answer_rewards(self, hidden, num_thoughts, answers):
        """The answers' rewards (R,), from hidden states (R, T + 1 + A, D) at ``append_answers``."""
        if self.reads_answer:
            last = num_thoughts + (answers >= 0).sum(-1)  # (R,)
            return self.classify(hidden.take_along_dim(last[:, None, None], dim=1)[:, 0])
        before = torch.arange(answers.shape[1], device=hidden.device)
        before = num_thoughts[:, None] + before  # (R, A)
        states = hidden.take_along_dim(before[..., None], dim=1)  # (R, A, D)
        return self.answer_log_probs(states, answers)

    def _embed_answers(self, answers):
        """Inputs (R, 1 + A, D): the end-of-thinking token, then answers (R, A).

        Padding is embedded as token 0; causal attention keeps it from what is read.
        """
        end = answers.new_full((len(answers), 1), self.config.end_latent_token_id)
        return self.embed(torch.cat((end, answers.clamp(min=0)), dim=1))

    def classify(self, hidden):
        """Rewards (...), float32 whatever the model's format, of hidden states (..., D)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return _in_float32(self.classifier, _in_float32(self.projector, hidden)).squeeze(-1)


class GPT2LatentRM(LatentRM, GPT2Decoder, GPT2PreTrainedModel):
    """Layout: ``transformer.*``."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.add_heads()


class LlamaLatentRM(LatentRM, LlamaDecoder, LlamaPreTrainedModel):
    """Layout: ``model.*``."""

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.add_heads()


LATENT_RMS = {cls.config_class.model_type: cls for cls in (GPT2LatentRM, LlamaLatentRM)}


def insert_after_thoughts(thoughts, answers, num_thoughts):
    """Inputs (R, T + A, D): each row's thoughts that exist, its answer, and the padding.

    thoughts (R, T, D), of which num_thoughts (R,) exist; answers (R, A, D).
    """
    both = torch.cat((thoughts, answers), dim=1)
    position = torch.arange(both.shape[1], device=num_thoughts.device)  # (T + A,)
    shifted = position + thoughts.shape[1] - num_thoughts[:, None]  # (R, T + A)
    is_thought = position < num_thoughts[:, None]
    source = torch.where(is_thought, position, shifted.clamp(max=both.shape[1] - 1))
    return both.take_along_dim(source[..., None], dim=1)


def _in_float32(module, x):
    """``module(x)`` in float32, its weights too; a float64 ``x`` keeps its format."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weights = {name: weight.to(dtype) for name, weight in module.named_parameters()}
    return functional_call(module, weights, x.to(dtype))


def _all_thoughts(latent_embeds):
    """Numbers of thoughts (Q, N) where all of latent_embeds (Q, N, T, D) exist."""
    shape = latent_embeds.shape
    return torch.full(shape[:2], shape[2], device=latent_embeds.device)


def _pad_right(input_ids, attention_mask):
    """Prompts (Q, L) padded on the right, whatever side was padded, and their lengths (Q,)."""
    order = attention_mask.logical_not().byte().argsort(dim=1, stable=True)  # (Q, L)
    lengths = attention_mask.sum(1)
    return input_ids.gather(1, order)[:, : int(lengths.max())], lengths
