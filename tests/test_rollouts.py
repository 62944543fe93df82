"""Rollouts and answer likelihoods against plain ways to compute them."""

from dataclasses import replace
from itertools import chain, product

import pytest
import torch

from src.sampling import memory, rollouts
from src.sampling.engine import sample
from src.sampling.rollouts import annotate
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request, thought_mask
from src.search.bayesian_vote import LikelihoodPool, sample_with_state
from src.search.confidence import ConfidencePool
from tests.conftest import NOISE, PROMPTS, QUESTIONS, RANDOM
from tests.reference import continue_one, key_of, plain_log_probs, rollout_key

T, A, SEED = 4, 5, 5
SAMPLERS = {
    "noise": NOISE,
    "dropout": Sampling("dropout", dropout_p=0.3),
    "dropout_everywhere": Sampling(
        "dropout", dropout_p=0.2, dropout_embedding=True, dropout_attention=True
    ),
    "dropout_shared_prompt": Sampling("dropout", dropout_p=0.3, dropout_prompt=False),
    "svp+tokens": Sampling("svp+tokens", svp_alpha=0.5, top_p=0.9),
}


def sampler_for(model, name):
    """The Sampling of that name, without the dropout that the model does not have."""
    sampling = SAMPLERS[name]
    has_it = sampling.dropout_embedding and model.has_embedding_dropout
    return replace(sampling, dropout_embedding=has_it)


def request(sampling, n=3, questions=slice(None)):
    return Request(PROMPTS[questions], QUESTIONS[questions], n, T, A, SEED, sampling)


def is_right(q, ids):
    """An arbitrary rule, by which random answers are right about as often as not."""
    return sum(ids) % 3 == 1


def parse(ids):
    """The number in an answer: its length, or None for an empty one."""
    return len(ids) or None


@pytest.mark.parametrize("name", SAMPLERS)
def test_labels_equal_those_of_plain_rollouts(backbone, name):
    """The plain rollouts compute prompt and prefix anew, one by one."""
    model, sampling, m = backbone[0], sampler_for(backbone[0], name), 2
    labelled = annotate(model, request(sampling), m, is_right)
    trajectories = labelled.trajectories
    assert not labelled.skipped.all()
    for q in range(len(PROMPTS)):
        for n in (0, 2):
            assert is_right(q, trajectories.tokens[q][n]) == labelled.corrects[q, n]
            if labelled.skipped[q]:
                continue
            length = int(trajectories.num_thoughts[q, n])
            thoughts = trajectories.thoughts[q, n, :length]
            labels = plain_labels(model, sampling, q, n, thoughts, m)
            assert labelled.estimations[q, n, :length].tolist() == pytest.approx(labels)
            assert not labelled.estimations[q, n, length:].any()


def plain_labels(model, sampling, q, n, thoughts, m):
    """The share of right rollouts, of ``m``, from each prefix of thoughts (T, D)."""
    sampling = replace(sampling, dropout_answer=True)  # rollouts keep dropout to their end
    key, labels = key_of(SEED, QUESTIONS[q], n), []
    for t in range(1, len(thoughts) + 1):
        right = 0
        for k in range(m):
            prefix, new_key = list(thoughts[:t]), rollout_key(key, t, k)
            _, ids = continue_one(model, PROMPTS[q], prefix, key, new_key, T, A, sampling)
            right += is_right(q, ids)
        labels.append(right / m)
    return labels


@pytest.mark.parametrize("name", SAMPLERS)
def test_labels_do_not_depend_on_the_batch_or_the_memory(backbone, name, monkeypatch):
    sampling = sampler_for(backbone[0], name)
    whole = annotate(backbone[0], request(sampling), 3, is_right)
    monkeypatch.setitem(memory.WORK_BYTES, "cpu", 7 * 70_000)  # about 7 rows
    for q in range(3):
        one_question = request(sampling, questions=slice(q, q + 1))
        alone = annotate(backbone[0], one_question, 3, is_right)
        assert torch.equal(alone.corrects[0], whole.corrects[q])
        longest = alone.estimations.shape[2]
        assert torch.equal(alone.estimations[0], whole.estimations[q, :, :longest])
        assert not whole.estimations[q, :, longest:].any()


def test_annotation_labels_the_trajectories_of_the_engine(backbone):
    annotated = annotate(backbone[0], request(NOISE), 2, is_right).trajectories
    sampled = sample(backbone[0], request(NOISE))
    assert annotated.tokens == sampled.tokens
    assert torch.equal(annotated.thoughts, sampled.thoughts)


def test_no_rollouts_are_spent_where_all_or_none_are_right(backbone, monkeypatch):
    monkeypatch.setattr(rollouts, "_roll_out", None)
    for outcome in (True, False):
        labelled = annotate(backbone[0], request(NOISE), 4, lambda q, ids, right=outcome: right)
        assert labelled.skipped.all()
    by_outcome = annotate(backbone[0], request(NOISE), 0, is_right)
    assert not by_outcome.skipped.any()
    exists = thought_mask(by_outcome.trajectories.num_thoughts, by_outcome.estimations.shape[2])
    assert torch.equal(by_outcome.estimations, (by_outcome.corrects[..., None] & exists).float())


