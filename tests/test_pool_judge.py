"""The pool judge: what it reads, its scores and its loss, its training and its use."""

import json
import shutil
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from src.models.candidates import (
    MOST_CANDIDATES,
    Candidates,
    candidates_of,
    greedy_distances,
    read_candidates,
)
from src.models.pool_judge import PoolJudge, PoolJudgeConfig
from src.runs.figure_latent_rm import latent_rm_figures
from src.runs.finished_runs import finished_runs
from src.sampling import memory
from src.sampling.samplers import DETERMINISTIC
from src.sampling.trajectories import Request, pad_right
from src.search.bayesian_vote import sample_with_state
from src.search.confidence import answer_confidence
from src.search.greedy import Greedy, rerank_fields
from src.search.voting import aggregate
from src.training.losses.pool_judge import JudgeLoss
from src.training.model_card import model_card
from tests.commands import (
    assert_one_line_error,
    assert_success,
    command,
    infer_command,
    outputs,
    run_here,
    samples_of,
)
from tests.conftest import NOISE, PROMPTS, QUESTIONS

GREEDY = Request(PROMPTS, QUESTIONS, 1, 4, 5, 5, DETERMINISTIC)
POOL = replace(GREEDY, n_samples=6, sampling=NOISE)


def parse(ids):
    """The number in an answer: its first token, or None for an empty one."""
    return ids[0] if ids else None


def random_judge(generator, **config):
    """A judge of ``generator`` whose scores differ."""
    torch.manual_seed(2)
    config = {"hidden_size": 16, "num_layers": 1} | config
    sizes = (generator.config.num_hidden_layers, generator.config.hidden_size)
    judge = PoolJudge(
        PoolJudgeConfig(generator_layers=sizes[0], generator_width=sizes[1], **config)
    )
    torch.nn.init.normal_(judge.score.weight)
    return judge.eval()


def greedy_and_pool(model):
    """The greedy Trajectories, their State, and the pool."""
    greedy, state = sample_with_state(model, GREEDY)
    return greedy, state, sample_with_state(model, POOL)[0]


def candidates_of_question(model, greedy, pool, q, parse=parse):
    eos = model.config.eos_token_id
    thoughts = greedy.thoughts[q, 0, : greedy.num_thoughts[q, 0]]
    return candidates_of(
        [parse(answer) for answer in pool.tokens[q]],
        [row[row >= 0].tolist() for row in pool.answer_ids(q, eos)],
        greedy_distances(pool.thoughts[q], pool.num_thoughts[q], thoughts),
        parse(greedy.tokens[q][0]),
        greedy.tokens[q][0] + [eos] * greedy.finished[q][0],
    )


def batch_of(model, greedy, pool, questions):
    """The arguments of ``read_candidates`` for some questions."""
    candidates = [candidates_of_question(model, greedy, pool, q) for q in questions]
    thoughts = (greedy.thoughts[questions, 0], greedy.num_thoughts[questions, 0])
    prefix = model.read_prompts(*pad_right([PROMPTS[q] for q in questions], 0))
    return prefix, *thoughts, Candidates.stack(candidates)


@pytest.fixture(scope="module")
def sampled(backbone):
    model = backbone[0]
    return model, *greedy_and_pool(model)


def test_a_reading_equals_a_plain_forward_and_the_log_probabilities_of_the_reranking(sampled):
    model, greedy, state, pool = sampled
    prefix, thoughts, num_thoughts, candidates = batch_of(model, greedy, pool, [0, 1, 2])
    reading = read_candidates(model, prefix, thoughts, num_thoughts, candidates)
    assert candidates.exists.sum() > 4
    row, texts, questions = 0, [], []
    for q, numbers in enumerate(candidates.numbers):
        for k in range(len(numbers)):
            ids = candidates.ids[q, k][candidates.ids[q, k] >= 0].tolist()
            texts.append(ids)
            questions.append(q)
            states, log_prob = plain_reading(model, PROMPTS[q], greedy.thoughts_of(q)[0], ids)
            valid = reading.valid[row]
            assert reading.is_thought[row].sum() == num_thoughts[q]
            assert valid.sum() == num_thoughts[q] + len(ids)
            read = reading.states[row, valid]
            torch.testing.assert_close(read, states, rtol=1e-4, atol=1e-4)
            assert float(reading.log_probs[row]) == pytest.approx(log_prob, abs=1e-3)
            row += 1
    expected = answer_confidence(model, GREEDY, state, texts, questions)[:, 0]
    torch.testing.assert_close(reading.log_probs, expected, rtol=1e-4, atol=1e-3)


