"""How a batch of questions is answered: by sampling and voting, by best-of-N, by beam search."""

import json
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch

from src.models.latent_rm import PrefixScorer
from src.sampling.beam_search import beam_search
from src.sampling.candidates import sample_and_keep, score_candidates
from src.sampling.engine import check_length, sample
from utils import records
from utils.answers import parse_number
from utils.errors import UserError
from utils.files import write_bytes
from utils.metrics import best_of_n, majority_vote, total_score


class Sampler:
    """Samples a pool a question, with the probabilities of its answers for --bayesian_vote true.

    work counts, of this process in this session: questions; trajectories; latent_steps (forward passes
    that yield a thought); tokens (answer tokens written); candidate_tokens (answer tokens read for the
    Bayesian vote); seconds, and of them candidate_seconds and reward_seconds.
    """

    def __init__(self, settings, rows, model, tokenizer):
        self.settings, self.rows, self.model, self.tokenizer = settings, rows, model, tokenizer
        self.prompts = model.encode(tokenizer, [row["question"] for row in rows])
        self.work = Counter()
        longest = max(map(len, self.prompts))
        try:
            check_length(model, longest, settings.latent_length, settings.max_new_tokens)
        except ValueError as error:
            raise UserError(f"{settings.data_path}: {error}") from None

    def batch(self, batch):
        request = self.settings.request([self.prompts[i] for i in batch], batch)
        try:
            with _clock(self.work, "seconds"):
                trajectories, extras = self._sample(request)
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of memory on {self.model.device}: lower --batch_size {self.settings.batch_size}"
            ) from None
        written = sum(len(ids) for answers in trajectories.tokens for ids in answers)
        self.work.update(questions=len(batch), trajectories=len(batch) * len(trajectories.tokens[0]))
        self.work.update(tokens=written)
        found = []
        for q, i in enumerate(batch):
            texts = self.tokenizer.batch_decode(trajectories.tokens[q], skip_special_tokens=True)
            record = new_record(i, self.rows[i], texts, self.model.parse_answer)
            found.append(record | {key: values[q] for key, values in extras.items()})
            if self.settings.save_latents:
                self._save_latents(record, self.prompts[i], trajectories, q)
        return found

    def _sample(self, request):
        """The Trajectories, and what else the records hold: {key: a value for each question}."""
        if not self.settings.bayesian_vote:
            trajectories = sample(self.model, request)
            self._count_thoughts(trajectories)
            return trajectories, {}
        trajectories, begun = sample_and_keep(self.model, request)
        self._count_thoughts(trajectories)
        with _clock(self.work, "candidate_seconds"):
            found = score_candidates(self.model, request, begun, trajectories, self._parse)
        self.work.update(candidate_tokens=sum(candidates.passes for candidates in found))
        return trajectories, {
            "candidates": [candidates.numbers for candidates in found],
            "log_probs": [_rounded(candidates.log_probs) for candidates in found],  # (N, K) each
        }

    def _count_thoughts(self, trajectories):
        lengths = trajectories.lengths + self.model.stops_itself  # one more forward pass finds the end
        self.work.update(latent_steps=int(lengths.sum()))

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

    def _sample(self, request):
        trajectories, extras = super()._sample(request)
        with _clock(self.work, "reward_seconds"):
            scores = self._score(request, trajectories)
        return trajectories, extras | {"scores": scores}

    def _score(self, request, trajectories):
        eos = self.model.config.eos_token_id
        return [
            score_pool(
                self.reward_model,
                prompt,
                trajectories.thoughts_of(q),
                trajectories.lengths[q],
                trajectories.answer_ids(q, eos),
            )
            for q, prompt in enumerate(request.prompts)
        ]


class BeamSearch(BestOfN):
    """Guides the latent phase by the reward model; the best beam answers."""

    def _sample(self, request):
        settings, scorer = self.settings, PrefixScorer(self.reward_model)
        beams = beam_search(
            self.model,
            request,
            settings.num_beams,
            settings.num_beam_candidates,
            scorer,
            settings.score_by,
        )
        self.work.update(latent_steps=beams.passes)
        if self.reward_model.scores_answer:  # the thoughts were scored on the way, the answers were not
            scores = self._score(request, beams.trajectories)
        else:
            pairs = zip(beams.scores, beams.trajectories.lengths, strict=True)
            scores = [_score_lists(x, lengths, x.shape[1]) for x, lengths in pairs]
        return beams.trajectories, {"scores": scores}

    def batch(self, batch):
        found = super().batch(batch)
        return [r | {"vote": best_of_n(r["predictions"], self._totals(r))} for r in found]

    def _totals(self, record):
        return [total_score(scores, self.settings.score_by) for scores in record["scores"]]


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
        self.work = Counter()
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
        found = []
        for i in batch:
            latents, record = self._latents(i), self.pool[i]
            if latents["corrects"].tolist() != record["correct"]:
                path = latents_path(self.settings.pool, i)
                raise UserError(f"{path}: does not belong to samples.jsonl; sample the pool again")
            with _clock(self.work, "seconds"), _clock(self.work, "reward_seconds"):
                pool = (latents[key] for key in ("latent_embeds", "latent_lengths", "answer_ids"))
                scores = score_pool(self.reward_model, self.prompts[i], *pool)
            found.append(record | {"scores": scores})
            self.work.update(questions=1)
        return found


@torch.inference_mode()
def score_pool(reward_model, prompt, thoughts, lengths, answer_ids):
    """The rewards of each trajectory, a list: of its thoughts, and of its answer where the model scores it.

    thoughts (N, T, D), of which lengths (N,) exist, under a prompt's ids, which are read once for all of
    them; answer_ids (N, A).
    """
    device = reward_model.device
    ids = torch.tensor([prompt], device=device)  # (1, L)
    pool = (thoughts, lengths, answer_ids)
    scores = reward_model(ids, torch.ones_like(ids), *(part[None].to(device) for part in pool))[0]
    return _score_lists(scores, lengths, thoughts.shape[1])


def _score_lists(scores, lengths, thoughts):
    """Scores (N, T + 0 or 1), of which ``thoughts`` columns are T, without those that do not exist."""
    rows = _rounded(scores.float().cpu())
    return [row[:n] + row[thoughts:] for row, n in zip(rows, lengths.tolist(), strict=True)]


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
