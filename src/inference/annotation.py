"""Annotation of a data file: trajectories, rollouts, shards; processes, resume, time left."""

import math

import torch

from src.inference.folder import check_folder, environment, identity_of
from src.inference.questions import check_questions
from src.sampling.rollouts import annotate
from utils import shards
from utils.answers import parse_number
from utils.data import load_dataset
from utils.errors import UserError
from utils.files import remove_temporary, write_json
from utils.progress import progress

# Of a trajectory's time, what a rollout takes on average: half of the questions get any, and a rollout is
# about half a trajectory.
ROLLOUT_COST = 0.25


class Annotation:
    """One run of ``AnnotationSettings``. Processes take whole shards in turn.

    Nothing is written before ``complete``. Raises UserError when data, model or folder can't be used.
    """

    def __init__(self, settings, processes, loader):
        self.settings, self.processes, self.folder = settings, processes, settings.folder
        self.loader = loader
        self.rows = load_dataset(settings.data_path)[: settings.limit]
        self.identity = identity_of(settings, self.rows)
        self.identity |= {"data_path": settings.data_path, "format": shards.FORMAT}
        check_folder(self.folder, self.identity, settings.overwrite)
        self.n_shards = math.ceil(len(self.rows) / settings.shard_size)

    @property
    def finished(self):
        files = [shards.shard_path(self.folder, k) for k in range(self.n_shards)]
        files.append(self.folder / shards.MANIFEST)
        return not self.settings.overwrite and all(path.is_file() for path in files)

    @property
    def trajectories(self):
        """How many are still to be sampled, by all processes together; rollouts count as their share."""
        todo = [k for k in range(self.n_shards) if not shards.shard_path(self.folder, k).is_file()]
        questions = sum(len(self._questions_of(k)) for k in todo)
        settings = self.settings
        rollouts = settings.latent_length * settings.n_samples_per_step * ROLLOUT_COST
        return round(questions * settings.n_samples * (1 + rollouts))

    def _questions_of(self, shard):
        return shards.shard_questions(shard, self.settings.shard_size, len(self.rows))

    def prepare(self):
        """The backbone and its tokenizer, after the questions are found to suit them."""
        backbone = self.loader.backbone(self.settings)
        check_questions(self.settings, self.rows, *backbone)
        return backbone

    def complete(self):
        """Makes the missing shards of this process, then, on the first one, the manifest."""
        if self.finished:
            return
        model, tokenizer = self.prepare()
        self._open()
        todo = [k for k in range(self.n_shards) if not shards.shard_path(self.folder, k).is_file()]
        self.processes.wait_for_everyone()  # all have looked before any writes
        todo = todo[self.processes.process_index :: self.processes.num_processes]
        questions = [self._questions_of(k) for k in todo]
        seen = labelled = right = 0
        with progress(
            sum(map(len, questions)), unit="question", disable=not self.processes.is_main_process
        ) as bar:
            for number, mine in zip(todo, questions, strict=True):
                found, solved = self._shard(model, tokenizer, mine)
                shards.write_shard(self.folder, number, found)
                seen += len(mine)
                labelled += sum("latent_embeds" in tensors for tensors in found.values())
                right += solved
                shares = f"labelled {labelled / seen:.1%}, right {right / seen:.1%}"
                bar.set_postfix_str(shares, refresh=False)
                bar.update(len(mine))
        self.processes.wait_for_everyone()
        if self.processes.is_main_process:
            shards.write_manifest(self.folder, self.identity | {"shard_size": self.settings.shard_size})

    def report(self, _):
        print(f"annotated {len(self.rows)} questions; files in {self.folder}")

    def _open(self):
        self.processes.wait_for_everyone()  # all have checked the folder as it was
        if self.processes.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(self.folder)
            if self.settings.overwrite:
                for path in self.folder.glob("shard_*.safetensors"):
                    path.unlink()
            (self.folder / shards.MANIFEST).unlink(missing_ok=True)  # until all is there again
            place = environment(self.processes, self.settings.batch_size)
            write_json(self.folder / "config.json", self.identity | place)
        self.processes.wait_for_everyone()

    def _shard(self, model, tokenizer, questions):
        """{index: tensors} of a shard's questions, and the sum of their shares of right answers."""
        ids = model.encode(tokenizer, [self.rows[i]["question"] for i in questions])
        prompts = dict(zip(questions, ids, strict=True))
        order = sorted(questions, key=lambda i: (len(prompts[i]), i))
        size, found, solved = self.settings.batch_size, {}, 0.0
        for batch in (order[k : k + size] for k in range(0, len(order), size)):
            result = self._batch(model, tokenizer, prompts, batch)
            found |= result
            solved += sum(tensors.pop("right") for tensors in result.values())
        return {i: found[i] for i in questions}, solved

    def _batch(self, model, tokenizer, prompts, batch):
        settings = self.settings
        read = _Reader(model, tokenizer)
        gold = [parse_number(self.rows[i]["answer"]) for i in batch]
        try:
            labelled = annotate(
                model,
                settings.request([prompts[i] for i in batch], batch),
                settings.n_samples_per_step,
                lambda q, ids: read(ids) == gold[q],
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of memory on {model.device}: lower --batch_size {settings.batch_size}"
            ) from None
        eos = model.config.eos_token_id
        return {i: self._tensors(labelled, q, prompts[i], read, eos) for q, i in enumerate(batch)}

    def _tensors(self, labelled, q, prompt, read, eos):
        """The published keys of one question, and "right", its share of right trajectories."""
        corrects = labelled.corrects[q]  # (N,)
        right = float(corrects.float().mean())
        if labelled.skipped[q]:
            return {"input_ids": corrects.sum(), "right": right}  # 0-d: how many solve it
        predictions = [read(ids) for ids in labelled.trajectories.tokens[q]]
        thoughts = labelled.trajectories.thoughts_of(q)
        return {
            "input_ids": torch.tensor(prompt).repeat(len(corrects), 1),  # (N, L)
            "latent_embeds": thoughts.float().cpu().contiguous(),  # (N, T, D)
            "latent_lengths": labelled.trajectories.lengths[q].contiguous(),  # (N,)
            "estimations": labelled.estimations[q, :, : thoughts.shape[1]].contiguous(),  # (N, T)
            "corrects": corrects.contiguous(),
            "predictions": torch.tensor(
                [math.nan if p is None else p for p in predictions], dtype=torch.float64
            ),
            "answer_ids": labelled.trajectories.answer_ids(q, eos),  # (N, A)
            "right": right,
        }


class _Reader:
    """Parses answers; the same few come again and again among rollouts."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.known = model, tokenizer, {}

    def __call__(self, ids):
        key = tuple(ids)
        if key not in self.known:
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            self.known[key] = self.model.parse_answer(text)
        return self.known[key]
