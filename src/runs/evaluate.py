"""Evaluation on a data file: sampling and voting, best-of-N, searches.

MODES has a function for each way to answer a batch of questions: function(evaluation, batch)
returns their records.
"""

import json
from collections import Counter, defaultdict
from copy import deepcopy
from pathlib import Path

import safetensors.torch
import torch
from accelerate.utils import broadcast_object_list, gather_object

from src.models.loading import checkpoint_files
from src.runs.job import Job
from src.runs.report import print_report, print_reward_report, print_stopped_report
from src.sampling.compilation import timed_apart
from src.sampling.trajectories import Trajectories
from src.search.beam_search import beam_search
from src.search.best_of_n import (
    count_answers,
    num_scored,
    rewards_of_thoughts,
    sample_pool,
    sample_until_decided,
    score_pools,
    score_trajectories,
)
from src.search.choosers import trajectory_scores
from src.search.diversity import thought_distances
from src.search.greedy import judge_pools, rerank_fields, think_greedily
from src.search.guides import ANSWER_GUIDES, RewardGuide
from src.search.voting import measure, measure_search, measure_stopped
from utils import records
from utils.answers import is_right
from utils.errors import UserError
from utils.files import sha256, write_bytes, write_json
from utils.metrics import best_of_n, majority_vote
from utils.progress import timed

RECORDS_FORMAT = 2  # of samples.jsonl


class Evaluation(Job):
    """A run of src.infer_gpt2 or src.infer_llama: it samples and votes.

    counters: what the pools of this process and session cost (src.search.best_of_n).
    """

    outputs = (*records.PATTERNS, "latents/*.safetensors", "metrics.json")

    def __init__(self, arguments, processes, loader):
        super().__init__(arguments, processes, loader)
        self.done = {} if arguments.overwrite else records.read(self.folder)
        if not set(self.done) <= set(range(len(self.rows))):
            fault = "holds samples of other questions"
            raise UserError(f"{self.folder}: {fault}; use --overwrite true")
        self.counters = defaultdict(Counter)
        self.computed = 0  # questions of this process and session, those done before included
        self.answered = self.voted = self.covered = 0  # new ones

    @property
    def mode(self):
        """A key of MODES."""
        return "sample" if self.arguments.stop_error is None else "stopped"

    def fingerprint(self):
        return super().fingerprint() | {"records_format": RECORDS_FORMAT}

    @property
    def finished(self):
        return len(self.done) == len(self.rows)

    @property
    def trajectories(self):
        return (len(self.rows) - len(self.done)) * self.arguments.n_samples

    def open(self):
        """Prepares the folder and tells all processes what is done, so that they share the rest."""
        super().open()
        done = records.gather(self.folder) if self.processes.is_main_process else None
        (self.done,) = broadcast_object_list([done])

    def batches(self):
        return self.by_length(range(len(self.rows)))

    def work_on(self, unit):
        counters = deepcopy(self.counters)
        try:
            new = MODES[self.mode](self, unit)
        except Exception:
            self.counters = counters  # the unit may be tried again
            raise
        new = [r for r in new if r["idx"] not in self.done]
        records.append(self.folder, self.processes.process_index, new)
        self.computed += len(unit)
        self.answered += len(new)
        self.voted += sum(is_right(r["vote"], r["answer"]) for r in new)
        self.covered += sum(any(r["correct"]) for r in new)
        vote, coverage = (100 * hits / self.answered for hits in (self.voted, self.covered))
        return f"vote {vote:.1f} %, coverage {coverage:.1f} %"

    def finish(self):
        """Gathers all processes' records, checks them and writes metrics.json, which it returns."""
        sessions = gather_object([(self.computed, {k: dict(v) for k, v in self.counters.items()})])
        if not self.processes.is_main_process:
            return None
        done = records.gather(self.folder)
        if sorted(done) != list(range(len(self.rows))):
            fault = f"{len(done)} of {len(self.rows)} questions are done"
            raise UserError(f"{self.folder}: {fault}; run again to go on")
        measures = self.measure([done[i] for i in sorted(done)])
        path, speed = self.folder / "metrics.json", speed_of(sessions)
        if not speed and path.exists():  # nothing was left to answer: keep the last session's
            speed = json.loads(path.read_text(encoding="utf-8"))["speed"]
        metrics = {"questions": len(done)} | measures | {"speed": speed}
        write_json(path, metrics)
        return metrics

    def parse(self, ids):
        """The number in an answer's token ids, or None."""
        model, tokenizer = self.backbone()
        return model.parse_answer(tokenizer.decode(ids, skip_special_tokens=True))

    def measure(self, all_records):
        if self.mode == "stopped":
            return measure_stopped(all_records, self.arguments.n_samples)
        return measure(all_records, self.arguments.report_n)

    def report(self, metrics):
        tell = print_stopped_report if self.mode == "stopped" else print_report
        tell(metrics, self.folder)


