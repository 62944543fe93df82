"""LatentRM-guided beam search over latent thoughts (You et al., arXiv 2510.07745, section 4).

At each latent step C stochastic proposals of each of B beams are scored by their cumulative reward
and the best B continue. Slot ``b * C + c`` draws the random numbers of sample ``b * C + c``, so one
beam with one proposal is sample 0.

Shapes: Q questions, R = Q * B * C slots, t thoughts so far, T thoughts in all, D model width.
"""

from dataclasses import dataclass, replace

import torch

from src.sampling.engine import decode, ends_thinking, read_thought, start
from src.sampling.memory import question_parts, rows_in_flight, rows_within
from src.sampling.trajectories import Trajectories, cat_steps
from src.search.prefix_scorer import PrefixScorer
from utils.metrics import trajectory_score


@dataclass
class Beams:
    """Result of a beam search.

    trajectories: the B survivors of each question, best first. rewards (Q, B, T): r_t of their
    thoughts, 0 where there is none. num_forward_passes: rows that the generator read in the latent
    phase, the prompts included.
    """

    trajectories: Trajectories
    rewards: torch.Tensor
    num_forward_passes: int

    @classmethod
    def join(cls, parts):
        """Those of all questions from those of some questions each."""
        return cls(
            Trajectories.join([part.trajectories for part in parts]),
            cat_steps([part.rewards for part in parts], dim=0),
            sum(part.num_forward_passes for part in parts),
        )


@torch.inference_mode()
def beam_search(model, reward_model, request, num_beams, num_proposals, score_by="sum"):
    """The best ``num_beams`` trajectories of each question of ``request``, as Beams.

    n_samples of the request is ignored. score_by: "sum" or "mean" of the rewards of a beam's
    thoughts. Where the model decides when to stop thinking, a beam that has ended stays, as one
    proposal, until better ones displace it. One dropout mask for a whole trajectory has no meaning
    here: a beam changes its slot, and with it its random numbers, at every step. A perturbed weight
    (svp, weight_noise) is the slot's, too: a beam continues under that of its new slot. As many
    questions are searched at once as memory allows.
    """
    request = replace(request, n_samples=num_beams * num_proposals)
    longest, slots = max(map(len, request.prompts)), request.n_samples
    of_scorer = rows_within(reward_model, request.latent_length, 1, longest, slots)
    rows = min(rows_in_flight(model, request), of_scorer)
    shape = (num_beams, num_proposals, score_by)
    parts = question_parts(request, rows)
    return Beams.join([_beam_search(model, reward_model, part, *shape) for _, part in parts])


def _beam_search(model, reward_model, request, num_beams, num_proposals, score_by):
    search = _Search(model, reward_model, request, num_beams, num_proposals, score_by)
    for step in range(1, request.latent_length + 1):
        if step > 1:
            search.propose(step)
        search.keep_best()
        if bool(search.ended.all()):
            break
    return search.finish()


