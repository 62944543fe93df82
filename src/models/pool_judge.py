"""A judge of a pool's answers that reads the frozen generator.

LatentRM scores one trajectory by its own weights. This judge scores the distinct answers of a whole
pool, from what the generator computes when it reads each of them after its greedy thoughts (the
states of all layers, as ELHSR, arXiv 2505.12225, reads them; encoded as by LTO, arXiv 2509.26314),
and from how the pool's trajectories voted. Attention across the answers makes it a set model: their
order has no effect. The generator stays as it is, so the judge can't become a second solver.

Shapes: Q questions, K candidates, S positions of a reading, L layers and D width of the generator,
W width of the judge.
"""

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from src.models.candidates import (
    MOST_CANDIDATES,
    Candidates,
    candidates_of,
    greedy_distances,
    read_candidates,
)
from src.sampling.memory import rows_within
from src.sampling.trajectories import with_end

FEATURES = 6  # see PoolJudge._features
_THOUGHTS = 64  # later thoughts share the last position embedding; so do later answer tokens
_LEAST_VOTES = 0.5  # votes of an answer that only the greedy trajectory gave


class PoolJudgeConfig(PretrainedConfig):
    """Sizes of a PoolJudge. reads_states, reads_votes: what it sees; either can be left out, to
    find out what it is good for."""

    model_type = "pool_judge"

    def __init__(
        self, generator_layers=4, generator_width=128, hidden_size=128, num_layers=2, num_heads=4,
        reads_states=True, reads_votes=True, generator_type=None, generator_architecture=None,
        generator_sha256=None, **kwargs,
    ):  # fmt: skip
        self.generator_layers, self.generator_width = generator_layers, generator_width
        self.hidden_size, self.num_layers, self.num_heads = hidden_size, num_layers, num_heads
        self.reads_states, self.reads_votes = reads_states, reads_votes
        self.generator_type, self.generator_sha256 = generator_type, generator_sha256
        self.generator_architecture = generator_architecture
        super().__init__(**kwargs)