class RewardEvaluation(Evaluation):
    """A run of src.infer_gpt2_rm or src.infer_llama_rm: it chooses by LatentRM."""

    trajectory_cost = 3.5

    def __init__(self, arguments, processes, loader):
        super().__init__(arguments, processes, loader)
        if arguments.pool is not None:
            self.pool = read_pool(arguments.pool, self.run_folder.fingerprint)

    @property
    def mode(self):
        return "saved_pool" if self.arguments.pool else self.arguments.prm_mode

    def fingerprint(self):
        if self.arguments.prm_id is None:
            return super().fingerprint()
        files = checkpoint_files("rm", self.arguments.prm_id)
        return super().fingerprint() | {"prm_sha256": sha256(files)}

    def prepare(self):
        if self.mode != "saved_pool":
            super().prepare()
            return
        if self.prompts is None:  # those of the pool, whose files are thus found to be there
            paths = [records.latents_path(self.arguments.pool, i) for i in range(len(self.pool))]
            self.prompts = [records.read_latents(path)["input_ids"].numpy() for path in paths]
        self.limit_memory()

    def models(self):
        """Those that share the memory; a pool judge is small."""
        models = super().models()
        if self.arguments.prm_id is None:
            return models
        reward_model = self.reward_model()
        if not reward_model.judges_pools:
            return [*models, reward_model]
        if self.mode not in ("best_of_n", "saved_pool"):
            fault = f"judges whole pools, it can't guide --prm_mode {self.mode}"
            raise UserError(f"--prm_id {self.arguments.prm_id}: {fault}; choose a LatentRM")
        if self.arguments.score_by != "sum":
            fault = f"--score_by {self.arguments.score_by} has no effect with a pool judge"
            raise UserError(f"--prm_id {self.arguments.prm_id}: {fault}; leave it out")
        return models

    def reward_model(self):
        """The LatentRM, after a check that it suits the backbone."""
        self.backbone()
        return self.loader.reward_model(self.arguments.prm_id, self.arguments.model_dtype)

    def guide(self, plan):
        """What judges the prefixes of a search."""
        if self.arguments.guide == "rm":
            return RewardGuide(self.reward_model(), plan.lookahead)
        return ANSWER_GUIDES[self.arguments.guide](self.backbone()[0], self.parse)

    def measure(self, all_records):
        args = self.arguments
        if args.searches:
            return measure_search(all_records, args.prm_mode, args.score_by)
        return measure(all_records, args.report_n, args.score_by)

    def report(self, metrics):
        print_reward_report(metrics, self.folder)


def sample_and_vote(evaluation, batch):
    """Records of a pool that is sampled at once."""
    arguments = evaluation.arguments
    trajectories, fields = _sample_pool(evaluation, batch, [arguments.n_samples])
    new = _new_records(evaluation, batch, trajectories, fields)
    if arguments.save_latents:
        for q, record in enumerate(new):
            _save_latents(evaluation, record, trajectories, q)
    return new


def sample_and_score(evaluation, batch):
    """Records of a pool with rewards; it grows through the sizes that are reported."""
    sizes = sorted({*evaluation.arguments.report_n, evaluation.arguments.n_samples})
    pool = _sample_pool(evaluation, batch, sizes, evaluation.reward_model())
    return _new_records(evaluation, batch, *pool)


def sample_until_all_decided(evaluation, batch):
    """Records of pools that stopped when their votes were decided."""
    arguments, (model, tokenizer) = evaluation.arguments, evaluation.backbone()
    answers = sample_until_decided(
        *(model, evaluation.request(batch), arguments.stop_error, evaluation.parse),
        evaluation.counters[arguments.n_samples],
    )
    pairs = zip(batch, answers, strict=True)
    texts = {i: tokenizer.batch_decode(ids, skip_special_tokens=True) for i, ids in pairs}
    return [_record(i, evaluation.rows[i], texts[i], model.parse_answer) for i in batch]