def plain_reading(model, prompt, thoughts, ids):
    """States (T + A, L + 1, D) and log p of one answer, by one forward over the whole text."""
    with torch.no_grad():
        embed = model.get_input_embeddings()
        answer = embed(torch.tensor([model.config.end_latent_token_id, *ids[:-1]]))
        x = torch.cat((embed(torch.tensor(prompt)), thoughts, answer))
        out = model.base_model(inputs_embeds=x[None], output_hidden_states=True)
        states = torch.stack(out.hidden_states, dim=2)[0, len(prompt) :]
        logits = model.lm_head(out.last_hidden_state[0, -len(ids) :]).float()
    return states, float(logits.log_softmax(-1)[range(len(ids)), ids].sum())


def test_reranking_reads_each_answer_once_however_the_pool_grew(sampled, monkeypatch):
    model, greedy, state, pool = sampled
    monkeypatch.setitem(memory.WORK_BYTES, "cpu", 1)  # a row at a time
    found, counters = [], [{size: Counter() for size in (1, 3, 6)} for _ in range(2)]
    for sizes, counter in zip(([1, 3, 6], [6]), counters, strict=True):
        of_greedy = Greedy(GREEDY, state, greedy)
        found.append(rerank_fields(model, of_greedy, pool, sizes, parse, counter))
    grown, whole = found
    tokens = [sum(counter[size]["rerank_tokens"] for size in counter) for counter in counters]
    assert grown["rerank_candidates"] == whole["rerank_candidates"]
    assert tokens[0] == tokens[1] > counters[0][1]["rerank_tokens"] > 0
    for q, numbers in enumerate(grown["rerank_candidates"]):
        first = {}
        for part in (greedy, pool):
            for ids, finished in zip(part.tokens[q], part.finished[q], strict=True):
                first.setdefault(parse(ids), ids + [model.config.eos_token_id] * finished)
        assert numbers == [number for number in first if number is not None]
        thoughts = greedy.thoughts_of(q)[0]
        plain = [plain_reading(model, PROMPTS[q], thoughts, first[n])[1] for n in numbers]
        for read in found:
            assert read["rerank_log_probs"][q] == pytest.approx(plain, abs=1e-3)


READS = {"both": {}, "votes": {"reads_states": False}, "states": {"reads_votes": False}}


@pytest.mark.parametrize("reads", READS)
def test_scores_depend_on_neither_the_batch_nor_the_order_of_candidates(
    sampled, reads, monkeypatch
):
    model, greedy, state, pool = sampled
    judge = random_judge(model, **READS[reads])
    whole = scores_of(judge, model, *batch_of(model, greedy, pool, [0, 1, 2]))
    for q in range(3):
        *read, candidates = batch_of(model, greedy, pool, [q])
        alone = scores_of(judge, model, *read, candidates)
        count = len(candidates.numbers[0])
        assert_close(whole[q], alone[0])
        assert alone[0, :count].isfinite().all() and (alone[0, count:] == -torch.inf).all()
        order = torch.randperm(MOST_CANDIDATES, generator=torch.Generator().manual_seed(q))
        moved = {
            field.name: getattr(candidates, field.name)[:, order]
            for field in fields(candidates)
            if field.name not in ("numbers", "n_samples")
        }
        again = scores_of(judge, model, *read, replace(candidates, **moved))
        assert_close(again[0], alone[0, order])
    for at_once in ("all questions", "one question"):
        if at_once == "one question":
            monkeypatch.setitem(memory.WORK_BYTES, "cpu", 1)
        judged, _ = judge.judge(model, state.prefix, greedy, pool, parse)
        for of_question, scores in zip(judged, whole.tolist(), strict=True):
            count = len(of_question["answers"])
            assert of_question["scores"] == pytest.approx(scores[:count], abs=2e-4)


