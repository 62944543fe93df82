"""Annotation of a data file: trajectories, rollouts, shards."""

import math

import torch
from accelerate.utils import broadcast_object_list

from src.runs.job import Job
from src.sampling.rollouts import annotate
from utils import shards
from utils.answers import is_right
from utils.errors import UserError

# Mean time of a rollout, in units of a trajectory's: only half of the questions get rollouts, and a
# rollout computes about half a trajectory.
ROLLOUT_COST = 0.25


class Annotation(Job):
    """One run of src.annotate_data.

    A batch holds questions of one shard. It is written as a part of the shard, and the process that
    finishes the last batch of a shard joins its parts.
    """

    outputs = ("shard_*.safetensors", shards.PARTS, shards.MANIFEST)

    def __init__(self, arguments, processes, loader):
        super().__init__(arguments, processes, loader)
        self.n_shards = math.ceil(len(self.rows) / arguments.shard_size)
        self.done = set() if arguments.overwrite else self._read_done()
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
        arguments, questions = self.arguments, len(self.rows) - len(self.done)
        rollouts = arguments.latent_length * arguments.n_samples_per_step * ROLLOUT_COST
        return round(questions * arguments.n_samples * (1 + rollouts))

    def _questions(self, number):
        """The questions of a shard."""
        return shards.shard_questions(number, self.arguments.shard_size, len(self.rows))

    def _read_done(self):
        """The questions that lie in a shard or in a part of one."""
        missing = set(self._missing_shards())
        whole = (self._questions(k) for k in range(self.n_shards) if k not in missing)
        return shards.questions_in_parts(self.folder).union(*whole)

    def open(self):
        super().open()
        if self.processes.is_main_process:  # the others write only after they know what is done
            (self.folder / shards.MANIFEST).unlink(missing_ok=True)
            self.done = self._read_done()
        (self.done,) = broadcast_object_list([self.done])

    def batches(self):
        """A shard's batches follow each other, so that few shards lie in parts at any time."""
        return [b for k in range(self.n_shards) for b in self.by_length(self._questions(k))]

    def work_on(self, unit):
        """Writes these questions; with the last ones of a shard, the shard."""
        new = {i: tensors for i, tensors in self._label(unit).items() if i not in self.done}
        right = sum(tensors.pop("right") for tensors in new.values())
        shards.write_part(self.folder, new)
        number = unit[0] // self.arguments.shard_size
        left = [i for i in self._questions(number) if i not in self.done]
        if self.sums.add(f"questions of shard {number}", len(new)) == len(left):
            self._join(number)
        # Only now: a unit that runs out of memory is tried again.
        self.right += right
        self.labelled += sum("latent_embeds" in tensors for tensors in new.values())
        self.seen += len(new)
        return f"labelled {self.labelled / self.seen:.1%}, right {self.right / self.seen:.1%}"

    def _join(self, number):
        shards.join_parts(self.folder, number, self._questions(number))

    def finish(self):
        if not self.processes.is_main_process or self.finished:
            return
        for number in self._missing_shards():  # interrupted after the last part, before the shard
            self._join(number)
        missing = len(self._missing_shards())
        if missing:
            fault = f"{missing} of {self.n_shards} shards are not done"
            raise UserError(f"{self.folder}: {fault}; run again to go on")
        shards.remove_parts(self.folder)
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