def _sample_pool(evaluation, batch, sizes, reward_model=None):
    (model, _), arguments = evaluation.backbone(), evaluation.arguments
    request = evaluation.request(batch)
    judges = reward_model is not None and reward_model.judges_pools
    pool = sample_pool(
        *(model, request, sizes, evaluation.counters),
        *(evaluation.parse if arguments.bayesian_vote else None, None if judges else reward_model),
        arguments.signals,
    )
    trajectories, fields = pool
    fields |= _greedy_views(
        evaluation, request, trajectories, sizes, reward_model if judges else None
    )
    if request.n_samples > 1:
        distances = thought_distances(trajectories.thoughts, trajectories.num_thoughts)
        fields["thought_distance"] = distances
    return trajectories, fields


def _greedy_views(evaluation, request, trajectories, sizes, judge):
    """What the greedy trajectories say of pools: {key: a value for each question}."""
    (model, _), signals = evaluation.backbone(), evaluation.arguments.signals
    if not signals and judge is None:
        return {}
    counters, parse = evaluation.counters, evaluation.parse
    greedy = think_greedily(model, request, counters[sizes[0]])
    fields, pools = {"greedy": greedy.numbers(parse)}, (greedy, trajectories, sizes)
    if signals:
        fields |= rerank_fields(model, *pools, parse, counters)
    if judge is not None:
        fields["judged"] = judge_pools(judge, model, *pools, parse, counters)
    return fields


def search_beams(evaluation, batch):
    """Records of what a search returns; the vote is the answer of the best of it."""
    arguments, (model, _) = evaluation.arguments, evaluation.backbone()
    request, plan = evaluation.request(batch), arguments.plan()
    counter = evaluation.counters[plan.num_survivors]
    with timed_apart(model, counter):
        beams = beam_search(model, evaluation.guide(plan), request, plan)
        trajectories = beams.trajectories
        if arguments.guide == "rm" and evaluation.reward_model().rewards_answer:
            # The search keeps the rewards of thoughts, not those of answers.
            eos, reward_model = model.config.eos_token_id, evaluation.reward_model()
            fields = score_trajectories(reward_model, request.prompts, trajectories, eos)
            counter.update(reward_steps=num_scored(reward_model, trajectories))
        else:
            fields = {"scores": rewards_of_thoughts(beams.rewards, trajectories.num_thoughts)}
    counter.update(beams.counts)
    count_answers(counter, trajectories)
    new = _new_records(evaluation, batch, trajectories, fields)
    for record in new:
        scores = trajectory_scores(record, arguments.score_by)
        record["vote"] = best_of_n(record["predictions"], scores)
    return new


def score_saved_pool(evaluation, batch):
    """Records with rewards from a run of src.infer_gpt2 --save_latents true."""
    new, counter = [], evaluation.counters[evaluation.arguments.n_samples]
    for i in batch:
        path, record = records.latents_path(evaluation.arguments.pool, i), evaluation.pool[i]
        latents = records.read_latents(path)
        if latents["corrects"].tolist() != record["correct"]:
            raise UserError(f"{path}: does not belong to samples.jsonl; sample the pool again")
        if evaluation.reward_model().judges_pools:
            fields = _judge_saved(evaluation, i, latents)
        else:
            with timed(counter, "seconds"), timed(counter, "reward_seconds"):
                fields = score_pools(
                    evaluation.reward_model(),
                    [evaluation.prompts[i].tolist()],
                    latents["latent_embeds"][None],
                    latents["latent_lengths"][None],
                    [latents["answer_ids"]],
                )
        new.append(record | {key: values[0] for key, values in fields.items()})
    return new