def scores_of(judge, model, *batch):
    with torch.no_grad():
        return judge(read_candidates(model, *batch), batch[-1])


def assert_close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_question_without_any_answer_is_judged_beside_others_and_alone(sampled):
    model, greedy, state, pool = sampled
    judge = random_judge(model)
    *read, others = batch_of(model, greedy, pool, [0, 1, 2])
    nothing = candidates_of_question(model, greedy, pool, 0, parse=lambda ids: None)
    parts = [nothing, *(candidates_of_question(model, greedy, pool, q) for q in (1, 2))]
    scores = scores_of(judge, model, *read, Candidates.stack(parts))
    assert (scores[0] == -torch.inf).all()
    assert_close(scores[1:], scores_of(judge, model, *read, others)[1:])
    judged, tokens = judge.judge(model, state.prefix, greedy, pool, lambda ids: None)
    assert (judged, tokens) == ([{"answers": [], "scores": []}] * 3, 0)


@pytest.mark.quick
def test_candidates_by_hand():
    found = candidates_of(
        [7.0, 5.0, None, 5.0, 2.0],
        [[17, 1], [15, 1], [9], [25, 1], [12, 13, 1]],
        torch.tensor([1.0, 2.0, 5.0, 4.0, 3.0]),
        9.0,
        [19, 1],
    )
    assert found.numbers == [[5.0, 7.0, 2.0, 9.0]]  # by votes, then by the first; the greedy one
    assert found.ids[0, :4].tolist() == [[15, 1, -1], [17, 1, -1], [12, 13, 1], [19, 1, -1]]
    assert found.exists[0].tolist() == [True] * 4 + [False] * (MOST_CANDIDATES - 4)
    assert found.votes[0, :5].tolist() == pytest.approx([0.4, 0.2, 0.2, 0, 0])
    assert found.is_greedy[0, :5].tolist() == [False, False, False, True, False]
    assert found.distance[0, :4].tolist() == pytest.approx([1, 1 / 3, 1, 1])  # the mean is 3
    assert found.n_samples.tolist() == [5]
    many = [float(number) for number in range(MOST_CANDIDATES + 4)]
    ids = [[10 + int(number)] for number in many]
    for greedy, last in ((many[-1], many[-1]), (3.0, MOST_CANDIDATES - 1), (None, 15.0)):
        capped = candidates_of(many, ids, torch.ones(len(many)), greedy, [99])
        assert len(capped.numbers[0]) == MOST_CANDIDATES and capped.numbers[0][-1] == last
        texts = [99 if number == greedy else 10 + int(number) for number in capped.numbers[0]]
        assert capped.ids[0, :, 0].tolist() == texts  # the greedy text where there is one
        assert capped.votes.sum() * len(many) == pytest.approx(MOST_CANDIDATES)
    assert capped.is_greedy.dtype == torch.bool and not capped.is_greedy.any()


@pytest.mark.quick
def test_distances_are_over_the_steps_that_both_have():
    thoughts = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [9.0, 9.0]], [[0.0, 2.0], [0, 0], [0, 0]]])
    greedy = torch.zeros(2, 2)
    assert greedy_distances(thoughts, torch.tensor([3, 1]), greedy).tolist() == [3.0, 2.0]
    longer = torch.zeros(5, 2)
    of_three = (5 + 1 + 162**0.5) / 3
    expected = pytest.approx([of_three, 2.0])
    assert greedy_distances(thoughts, torch.tensor([3, 1]), longer).tolist() == expected


