"""How a batch of questions is answered: by sampling and voting, by best-of-N, by beam search."""

import json
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import safetensors.torch
import torch
from torch.nn.functional import pad

from src.inference.aggregation import scores_of
from src.inference.questions import check_questions
from src.models.latent_rm import PrefixScorer
from src.sampling.beam_search import beam_search
from src.sampling.candidates import CandidatePool, sample_and_keep
from src.sampling.engine import Trajectories, pad_right, sample, side_by_side
from src.sampling.memory import rows_within
from utils import records
from utils.answers import parse_number
from utils.errors import UserError
from utils.files import write_bytes
from utils.metrics import best_of_n, majority_vote


class Sampler:
    """Samples a pool a question, with the probabilities of its answers for --bayesian_vote true.

    The pool grows by the steps of ``sizes``, so that what a smaller pool costs is measured.
    work: {size: Counter}, what the step to that size took, of this process in this session: trajectories;
    latent_steps (forward passes that yield a thought); tokens (answer tokens written); candidate_tokens
    (answer tokens read for the Bayesian vote); seconds, and of them candidate_seconds and reward_seconds.
    questions: how many were answered.
    """

    def __init__(self, settings, rows, model, tokenizer):
        self.settings, self.rows, self.model, self.tokenizer = settings, rows, model, tokenizer
        check_questions(settings, rows, model, tokenizer)
        self.prompts = model.encode(tokenizer, [row["question"] for row in rows])
        self.work, self.questions = defaultdict(Counter), 0

    @property
    def sizes(self):
        """The sizes through which the pool grows, the last of which is all of it."""
        return [self.settings.n_samples]

    def batch(self, batch):
        request = self.settings.request([self.prompts[i] for i in batch], batch)
        try:
            trajectories, extras = self._answer(request)
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of memory on {self.model.device}: lower --batch_size {self.settings.batch_size}"
            ) from None
        self.questions += len(batch)
        found = []
        for q, i in enumerate(batch):
            texts = self.tokenizer.batch_decode(trajectories.tokens[q], skip_special_tokens=True)
            record = new_record(i, self.rows[i], texts, self.model.parse_answer)
            found.append(record | {key: values[q] for key, values in extras.items()})
            if self.settings.save_latents:
                self._save_latents(record, self.prompts[i], trajectories, q)
        return found

    def _answer(self, request):
        """The Trajectories, and what else the records hold: {key: a value for each question}."""
        candidates = CandidatePool(self.model, self._parse) if self.settings.bayesian_vote else None
        parts, extras = [], []
        for first, size in pairwise([0, *self.sizes]):
            part = replace(request, first_sample=first, n_samples=size - first)
            with _clock(self.work[size], "seconds"):
                trajectories, found = self._grow(part, size, candidates)
            self._count(size, trajectories)
            parts.append(trajectories)
            extras.append(found)
        extras = {key: side_by_side([found[key] for found in extras]) for key in extras[0]}
        if candidates is not None:
            found = candidates.candidates()
            extras["candidates"] = [question.numbers for question in found]
            extras["log_probs"] = [_rounded(question.log_probs) for question in found]  # (N, K) each
        return Trajectories.joined(parts), extras

    def _grow(self, request, size, candidates):
        """Further Trajectories of a pool that they bring to ``size``, and what else is known of each:
        {key: for each question a list with a value for each of them}."""
        if candidates is None:
            return sample(self.model, request), {}
        trajectories, state = sample_and_keep(self.model, request)
        before = candidates.tokens_read
        with _clock(self.work[size], "candidate_seconds"):
            candidates.add(request, state, trajectories)
        self.work[size].update(candidate_tokens=candidates.tokens_read - before)
        return trajectories, {}

    def _count(self, size, trajectories):
        lengths = trajectories.lengths + self.model.stops_itself  # one more forward pass finds the end
        written = sum(len(ids) for answers in trajectories.tokens for ids in answers)
        self.work[size].update(
            trajectories=lengths.numel(), latent_steps=int(lengths.sum()), tokens=written
        )

    def _parse(self, ids):
        return self.model.parse_answer(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _save_latents(self, record, prompt, trajectories, q):
        tensors = {
            "input_ids": torch.tensor(prompt),  # (L,)
            "answer_ids": trajectories.answer_ids(q, self.model.config.eos_token_id),  # (N, A)
            "latent_embeds": trajectories.thoughts_of(q).float().cpu().contiguous(),  # (N, T, D)
            "latent_lengths": trajectories.lengths[q].contiguous(),  # (N,)
            "corrects": torch.tensor(record["correct"]),  # (N,)
        }
        write_bytes(
            latents_path(self.settings.output_dir, record["idx"]), safetensors.torch.save(tensors)
        )


class BestOfN(Sampler):
    """Samples a pool and scores every thought of it with the reward model."""

    def __init__(self, settings, rows, model, tokenizer, reward_model):
        super().__init__(settings, rows, model, tokenizer)
        self.reward_model = reward_model

    @property
    def sizes(self):
        return sorted({*self.settings.report_n, self.settings.n_samples})

    def _grow(self, request, size, candidates):
        trajectories, _ = super()._grow(request, size, candidates)
        with _clock(self.work[size], "reward_seconds"):
            return trajectories, self._score(request, trajectories)

    def _score(self, request, trajectories):
        eos = self.model.config.eos_token_id
        answers = [trajectories.answer_ids(q, eos) for q in range(len(request.prompts))]
        return score_pools(
            self.reward_model, request.prompts, trajectories.thoughts, trajectories.lengths, answers
        )


class BeamSearch(BestOfN):
    """Guides the latent phase by the reward model; the best beam answers."""

    @property
    def sizes(self):
        return [self.settings.num_beams]

    def _grow(self, request, size, candidates):
        settings, scorer = self.settings, PrefixScorer(self.reward_model)
        beams = beam_search(
            self.model,
            request,
            settings.num_beams,
            settings.num_beam_candidates,
            scorer,
            settings.score_by,
        )
        self.work[size].update(latent_steps=beams.passes)
        if self.reward_model.scores_answer:  # the thoughts were scored on the way, the answers were not
            return beams.trajectories, self._score(request, beams.trajectories)
        return beams.trajectories, _lists(beams.scores, beams.trajectories.lengths)

    def _count(self, size, trajectories):
        written = sum(len(ids) for answers in trajectories.tokens for ids in answers)
        self.work[size].update(trajectories=trajectories.lengths.numel(), tokens=written)

    def batch(self, batch):
        found = super().batch(batch)
        return [record | {"vote": self._best(record)} for record in found]

    def _best(self, record):
        return best_of_n(record["predictions"], scores_of(record, self.settings.score_by))


def read_pool(folder, identity):
    """The records of a saved pool, in order, for the run of this identity.

    Raises UserError when the pool is not whole or was made from other questions or another backbone.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    for key, what in (("data_sha256", "question file"), ("model_sha256", "backbone")):
        if config.get(key) != identity[key]:
            raise UserError(f"--pool {folder}: its {what} has changed since; sample the pool again")
    found = records.read(folder)
    if sorted(found) != list(range(config["questions"])):
        raise UserError(
            f"--pool {folder}: {len(found)} of {config['questions']} questions; finish it first"
        )
    return [found[i] for i in sorted(found)]


class SavedPool:
    """Scores the trajectories that a run of src.infer_gpt2 --save_latents true has left."""

    def __init__(self, settings, pool, reward_model):
        self.settings, self.pool, self.reward_model = settings, pool, reward_model
        self.work, self.questions = defaultdict(Counter), 0
        self.prompts = [self._latents(i)["input_ids"].tolist() for i in range(len(pool))]

    def _latents(self, i):
        path = latents_path(self.settings.pool, i)
        try:
            latents = safetensors.torch.load_file(path)
            latents["latent_lengths"]
            return latents
        except (OSError, safetensors.SafetensorError, KeyError):
            raise UserError(f"{path}: missing or damaged; sample the pool again") from None

    def batch(self, batch):
        found, work = [], self.work[self.settings.n_samples]
        for i in batch:
            latents, record = self._latents(i), self.pool[i]
            if latents["corrects"].tolist() != record["correct"]:
                path = latents_path(self.settings.pool, i)
                raise UserError(f"{path}: does not belong to samples.jsonl; sample the pool again")
            with _clock(work, "seconds"), _clock(work, "reward_seconds"):
                scores = score_pools(
                    self.reward_model,
                    [self.prompts[i]],
                    latents["latent_embeds"][None],
                    latents["latent_lengths"][None],
                    [latents["answer_ids"]],
                )
            found.append(record | {key: values[0] for key, values in scores.items()})
            self.questions += 1
        return found


@torch.inference_mode()
def score_pools(reward_model, prompts, thoughts, lengths, answer_ids):
    """The rewards of Q questions' trajectories, for each question a list with a value for each of them:
    "scores", the rewards of its thoughts, and where the model scores answers "answer_scores", log p of its
    answer.

    prompts: Q lists of token ids, each read once. thoughts (Q, N, T, D), of which lengths (Q, N) exist;
    answer_ids: Q tensors (N, A), padded with -1.
    """
    longest = max(ids.shape[1] for ids in answer_ids)
    answers = torch.stack([pad(ids, (0, longest - ids.shape[1]), value=-1) for ids in answer_ids])
    n, steps = thoughts.shape[1:3]
    rows = rows_within(reward_model, steps + longest, logits=longest)
    parts = []
    for part in torch.arange(len(prompts)).split(max(1, rows // n)):
        ids, prompt_lengths = pad_right([prompts[q] for q in part], 0)  # (q, L), (q,)
        mask = torch.arange(ids.shape[1]) < prompt_lengths[:, None]
        members = [
            reward_model(*(x.to(reward_model.device) for x in (ids, mask.long(), *pool))).float().cpu()
            for pool in zip(
                *(x[part].split(rows, dim=1) for x in (thoughts, lengths, answers)), strict=True
            )
        ]
        parts.append(torch.cat(members, dim=1))
    scores = torch.cat(parts)  # (Q, N, T), or (Q, N, T + 1) with the answer's
    found = _lists(scores[..., :steps], lengths)
    if scores.shape[2] > steps:
        found["answer_scores"] = _rounded(scores[..., steps])
    return found


def _lists(scores, lengths):
    """{"scores": lists} from scores (Q, N, T), without those of thoughts that do not exist."""
    pairs = zip(scores, lengths.tolist(), strict=True)
    return {
        "scores": [
            [row[:n] for row, n in zip(_rounded(pool), counts, strict=True)] for pool, counts in pairs
        ]
    }


def latents_path(folder, idx):
    return Path(folder) / "latents" / f"{idx:06d}.safetensors"


def new_record(idx, row, texts, parse_answer):
    """What samples.jsonl holds of a question, from its N answer texts."""
    predictions = [parse_answer(text) for text in texts]
    gold = parse_number(row["answer"])
    return {
        "idx": idx,
        "question": row["question"],
        "answer": row["answer"],
        "texts": texts,
        "predictions": predictions,
        "correct": [p == gold for p in predictions],
        "vote": majority_vote(predictions),
    }


@contextmanager
def _clock(work, name):
    start = time.monotonic()
    yield
    work[name] += time.monotonic() - start


def _rounded(values):
    return [[round(x, 4) for x in row] for row in values.tolist()]