def test_questions_without_rollouts_may_have_more_thoughts_than_those_with():
    """CoLaR decides when to stop: here only question 1 is mixed, and it stops before the others."""
    model = RANDOM["colar"]()[0]

    def only_second(q, ids):
        return q == 1 and is_right(q, ids)

    longer = replace(request(NOISE), latent_length=12)
    labelled = annotate(model, longer, 2, only_second)
    num_thoughts = labelled.trajectories.num_thoughts
    assert labelled.skipped.tolist() == [True, False, True]
    assert num_thoughts[1].max() < num_thoughts.max()
    alone = replace(request(NOISE, questions=slice(1, 2)), latent_length=12)
    expected = annotate(model, alone, 2, is_right).estimations[0]  # (N, T')
    most = expected.shape[1]
    torch.testing.assert_close(labelled.estimations[1][:, :most], expected)
    assert not labelled.estimations[1][:, most:].any()


def sample_with_likelihoods(model, request):
    """The Trajectories of a request and the AnswerLikelihoods of its questions."""
    trajectories, state = sample_with_state(model, request)
    pool = LikelihoodPool(model, parse, len(request.prompts))
    pool.add(request, state, trajectories)
    return trajectories, pool.likelihoods()


def sample_with_confidence(model, request):
    """What a ConfidencePool of a request holds: {key: for each question a list}."""
    trajectories, state = sample_with_state(model, request)
    pool = ConfidencePool(model)
    pool.add(request, state, trajectories)
    answers = zip(chain(*trajectories.tokens), chain(*trajectories.finished), strict=True)
    assert pool.tokens_read == sum(len(ids) + finished for ids, finished in answers)
    return pool.fields()


@pytest.mark.parametrize(
    ("name", "answer"),
    [*((name, False) for name in SAMPLERS), ("dropout", True), ("dropout_shared_prompt", True)],
)
def test_answer_likelihoods_do_not_depend_on_the_batch_or_the_memory(
    backbone, name, answer, monkeypatch
):
    model = backbone[0]
    sampling = replace(sampler_for(model, name), dropout_answer=answer)
    trajectories, likelihoods = sample_with_likelihoods(model, request(sampling))
    confidence = sample_with_confidence(model, request(sampling))
    assert trajectories.tokens == sample(model, request(sampling)).tokens
    monkeypatch.setitem(memory.WORK_BYTES, "cpu", 1)  # a row at a time
    for q, whole in enumerate(likelihoods):
        numbers = [parse(ids) for ids in trajectories.tokens[q]]
        assert whole.answers == list(dict.fromkeys(filter(None, numbers)))
        one_question = request(sampling, questions=slice(q, q + 1))
        _, (alone,) = sample_with_likelihoods(model, one_question)
        torch.testing.assert_close(alone.log_probs, whole.log_probs, rtol=1e-4, atol=1e-4)
        for key, (values,) in sample_with_confidence(model, one_question).items():
            assert values == pytest.approx(confidence[key][q], abs=2e-4)
        # The first trajectory's text stands for its number, so that both reread the same answer.
        firsts = [numbers.index(number) for number in whole.answers]
        own = [whole.log_probs[n, k].item() for k, n in enumerate(firsts)]
        read = [confidence["answer_log_probs"][q][n] for n in firsts]
        assert read == pytest.approx(own, abs=2e-4)


def test_answer_likelihoods_equal_a_plain_forward_over_the_whole_text(backbone):
    model = backbone[0]
    trajectories, likelihoods = sample_with_likelihoods(model, request(NOISE))
    for q, of_question in enumerate(likelihoods):
        numbers = [parse(ids) for ids in trajectories.tokens[q]]
        for k, number in enumerate(of_question.answers):
            first = numbers.index(number)
            end_of_text = [model.config.eos_token_id] * trajectories.finished[q][first]
            text = trajectories.tokens[q][first] + end_of_text
            for n in range(3):
                length = int(trajectories.num_thoughts[q, n])
                thoughts = trajectories.thoughts[q, n, :length]
                plain = plain_log_probs(model, PROMPTS[q], thoughts, text)  # (A, V)
                plain = plain.gather(1, torch.tensor(text)[:, None]).sum()
                torch.testing.assert_close(
                    of_question.log_probs[n, k], plain.float(), rtol=1e-3, atol=1e-3
                )


def test_self_certainty_is_the_divergence_of_the_uniform_distribution(backbone):
    """Kang et al. 2025: the mean over tokens of KL(uniform || p), by a plain forward pass."""
    model = backbone[0]
    trajectories = sample(model, request(NOISE))
    confidence = sample_with_confidence(model, request(NOISE))
    for q, n in product(range(3), range(3)):
        length = int(trajectories.num_thoughts[q, n])
        end_of_text = [model.config.eos_token_id] * trajectories.finished[q][n]
        text = trajectories.tokens[q][n] + end_of_text
        plain = plain_log_probs(model, PROMPTS[q], trajectories.thoughts[q, n, :length], text)
        uniform = torch.full_like(plain, 1 / plain.shape[1])
        divergence = (uniform * (uniform.log() - plain)).sum(1).mean()
        assert confidence["self_certainties"][q][n] == pytest.approx(divergence.item(), abs=1e-3)


def test_answer_likelihoods_of_a_larger_pool_begin_with_those_of_a_smaller(backbone):
    _, small = sample_with_likelihoods(backbone[0], request(NOISE, n=2))
    _, large = sample_with_likelihoods(backbone[0], request(NOISE, n=6))
    for a, b in zip(small, large, strict=True):
        count = len(a.answers)
        assert b.answers[:count] == a.answers
        torch.testing.assert_close(b.log_probs[:2, :count], a.log_probs, rtol=1e-4, atol=1e-4)