def test_the_loss_is_the_share_of_right_answers_in_mixed_questions(coconut):
    model = coconut[0]
    greedy, _, pool = greedy_and_pool(model)
    prefix, *of_greedy, candidates = batch_of(model, greedy, pool, [0, 1, 2])
    counts = candidates.exists.sum(1).tolist()
    q = counts.index(max(counts))
    judge = random_judge(model)
    loss = JudgeLoss(judge, model)
    tensors = {x.name: getattr(candidates, x.name) for x in fields(candidates)}
    del tensors["numbers"]
    corrects = candidates.exists.clone()  # without a wrong answer a question has no loss
    corrects[q, 1] = False
    corrects[q - 1] = False
    batch = (PROMPTS, *of_greedy, tensors)
    out = loss(*batch, corrects)
    scores = scores_of(judge, model, prefix, *of_greedy, candidates)
    shares = scores[q, : counts[q]].softmax(0)
    assert len(shares) > 2
    torch.testing.assert_close(out["loss"], -(1 - shares[1]).log())
    torch.testing.assert_close(out["scores"], scores)
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in judge.parameters() if p.grad is not None)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert loss(*batch, torch.zeros_like(corrects))["loss"] == 0


@pytest.mark.quick
def test_choosers_of_the_greedy_trajectory_by_hand():
    record = {
        "predictions": [4.0, None, 6.0, 8.0],
        "greedy": 5.0,
        "rerank_candidates": [5.0, 4.0, 6.0, 8.0],
        "rerank_log_probs": [-3.0, -2.0, -1.5, -0.5],
        "judged": {"2": {"answers": [4.0, 5.0], "scores": [0.1, 0.2]}},
    }
    chosen = [aggregate(record, n)["greedy_rerank"] for n in (1, 2, 3, 4)]
    assert chosen == [4.0, 4.0, 6.0, 8.0]  # 8 only where it was sampled
    assert aggregate(record | {"rerank_log_probs": [-1, -2, -2, -2]}, 4)["greedy_rerank"] == 5
    assert aggregate(record, 2)["pool_judge"] == 5.0
    assert "pool_judge" not in aggregate(record, 4)  # no view of that size
    nothing = {"predictions": [None], "greedy": None, "rerank_candidates": []}
    nothing |= {"rerank_log_probs": [], "judged": {"1": {"answers": [], "scores": []}}}
    assert set(aggregate(nothing, 1).values()) == {None}


TINY = "checkpoints/tiny-coconut"
DATA = ("--data_path", "data/tiny_valid.json", "--limit", 6)
SAMPLER = ("--sampling_by", "noise", "--noise_std", 1.0, "--max_new_tokens", 8)
SIZES = ("--report_n", 1, 2, 4)


def recipe(path, pool, **changes):
    """A YAML file of a short training."""
    values = {
        "output_dir": str(path.with_suffix("")), "model_id": TINY, "judges_pool": True,
        "train_pools": [str(pool)], "eval_pools": {"test_n_4": str(pool)}, "pool_sizes": [2, 4],
        "judge_width": 16, "learning_rate": 1e-3, "max_steps": 4, "eval_strategy": "steps",
        "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "logging_steps": 2,
        "per_device_train_batch_size": 4, "load_best_model_at_end": True,
        "metric_for_best_model": "test_n_4_recall_at_1",
    } | changes  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