class PoolJudge(PreTrainedModel):
    """Scores (Q, K) of candidates; the highest one is the judge's answer."""

    config_class = PoolJudgeConfig
    judges_pools = True  # a LatentRM scores trajectories

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        if config.reads_states:
            parts = config.generator_layers + 1
            self.norms = nn.ModuleList(nn.LayerNorm(config.generator_width) for _ in range(parts))
            self.states = nn.Linear(parts * config.generator_width, width)
            self.positions = nn.Embedding(2 * _THOUGHTS, width)
            self.reader = _encoder(config)
            self.summary = nn.Linear(2 * width, width)
        self.features = nn.Sequential(
            nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, width)
        )
        self.across = _encoder(config)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)
        self.post_init()

    def _init_weights(self, module):
        """Keeps torch's own initial weights."""

    def forward(self, reading, candidates):
        """Scores (Q, K), minus infinity where there is no candidate.

        reading: the Reading of the candidates that exist.
        """
        x, exists = self.features(self._features(reading, candidates)), candidates.exists
        if self.config.reads_states:
            of_states = torch.zeros_like(x)  # (Q, K, W)
            of_states[exists] = self._read(reading).to(x.dtype)
            x = x + of_states
        # A question without any answer would have nothing to attend to.
        empty = ~exists & exists.any(1, keepdim=True)
        x = self.across(x, src_key_padding_mask=empty)
        scores = self.score(self.head(x)).squeeze(-1)  # (Q, K)
        return scores.masked_fill(~exists, float("-inf"))

    def _features(self, reading, candidates):
        """(Q, K, FEATURES) of the candidates: votes and their logarithm, log-probability after the
        greedy thoughts, whether the greedy trajectory gave it, the distance of its voters' thoughts
        from the greedy ones, and the logarithm of the pool's size."""
        votes, size = candidates.votes, candidates.n_samples[:, None].float()
        log_votes = (votes * size).clamp(min=_LEAST_VOTES).div(size).log()
        of_pool = (votes, log_votes, candidates.is_greedy.float(), candidates.distance)
        of_pool = torch.stack((*of_pool, size.log().expand_as(votes)), dim=-1)  # (Q, K, 5)
        if not self.config.reads_votes:
            of_pool = torch.zeros_like(of_pool)
        log_probs = torch.zeros_like(votes)
        if self.config.reads_states:
            log_probs[candidates.exists] = reading.log_probs.clamp(min=-20)
        return torch.cat((of_pool, log_probs[..., None]), dim=-1)

    @torch.inference_mode()
    def judge(self, generator, prefix, greedy, trajectories, parse):
        """The judge's view of Q questions' pools, a list of {"answers": numbers, "scores": floats}.

        generator: whose states are read. prefix: the PrefixCache of the prompts. greedy: the
        Trajectories of the questions' greedy trajectories. parse(ids): the number in an answer, or
        None. Also returns how many token positions were read.
        """
        eos, num_questions = generator.config.eos_token_id, len(greedy.tokens)
        pools = [_candidates(greedy, trajectories, q, parse, eos) for q in range(num_questions)]
        steps = greedy.thoughts.shape[2] + max(pool.ids.shape[2] for pool in pools)
        # all layers' states of a row stay in memory, as much as its cache or more
        longest = int(prefix.lengths.max())
        rows = rows_within(generator, 4 * steps, steps, longest, MOST_CANDIDATES)
        groups, judged, num_read = prefix.groups_of(num_questions), [], 0
        for questions in torch.arange(num_questions).split(max(1, rows // MOST_CANDIDATES)):
            part = [pools[q] for q in questions]
            thoughts, num_thoughts = (
                x[questions.to(x.device), 0] for x in (greedy.thoughts, greedy.num_thoughts)
            )
            of_part = prefix.select(groups[questions.to(groups.device)])
            views, more = self._judge(generator, of_part, thoughts, num_thoughts, part)
            judged, num_read = judged + views, num_read + more
        return judged, num_read

    def _judge(self, generator, prefix, thoughts, num_thoughts, pools):
        """``judge`` of questions that are read together."""
        candidates = Candidates.stack(pools).to(self.device)
        reading = read_candidates(generator, prefix, thoughts, num_thoughts, candidates)
        scores = self(reading, candidates).tolist()
        views = [
            {"answers": numbers, "scores": [round(x, 4) for x in of_question[: len(numbers)]]}
            for numbers, of_question in zip(candidates.numbers, scores, strict=True)
        ]
        return views, int(reading.valid.sum())

    def _read(self, reading):
        """What the generator's states say of each candidate, (R, W)."""
        layers = reading.states.float().unbind(2)  # (R, S, D) each
        x = torch.cat([norm(x) for norm, x in zip(self.norms, layers, strict=True)], dim=-1)
        x = self.states(x) + self.positions(_positions(reading.is_thought))  # (R, S, W)
        x = self.reader(x, src_key_padding_mask=~reading.valid)
        weights = reading.valid[..., None].float()
        mean = (x * weights).sum(1) / weights.sum(1)  # (R, W)
        last = reading.valid.sum(1) - 1  # (R,)
        last = x.take_along_dim(last[:, None, None], dim=1)[:, 0]  # (R, W)
        return self.summary(torch.cat((mean, last), dim=-1))


def _candidates(greedy, trajectories, q, parse, eos):
    """The Candidates of question number q."""
    of_greedy = greedy.thoughts[q, 0, : int(greedy.num_thoughts[q, 0])]  # (T', D)
    device = of_greedy.device  # those of a saved pool lie on the CPU
    thoughts, num_thoughts = trajectories.thoughts[q], trajectories.num_thoughts[q]
    distances = greedy_distances(thoughts.to(device), num_thoughts.to(device), of_greedy)  # (N,)
    return candidates_of(
        [parse(ids) for ids in trajectories.tokens[q]],
        with_end(trajectories.tokens[q], trajectories.finished[q], eos),
        distances.cpu(),
        parse(greedy.tokens[q][0]),
        with_end(greedy.tokens[q], greedy.finished[q], eos)[0],
    )


def _encoder(config):
    """Transformer layers whose padded inputs are left out."""
    width = config.hidden_size
    layer = nn.TransformerEncoderLayer(
        width, config.num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)


def _positions(is_thought):
    """Which position embedding (R, S): thoughts by their number, the answer's tokens by theirs."""
    steps = torch.arange(is_thought.shape[1], device=is_thought.device)
    in_answer = steps - is_thought.sum(1, keepdim=True)  # (R, S)
    in_answer = _THOUGHTS + in_answer.clamp(0, _THOUGHTS - 1)
    return torch.where(is_thought, steps.clamp(max=_THOUGHTS - 1), in_answer)


AutoConfig.register(PoolJudgeConfig.model_type, PoolJudgeConfig)
