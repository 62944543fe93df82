"""Guided search over latent thoughts: beam search, and diverse verifier tree search (DVTS).

At each latent step C stochastic proposals of each of B beams are scored, and some continue. Beam
search (You et al., arXiv 2510.07745, section 4) keeps the best B of a question's B * C. DVTS
(huggingface/search-and-learn) grows B independent subtrees: each keeps the best of its own C, and
all C at the last thought, so that B * C trajectories are answered. Slot ``b * C + c`` draws the
random numbers of sample ``b * C + c``, so one beam with one proposal is sample 0.

Shapes: Q questions, R = Q * B * C slots, t thoughts so far, T thoughts in all, K further thoughts
of a lookahead, D model width.
"""

from collections import Counter
from dataclasses import dataclass, replace

import torch

from src.sampling.engine import decode, ends_thinking, read_thought, start
from src.sampling.memory import question_parts, rows_in_flight
from src.sampling.trajectories import Trajectories, cat_steps
from src.search.guides import Proposals
from src.search.lookahead import look_ahead
from utils.metrics import trajectory_score

SEARCHES = ("beam_search", "dvts")


@dataclass(frozen=True)
class SearchPlan:
    """How to search.

    num_beams: beams, or subtrees of DVTS. num_proposals: of each at every step. mode: one of
    SEARCHES. score_by: see utils.metrics.trajectory_score. lookahead: as in
    src.search.lookahead.look_ahead; 0: none.
    """

    num_beams: int
    num_proposals: int
    mode: str = "beam_search"
    score_by: str = "sum"
    lookahead: int | str = 0

    @property
    def num_slots(self):
        return self.num_beams * self.num_proposals

    @property
    def num_trees(self):
        """Groups of a question's slots whose proposals compete with each other."""
        return self.num_beams if self.mode == "dvts" else 1

    @property
    def num_survivors(self):
        """Trajectories that the search returns for each question."""
        return self.num_slots if self.mode == "dvts" else self.num_beams


@dataclass
class Beams:
    """Result of a search.

    trajectories: the survivors S of each question: of beam search the best first, of DVTS a
    subtree's leaves side by side, the best first. Leaves of a subtree that ended early are equal.
    rewards (Q, S, T): r_t of their thoughts, 0 where there is none. counts: what the search cost,
    as in src.search.best_of_n: latent_steps (prompts included), lookahead_steps, lookahead_tokens,
    and what the guide adds.
    """

    trajectories: Trajectories
    rewards: torch.Tensor
    counts: Counter

    @classmethod
    def join(cls, parts):
        """Those of all questions from those of some questions each."""
        return cls(
            Trajectories.join([part.trajectories for part in parts]),
            cat_steps([part.rewards for part in parts], dim=0),
            sum((part.counts for part in parts), Counter()),
        )


@torch.inference_mode()
def beam_search(model, guide, request, plan):
    """The trajectories that a search keeps for each question of ``request``, as Beams.

    n_samples of the request is ignored. guide: one of src.search.guides; plan: a SearchPlan. Where
    the model decides when to stop thinking, a beam that has ended stays, as one proposal, until
    better ones displace it. One dropout mask for a whole trajectory has no meaning here: a beam
    changes its slot, and with it its random numbers, at every step. A perturbed weight (svp,
    weight_noise) is the slot's, too: a beam continues under that of its new slot. As many questions
    are searched at once as memory allows.
    """
    request = replace(request, n_samples=plan.num_slots)
    parts = question_parts(request, min(rows_in_flight(model, request), guide.room(request)))
    return Beams.join([_beam_search(model, guide, part, plan) for _, part in parts])


def _beam_search(model, guide, request, plan):
    search = _Search(model, guide, request, plan)
    for step in range(1, request.latent_length + 1):
        if step > 1:
            search.propose(step)
        search.keep_best(is_last=step == request.latent_length)
        if bool(search.ended.all()):
            break
    return search.finish()