def judge_command(judge, *flags):
    return command("infer_gpt2_rm", "--prm_id", judge, *flags)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an annotated pool, and the judge that was trained on it without a break."""
    folder = tmp_path_factory.mktemp("judge")
    assert_success(run_here(command(
        "annotate_data", "--data_path", "data/tiny_valid.json", "--limit", 24, "--n_samples", 4,
        "--n_samples_per_step", 0, *SAMPLER, "--save_path", folder, "--name", "pool",
    )))  # fmt: skip
    assert_success(run_here(command("train", recipe(folder / "x.yaml", folder / "pool"))))
    return folder


@pytest.fixture(scope="module")
def judged(trained, tmp_path_factory):
    """The folder of a run that samples pools and judges them."""
    folder = tmp_path_factory.mktemp("judged") / "x"
    flags = (*DATA, *SAMPLER, "--n_samples", 4, *SIZES, "--output_dir", folder)
    assert_success(run_here(judge_command(trained / "x", *flags)))
    return folder


def test_a_resumed_judge_has_the_weights_of_an_uninterrupted_one(trained, tmp_path):
    folder = shutil.copytree(trained / "x", tmp_path / "x")
    (folder / "model.safetensors").unlink()
    shutil.rmtree(folder / "checkpoint-4")
    started = json.loads((folder / "started.json").read_text())
    started["recipe"]["output_dir"] = str(folder)
    (folder / "started.json").write_text(json.dumps(started))
    assert_success(run_here(command("train", recipe(tmp_path / "x.yaml", trained / "pool"))))
    whole, resumed = (load_file(x / "model.safetensors") for x in (trained / "x", folder))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole["score.weight"].any()  # it begins at 0
    assert (folder / "README.md").read_text() == model_card(folder)


def test_every_size_of_a_pool_is_judged(trained, judged):
    for record in samples_of(judged):
        assert list(record["judged"]) == ["1", "2", "4"]
        for n, view in record["judged"].items():
            numbers = {x for x in record["predictions"][: int(n)] if x is not None}
            assert numbers <= set(view["answers"])  # and the greedy answer
            assert len(numbers) + 1 >= len(view["answers"]) == len(view["scores"])
    by_n = outputs(judged)[1]["by_n"]
    assert all("pool_judge" in measures for measures in by_n.values())
    metrics = json.loads((judged / "metrics.json").read_text())
    costs = metrics["speed"]["per_question"].values()
    assert [cost["greedy_trajectories"] for cost in costs] == [1, 1, 1]
    tokens = [cost["judge_tokens"] for cost in costs]
    assert 0 < tokens[0] <= tokens[1] <= tokens[2]
    assert latent_rm_figures(finished_runs(judged)) == []  # a judge rewards no trajectory


def test_a_saved_pool_is_judged_alike(trained, judged, tmp_path):
    """One question at a time, and the other run all questions at once."""
    flags = (*DATA, *SAMPLER, "--n_samples", 4, "--output_dir", tmp_path / "pool")
    assert_success(run_here(infer_command(*flags, "--save_latents", "true")))
    saved = ("--pool", tmp_path / "pool", *SIZES, "--output_dir", tmp_path / "saved")
    assert_success(run_here(judge_command(trained / "x", *saved)))
    by_n, of_judged = (outputs(path)[1]["by_n"] for path in (tmp_path / "saved", judged))
    for n, measures in of_judged.items():
        for key in ("pool_judge", "pool_judge_gain"):
            assert by_n[n][key] == measures[key]
    for record, expected in zip(samples_of(tmp_path / "saved"), samples_of(judged), strict=True):
        for n, view in expected["judged"].items():
            assert record["judged"][n]["answers"] == view["answers"]
            assert record["judged"][n]["scores"] == pytest.approx(view["scores"], abs=2e-3)


def test_what_a_judge_cannot_judge_is_a_one_line_error(trained, checkpoint, tmp_path):
    flags = (*DATA, *SAMPLER, "--output_dir", tmp_path / "out")
    beams = ("--prm_mode", "beam_search", "--num_beams", 2)
    result = run_here(judge_command(trained / "x", *flags, *beams))
    assert_one_line_error(result, "--prm_id", "can't guide --prm_mode beam_search")
    smaller = ("--model_id", checkpoint)
    codi = ("--model_type", "codi", "--model_id", "checkpoints/tiny-codi")
    for backbone, part in ((smaller, "the backbone has 3 layers"), (codi, "trained for coconut")):
        result = run_here(judge_command(trained / "x", *flags, *backbone))
        assert_one_line_error(result, part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"loss": {"bce": 1.0}}, "loss has no effect on a pool judge"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing has no effect"),
        ({"judges_pool": False}, "pool_sizes has no effect on a LatentRM"),
        ({"judge_width": 18}, "multiple of 4, not 18"),
        ({"pool_sizes": [0, 4]}, "at least 1"),
        ({"reads_states": False, "reads_votes": False}, "nothing is left to read"),
        ({"pool_sizes": [8]}, "4 trajectories a question, fewer than pool_sizes"),
        ({"model_type": "codi", "model_id": "checkpoints/tiny-codi"}, "thoughts of coconut"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_judge_s_recipe_is_one_line(trained, tmp_path, changes, part):
    result = run_here(command("train", recipe(tmp_path / "x.yaml", trained / "pool", **changes)))
    assert_one_line_error(result, part, after_progress=True)
