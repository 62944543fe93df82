"""Annotation of a data file: trajectories, rollouts, shards."""

import math

import torch

from src.runs.job import Job
from src.sampling.rollouts import annotate
from utils import shards
from utils.answers import is_right

# Mean time of a rollout, in units of a trajectory's: only half of the questions get rollouts, and a
# rollout computes about half a trajectory.
ROLLOUT_COST = 0.25


class Annotation(Job):
    """One run of src.annotate_data. Processes take whole shards in turn."""

    outputs = ("shard_*.safetensors", shards.MANIFEST)

    def __init__(self, arguments, processes, loader):
        super().__init__(arguments, processes, loader)
        self.n_shards = math.ceil(len(self.rows) / arguments.shard_size)
        # Of this process: questions, labelled ones, and the sum of their shares of right answers.
        self.seen = self.labelled = self.right = 0

    def fingerprint(self):
        data_path = self.arguments.data_path
        return super().fingerprint() | {"data_path": data_path, "format": shards.FORMAT}

    @property
    def finished(self):
        if self.arguments.overwrite or not (self.folder / shards.MANIFEST).is_file():
            return False
        return not self._missing_shards()

    def _missing_shards(self):
        paths = (shards.shard_path(self.folder, k) for k in range(self.n_shards))
        return [number for number, path in enumerate(paths) if not path.is_file()]

    @property
    def trajectories(self):
        """How many are still to be sampled; rollouts count with their share of the time."""
        arguments = self.arguments
        questions = sum(map(len, self.units()))
        rollouts = arguments.latent_length * arguments.n_samples_per_step * ROLLOUT_COST
        return round(questions * arguments.n_samples * (1 + rollouts))

    def units(self):
        size, total = self.arguments.shard_size, len(self.rows)
        return [shards.shard_questions(k, size, total) for k in self._missing_shards()]

    def open(self):
        super().open()
        if self.processes.is_main_process:  # Job.complete has a barrier before any shard is written
            (self.folder / shards.MANIFEST).unlink(missing_ok=True)

    def work_on(self, unit):
        """Writes the shard of these questions."""
        tensors = {}
        for batch in self.by_length(unit):
            tensors |= self._label(batch)
        self.right += sum(of_question.pop("right") for of_question in tensors.values())
        self.labelled += sum("latent_embeds" in of_question for of_question in tensors.values())
        self.seen += len(unit)
        number = unit[0] // self.arguments.shard_size
        shards.write_shard(self.folder, number, {i: tensors[i] for i in unit})
        return f"labelled {self.labelled / self.seen:.1%}, right {self.right / self.seen:.1%}"

    def finish(self):
        self.processes.wait_for_everyone()
        if self.processes.is_main_process and not self.finished:
            contents = self.run_folder.fingerprint | {"shard_size": self.arguments.shard_size}
            shards.write_manifest(self.folder, contents)

    def report(self, _):
        print(f"annotated {len(self.rows)} questions; files in {self.folder}")

    def _label(self, batch):
        """{question: tensors} of a batch, with "right", its share of right trajectories."""
        model, tokenizer = self.backbone()
        parse = _Parser(model, tokenizer)
        answers = [self.rows[i]["answer"] for i in batch]
        labelled = annotate(
            model,
            self.request(batch),
            self.arguments.n_samples_per_step,
            lambda q, ids: is_right(parse(ids), answers[q]),
        )
        eos = model.config.eos_token_id
        prompts = [torch.tensor(self.prompts[i], dtype=torch.int64) for i in batch]
        return {i: _tensors(labelled, q, prompts[q], parse, eos) for q, i in enumerate(batch)}


def _tensors(labelled, q, prompt, parse, eos):
    """The published keys of question number q, and "right", its share of right trajectories."""
    trajectories, corrects = labelled.trajectories, labelled.corrects[q]  # corrects (N,)
    right = float(corrects.float().mean())
    if labelled.skipped[q]:
        return {"input_ids": corrects.sum(), "right": right}  # 0-d: how many solve it
    predictions = [parse(ids) for ids in trajectories.tokens[q]]
    predictions = [math.nan if number is None else number for number in predictions]
    thoughts = trajectories.thoughts_of(q)
    return {
        "input_ids": prompt.repeat(len(corrects), 1),  # (N, L)
        "latent_embeds": thoughts.float().cpu().contiguous(),  # (N, T, D)
        "latent_lengths": trajectories.num_thoughts[q].contiguous(),  # (N,)
        "estimations": labelled.estimations[q, :, : thoughts.shape[1]].contiguous(),  # (N, T)
        "corrects": corrects.contiguous(),
        "predictions": torch.tensor(predictions, dtype=torch.float64),
        "answer_ids": trajectories.answer_ids(q, eos),  # (N, A)
        "right": right,
    }


class _Parser:
    """Parses answers; the same few recur among rollouts."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.known = model, tokenizer, {}

    def __call__(self, ids):
        key = tuple(ids)
        if key not in self.known:
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            self.known[key] = self.model.parse_answer(text)
        return self.known[key]