class _Search:
    """The slots of a search: R rows while proposals are scored, Q * B between the steps.

    state: a State. thoughts (R, t, D), rewards (R, t), ended (R,) bool: whether a slot's latent
    phase is over. duplicate (R,) bool: slots that hold the same ended beam as an earlier slot.
    scores (R,): of the proposals.
    """

    def __init__(self, model, guide, request, plan):
        self.model, self.request, self.plan = model, request, plan
        self.state = start(model, request)
        self.scorer = guide.start(request)
        self.rng_keys = self.state.rng_keys  # (R,) of the slots
        self.counts = Counter(latent_steps=len(self.rng_keys))
        self.thoughts = self.state.thought[:, None][:, :0]
        self.rewards = self.thoughts[..., 0].float()
        self.ended = self.duplicate = torch.zeros_like(self.rng_keys, dtype=torch.bool)
        self._judge(step=1, parents=None)

    def propose(self, step):
        """Thought number ``step`` of every slot: each beam has ``num_proposals`` continuations."""
        parents = torch.arange(len(self.rng_keys), device=self.rng_keys.device)
        parents = parents // self.plan.num_proposals  # (R,)
        hidden = self._read_beams(parents, step - 1)  # (R, D)
        self.ended = self.ended[parents]
        if self.model.stops_itself:
            self.ended = self.ended | ends_thinking(self.model, hidden)
            self.duplicate = _duplicates(self.ended, self.plan.num_proposals)
        thought = self.model.to_thought(hidden)
        state = self.state
        state.thought = self.request.sampling.next_thought(thought, self.rng_keys, step)  # (R, D)
        state.num_thoughts = torch.where(self.ended, state.num_thoughts, step)
        self.thoughts, self.rewards = self.thoughts[parents], self.rewards[parents]
        self._judge(step, parents)

    def _read_beams(self, parents, step):
        """Copies each beam into its slots; the hidden states (R, D) at its thought number ``step``.

        With dropout or a perturbed weight each slot reads the thought on its own; otherwise a beam
        reads it once.
        """
        sampling, alive = self.request.sampling, int((~self.ended).sum())
        if sampling.varies_passes:
            self._branch(parents)
            self.counts["latent_steps"] += alive * self.plan.num_proposals
            return read_thought(self.model, sampling, self.state, step)[0]
        hidden, _ = read_thought(self.model, sampling, self.state, step)  # (Q * B, D)
        self._branch(parents)
        self.counts["latent_steps"] += alive
        return hidden[parents]

    def _branch(self, parents):
        self.state = self.state.select(parents)
        self.state.rng_keys = self.rng_keys

    def _judge(self, step, parents):
        """Adds the new thoughts with their rewards; the scores of all slots."""
        state, plan = self.state, self.plan
        new, num_rewards = state.thought, state.num_thoughts  # (R, D), (R,)
        outlook = self._look_ahead(step) if plan.lookahead else None
        judged = self.scorer.judge(Proposals(new, parents, state.num_thoughts, outlook))
        if judged.ahead.shape[1]:  # the guide judges the thoughts that lie ahead, too
            num_rewards = num_rewards + outlook.num_ahead
        new = new.masked_fill(self.ended[:, None], 0)
        self.thoughts = torch.cat((self.thoughts, new[:, None]), dim=1)
        self._add_rewards(judged.reward)
        path = torch.cat((self.rewards, judged.ahead), dim=1)  # (R, t + K)
        self.scores = trajectory_score(path, num_rewards, plan.score_by, judged.answer)

    def _add_rewards(self, reward):
        """Writes a reward (R,) for the last thought of each slot, which may not be a new one."""
        last = self.state.num_thoughts[:, None] - 1  # (R, 1)
        self.rewards = torch.nn.functional.pad(self.rewards, (0, 1))  # (R, t)
        if not self.scorer.judges_ended:
            reward = torch.where(self.ended, self.rewards.gather(1, last)[:, 0], reward)
        self.rewards = self.rewards.scatter(1, last, reward[:, None].to(self.rewards.dtype))

    def _look_ahead(self, step):
        lookahead = (step, self.ended, self.plan.lookahead)
        outlook = look_ahead(self.model, self.request, self.state, *lookahead)
        written = sum(map(len, outlook.tokens or []))
        self.counts["lookahead_steps"] += outlook.num_forward_passes
        self.counts["lookahead_tokens"] += written
        return outlook

    def keep_best(self, is_last):
        """Drops all slots but the best of each group; the first of equals wins."""
        plan, scores = self.plan, self.scores.masked_fill(self.duplicate, float("-inf"))
        kept = plan.num_survivors if is_last else plan.num_beams
        scores = scores.view(len(self.request.prompts) * plan.num_trees, -1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : kept // plan.num_trees]
        first_slot = torch.arange(len(scores), device=scores.device) * scores.shape[1]
        self._keep((first_slot[:, None] + order).flatten())

    def _keep(self, rows):
        self.state = self.state.select(rows)
        self.thoughts, self.rewards = self.thoughts[rows], self.rewards[rows]
        self.ended = self.ended[rows]
        self.scorer.select(rows)

    def finish(self):
        """Decodes the answers of the survivors: the Beams."""
        survivors = len(self.request.prompts) * self.plan.num_survivors
        if len(self.state) < survivors:  # all subtrees ended early, each with one trajectory
            repeats = survivors // len(self.state)
            self._keep(torch.arange(survivors, device=self.ended.device) // repeats)
        if self.model.stops_itself:
            self._end_thinking()
        request = replace(self.request, n_samples=self.plan.num_survivors)
        trajectories = decode(self.model, request, self.state, self.thoughts)
        rewards = self.rewards.unflatten(0, (-1, request.n_samples))  # (Q, S, T)
        return Beams(trajectories, rewards, self.counts + self.scorer.counts)

    def _end_thinking(self):
        """Has the last thought of the beams at the limit read, as the engine does."""
        request, state = self.request, self.state
        alive = int((~self.ended).sum())
        if alive:
            self.counts["latent_steps"] += alive
            read_thought(self.model, request.sampling, state, request.latent_length)
        state.suffix.set_lengths(state.num_thoughts)
        state.thought = None


def _duplicates(ended, num_proposals):
    """Which slots (R,) have ended like an earlier slot of their beam: they hold equal thoughts."""
    per_beam = ended.view(-1, num_proposals)
    return (per_beam & (per_beam.cumsum(1) > 1)).flatten()