class _Search:
    """The slots of a beam search: R rows while proposals are scored, Q * B between the steps.

    state: a State. thoughts (R, t, D), rewards (R, t), ended (R,) bool: whether a slot's latent
    phase is over. duplicate (R,) bool: slots that hold the same ended beam as an earlier slot.
    """

    def __init__(self, model, reward_model, request, num_beams, num_proposals, score_by):
        self.model, self.request, self.score_by = model, request, score_by
        self.num_beams, self.num_proposals = num_beams, num_proposals
        self.state = start(model, request)
        self.scorer = PrefixScorer(reward_model, request.prompts, request.latent_length)
        self.rng_keys = self.state.rng_keys  # (R,) of the slots
        self.num_forward_passes = len(self.rng_keys)
        self.thoughts = self.state.thought[:, None]
        self.rewards = self.scorer.extend(self.state.thought)[:, None]
        self.ended = self.duplicate = torch.zeros_like(self.rng_keys, dtype=torch.bool)

    def propose(self, step):
        """Thought number ``step`` of every slot: each beam has ``num_proposals`` continuations."""
        parents = torch.arange(len(self.rng_keys), device=self.rng_keys.device)
        parents = parents // self.num_proposals  # (R,)
        hidden = self._read_beams(parents, step - 1)  # (R, D)
        self.ended = self.ended[parents]
        if self.model.stops_itself:
            self.ended = self.ended | ends_thinking(self.model, hidden)
            self.duplicate = _duplicates(self.ended, self.num_proposals)
        thought = self.model.to_thought(hidden)
        thought = self.request.sampling.next_thought(thought, self.rng_keys, step)  # (R, D)
        state = self.state
        state.thought = thought
        state.num_thoughts = torch.where(self.ended, state.num_thoughts, step)
        reward = self.scorer.extend(thought, parents).masked_fill(self.ended, 0)  # (R,)
        kept_thought = thought.masked_fill(self.ended[:, None], 0)
        self.thoughts = torch.cat((self.thoughts[parents], kept_thought[:, None]), dim=1)
        self.rewards = torch.cat((self.rewards[parents], reward[:, None]), dim=1)

    def _read_beams(self, parents, step):
        """Copies each beam into its slots; the hidden states (R, D) at its thought number ``step``.

        With dropout or a perturbed weight each slot reads the thought on its own; otherwise a beam
        reads it once.
        """
        sampling, alive = self.request.sampling, int((~self.ended).sum())
        if sampling.varies_passes:
            self._branch(parents)
            self.num_forward_passes += alive * self.num_proposals
            return read_thought(self.model, sampling, self.state, step)[0]
        hidden, _ = read_thought(self.model, sampling, self.state, step)  # (Q * B, D)
        self._branch(parents)
        self.num_forward_passes += alive
        return hidden[parents]

    def _branch(self, parents):
        self.state = self.state.select(parents)
        self.state.rng_keys = self.rng_keys

    def keep_best(self):
        """Drops all slots but the best ``num_beams`` of each question; the first of equals wins."""
        total, num_thoughts = self.rewards.sum(1), self.state.num_thoughts  # (R,) each
        score = trajectory_score(total, num_thoughts, self.score_by)
        score = score.masked_fill(self.duplicate, float("-inf"))
        per_question = score.view(len(self.request.prompts), -1)  # (Q, B * C)
        order = per_question.argsort(dim=1, descending=True, stable=True)[:, : self.num_beams]
        first_slot = torch.arange(len(per_question), device=score.device) * per_question.shape[1]
        kept = (first_slot[:, None] + order).flatten()  # (Q * B,)
        self.state = self.state.select(kept)
        self.thoughts, self.rewards = self.thoughts[kept], self.rewards[kept]
        self.ended = self.ended[kept]
        self.scorer.select(kept)

    def finish(self):
        """Decodes the answers of the survivors: the Beams."""
        if self.model.stops_itself:
            self._end_thinking()
        request = replace(self.request, n_samples=self.num_beams)
        trajectories = decode(self.model, request, self.state, self.thoughts)
        rewards = self.rewards.unflatten(0, (-1, self.num_beams))  # (Q, B, T)
        return Beams(trajectories, rewards, self.num_forward_passes)

    def _end_thinking(self):
        """Has the last thought of the beams at the limit read, as the engine does."""
        request, state = self.request, self.state
        alive = int((~self.ended).sum())
        if alive:
            self.num_forward_passes += alive
            read_thought(self.model, request.sampling, state, request.latent_length)
        state.suffix.set_lengths(state.num_thoughts)
        state.thought = None


def _duplicates(ended, num_proposals):
    """Which slots (R,) have ended like an earlier slot of their beam: they hold equal thoughts."""
    per_beam = ended.view(-1, num_proposals)
    return (per_beam & (per_beam.cumsum(1) > 1)).flatten()
