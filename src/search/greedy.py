"""What a question's greedy trajectory says of the answers in its pool.

Sampled trajectories propose answers, and the greedy one, which thinks without perturbation, says
how probable each of them is. Its own answer is one more candidate.

Shapes: Q questions, K candidates of a question.
"""

from collections import Counter
from dataclasses import dataclass, replace

from src.sampling.compilation import timed_apart
from src.sampling.samplers import DETERMINISTIC
from src.sampling.state import State
from src.sampling.trajectories import Request, Trajectories
from src.search.bayesian_vote import new_texts, sample_with_state
from src.search.best_of_n import count_trajectories
from src.search.confidence import answer_confidence
from utils.progress import timed


@dataclass
class Greedy:
    """The greedy trajectories of Q questions, and their State before the answers."""

    request: Request
    state: State
    trajectories: Trajectories

    def numbers(self, parse):
        """The number in each greedy answer, or None. parse(ids): the same of token ids."""
        return [parse(answers[0]) for answers in self.trajectories.tokens]


def think_greedily(model, request, counter):
    """The Greedy of a request's questions, counted in ``counter`` under names with ``greedy_``."""
    spent = Counter()
    request = replace(request, n_samples=1, first_sample=0, sampling=DETERMINISTIC)
    with timed_apart(model, counter), timed(counter, "greedy_seconds"):
        trajectories, state = sample_with_state(model, request)
        count_trajectories(model, request, spent, trajectories)
    counter.update({f"greedy_{name}": number for name, number in spent.items()})
    return Greedy(request, state, trajectories)


def rerank_fields(model, greedy, trajectories, sizes, parse, counters):
    """{key: a value for each question} of pools of Trajectories that grew through ``sizes``.

    "rerank_candidates": the K numbers in the greedy answer and the pool's. "rerank_log_probs": log
    p(text of the candidate, end-of-text | greedy thoughts), K floats; the text is the greedy one,
    or that of the first trajectory with this number. parse(ids): the number in an answer. The
    counter of each size gets the "rerank_tokens" and "rerank_seconds" of the answers that are new
    at this size.
    """
    questions, eos = greedy.request.prompts, model.config.eos_token_id
    texts, log_probs = [{} for _ in questions], [[] for _ in questions]
    for size in sizes:
        with timed_apart(model, counters[size]), timed(counters[size], "rerank_seconds"):
            new = []  # (question, token ids) of the answers that were not read yet
            for part in (greedy.trajectories, trajectories.first(size)):
                for q, answers in enumerate(zip(part.tokens, part.finished, strict=True)):
                    of_question = new_texts(parse, eos, texts[q], *answers)
                    texts[q] |= of_question
                    new += [(q, ids) for ids in of_question.values()]
            values = _log_probs(model, greedy, new)
        counters[size]["rerank_tokens"] += sum(len(ids) for _, ids in new)
        for (q, _), value in zip(new, values, strict=True):
            log_probs[q].append(round(value, 4))
    return {
        "rerank_candidates": [list(of_question) for of_question in texts],
        "rerank_log_probs": log_probs,
    }


def _log_probs(model, greedy, answers):
    """log p, a list, of (question, token ids) pairs after the questions' greedy thoughts."""
    if not answers:
        return []
    questions, texts = zip(*answers, strict=True)
    return answer_confidence(model, greedy.request, greedy.state, texts, questions)[:, 0].tolist()


def judge_pools(judge, model, greedy, trajectories, sizes, parse, counters):
    """{size: the judge's view of the first so many trajectories} of each question, for ``sizes``.

    judge: a PoolJudge (src.models.pool_judge), whose ``judge`` gives the views. The counter of a
    size gets by how much its tokens and seconds exceed those of the size before.
    """
    views, before = [{} for _ in greedy.request.prompts], Counter()
    for size in sizes:
        spent = Counter()
        with timed_apart(model, spent), timed(spent, "judge_seconds"):
            pool = (greedy.trajectories, trajectories.first(size))
            judged, spent["judge_tokens"] = judge.judge(model, greedy.state.prefix, *pool, parse)
        counters[size].update({name: spent[name] - before[name] for name in spent})
        before = spent
        for view, of_question in zip(views, judged, strict=True):
            view[str(size)] = of_question
    return views