def _judge_saved(evaluation, i, latents):
    """The judge's views of the pool of question i, of which ``latents`` were saved."""
    model, _ = evaluation.backbone()
    ids, eos = latents["answer_ids"], model.config.eos_token_id
    finished = (ids == eos).any(1)  # (N,)
    tokens = [[t for t in row if t not in (-1, eos)] for row in ids.tolist()]
    pool = (latents["latent_embeds"][None], latents["latent_lengths"][None])
    trajectories = Trajectories(*pool, [tokens], [finished.tolist()])
    sizes, counters = evaluation.arguments.report_n, evaluation.counters
    greedy = think_greedily(model, evaluation.request([i]), counters[sizes[0]])
    judge, parse = evaluation.reward_model(), evaluation.parse
    judged = judge_pools(judge, model, greedy, trajectories, sizes, parse, counters)
    return {"greedy": greedy.numbers(parse), "judged": judged}


MODES = {
    "sample": sample_and_vote,
    "stopped": sample_until_all_decided,
    "best_of_n": sample_and_score,
    "beam_search": search_beams,
    "dvts": search_beams,
    "saved_pool": score_saved_pool,
}


def _new_records(evaluation, batch, trajectories, fields):
    """What samples.jsonl holds of each question of a batch."""
    model, tokenizer = evaluation.backbone()
    new = []
    for q, i in enumerate(batch):
        texts = tokenizer.batch_decode(trajectories.tokens[q], skip_special_tokens=True)
        record = _record(i, evaluation.rows[i], texts, model.parse_answer)
        new.append(record | {key: values[q] for key, values in fields.items()})
    return new


def _record(idx, row, texts, parse_answer):
    """The record of one question, from its N answer texts."""
    predictions = [parse_answer(text) for text in texts]
    return {
        "idx": idx,
        "question": row["question"],
        "answer": row["answer"],
        "texts": texts,
        "predictions": predictions,
        "correct": [is_right(p, row["answer"]) for p in predictions],
        "vote": majority_vote(predictions),
    }


def _save_latents(evaluation, record, trajectories, q):
    model, _ = evaluation.backbone()
    idx = record["idx"]
    tensors = {
        "input_ids": torch.tensor(evaluation.prompts[idx], dtype=torch.int64),  # (L,)
        "answer_ids": trajectories.answer_ids(q, model.config.eos_token_id),  # (N, A)
        "latent_embeds": trajectories.thoughts_of(q).float().cpu().contiguous(),  # (N, T, D)
        "latent_lengths": trajectories.num_thoughts[q].contiguous(),  # (N,)
        "corrects": torch.tensor(record["correct"]),  # (N,)
    }
    write_bytes(records.latents_path(evaluation.folder, idx), safetensors.torch.save(tensors))


def read_pool(folder, fingerprint):
    """The records of a saved pool, in order, for the run of this fingerprint.

    Raises UserError when the pool is not whole or was made from other questions or another
    backbone.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    for key, what in (("data_sha256", "question file"), ("model_sha256", "backbone")):
        if config.get(key) != fingerprint[key]:
            raise UserError(f"--pool {folder}: its {what} has changed since; sample the pool again")
    pool, total = records.read(folder), config.get("questions", 0)
    if not pool or sorted(pool) != list(range(total)):
        raise UserError(f"--pool {folder}: {len(pool)} of {total} questions; finish it first")
    return [pool[i] for i in sorted(pool)]


def speed_of(sessions):
    """The "speed" of metrics.json, from (questions, counters) of each process; {} for no question.

    per_question: {size of the pool: what a question costs}, all steps up to that size. seconds are
    those of the process that took longest, without its compile_seconds.
    """
    questions = sum(count for count, _ in sessions)
    if not questions:
        return {}
    counters = [by_size for _, by_size in sessions]
    seconds, compiling = (_longest(counters, name) for name in ("seconds", "compile_seconds"))
    total, cost = Counter(), {}
    for size in sorted(set().union(*counters)):
        total += sum((Counter(by_size.get(size, {})) for by_size in counters), Counter())
        parts = sorted(total.items())
        cost[str(size)] = {k: round(n / questions, 4) for k, n in parts if k != "compile_seconds"}
    rates = {f"{k}_per_second": round(total[k] / seconds, 1) for k in ("latent_steps", "tokens")}
    times = {"seconds": round(seconds, 2)}
    if compiling:
        times["compile_seconds"] = round(compiling, 2)
    return times | rates | {"per_question": cost}


def _longest(counters, name):
    """The most seconds of a kind that a process spent."""
    return max(sum(counter.get(name, 0) for counter in of_one.values()) for of_one in counters)
