"""What guides a search: a LatentRM, or the generator itself without any training.

A guide has ``start(request)``, which gives the scorer of a search's rows, and ``room(request)``,
how many rows it may hold at once. A scorer has ``judge(proposals)``, which gives a Judgement;
``judges_ended``, whether that is also one of prefixes whose latent phase is over; ``select(rows)``,
which keeps some rows; and ``counts``, what it cost so far, as in src.search.best_of_n.

Shapes: R proposals, N of each of Q questions, K further thoughts of a lookahead, A answer tokens.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from src.sampling.memory import rows_in_flight, rows_within
from src.sampling.trajectories import Trajectories
from src.search.bayesian_vote import LikelihoodPool
from src.search.confidence import answer_confidence
from src.search.lookahead import ANSWER, Outlook
from src.search.prefix_scorer import PrefixScorer

LEAST = -100.0  # log-probability of an answer that has no number, and the least of all answers


@dataclass
class Proposals:
    """R prefixes of thoughts, each with a new last one.

    thoughts (R, D): the new ones. parents (R,): rows of the step before that they continue, None at
    the first thought. num_thoughts (R,): thoughts of the prefix; fewer than the number of the step
    where the latent phase has ended, and the new thought is none. outlook: None without lookahead.
    """

    thoughts: torch.Tensor
    parents: torch.Tensor | None
    num_thoughts: torch.Tensor
    outlook: Outlook | None


@dataclass
class Judgement:
    """reward (R,) of the new thoughts. With lookahead also ahead (R, K), the rewards of the
    thoughts that lie ahead, and the reward of the answer, (R,) or 0."""

    reward: torch.Tensor
    ahead: torch.Tensor
    answer: torch.Tensor | float = 0.0


class RewardGuide:
    """A LatentRM (src.models.latent_rm), by its rewards of thoughts.

    lookahead: that of the search. With ANSWER the model must score answers; its reward of the
    decoded answer counts, too.
    """

    def __init__(self, reward_model, lookahead=0):
        self.reward_model, self.lookahead = reward_model, lookahead

    def start(self, request):
        return _RewardScorer(self.reward_model, request, self._capacity(request))

    def _capacity(self, request):
        """Positions of a row: its thoughts, the end-of-thinking token, the answer to its end."""
        answer = request.max_new_tokens + 2 if self.lookahead == ANSWER else 0
        return request.latent_length + answer

    def room(self, request):
        longest, capacity = max(map(len, request.prompts)), self._capacity(request)
        new = capacity if self.lookahead else 1
        return rows_within(self.reward_model, capacity, new, longest, request.n_samples)


class _RewardScorer:
    """The PrefixScorer of one search."""

    judges_ended = False

    def __init__(self, reward_model, request, capacity):
        self.prefixes = PrefixScorer(reward_model, request.prompts, capacity)

    @property
    def counts(self):
        return Counter(reward_steps=self.prefixes.num_positions)

    def judge(self, proposals):
        reward = self.prefixes.extend(proposals.thoughts, proposals.parents)  # (R,)
        if proposals.outlook is None:
            return Judgement(reward, reward[:, None][:, :0])
        return Judgement(reward, *self.prefixes.look(proposals.outlook, proposals.num_thoughts))

    def select(self, rows):
        self.prefixes.select(rows)


class _AnswerGuide:
    """Base of the guides that need no training: a prefix is worth what its decoded answer is.

    parse(ids): the number in an answer's token ids, or None. The guide is its own scorer.
    """

    judges_ended = True

    def __init__(self, model, parse):
        self.model, self.parse, self.counts = model, parse, Counter()

    def start(self, request):
        self.counts = Counter()
        return self

    def room(self, request):
        return rows_in_flight(self.model, request)

    def judge(self, proposals):
        values = self.values(proposals.outlook).to(self.model.device).clamp(min=LEAST)  # (R,)
        return Judgement(values, values[:, None][:, :0])

    def select(self, rows):
        pass


class LikelihoodGuide(_AnswerGuide):
    """log p(answer, end-of-text | trajectory) of each proposal's own answer."""

    def values(self, outlook):
        """(R,) of an Outlook with answers."""
        answers = outlook.answer_ids(self.model.config.eos_token_id)
        values = answer_confidence(self.model, outlook.request, outlook.state, answers)[:, 0]
        self.counts["candidate_tokens"] += sum(map(len, answers))
        parsed = torch.tensor([self.parse(ids) is not None for ids in outlook.tokens])
        return values.where(parsed.to(values.device), LEAST)


class AgreementGuide(_AnswerGuide):
    """The proposals judge each other, as in the Bayesian vote: the log of the mean, over all N
    proposals of the question, of p(answer | the proposal's trajectory)."""

    def values(self, outlook):
        """(R,) of an Outlook with answers."""
        request, num_questions = outlook.request, len(outlook.request.prompts)
        tokens, finished = (_split(x, num_questions) for x in (outlook.tokens, outlook.finished))
        pool = LikelihoodPool(self.model, self.parse, num_questions)
        pool.add(request, outlook.state, Trajectories(None, None, tokens, finished))
        self.counts["candidate_tokens"] += pool.tokens_read
        values = []
        for question, answers in zip(pool.likelihoods(), tokens, strict=True):
            means = question.log_probs.double().exp().mean(0).log().tolist()  # (K,)
            value = dict(zip(question.answers, means, strict=True))
            values += [value.get(self.parse(ids), LEAST) for ids in answers]
        return torch.tensor(values)


ANSWER_GUIDES = {"likelihood": LikelihoodGuide, "agreement": AgreementGuide}
GUIDES = ("rm", *ANSWER_GUIDES)


def _split(rows, num_questions):
    """A list of equal size for each question."""
    size = len(rows) // num_questions
    return [rows[first : first + size] for first in range(0, len(rows), size)]
