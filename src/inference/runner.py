"""Runs sampled inference over a data file: batches, processes, resume, output files."""

import json
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import accelerate
import safetensors.torch
import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object

from src.models.loading import checkpoint_files
from src.sampling.engine import Request, check_length, sample
from utils import records
from utils.answers import parse_number
from utils.data import load_dataset
from utils.errors import UserError
from utils.files import is_temporary, remove_temporary, sha256, write_bytes, write_json
from utils.metrics import majority_vote, summarize
from utils.progress import progress


def start_processes():
    """The processes of torchrun or accelerate launch, one device each; a Mac computes on its CPU."""
    cpu = not torch.cuda.is_available()
    return accelerate.PartialState(cpu=cpu, timeout=timedelta(days=7))


@dataclass
class Speed:
    """Work of one process in this session."""

    seconds: float = 0.0
    latent_steps: int = 0
    tokens: int = 0


class Run:
    """One run of ``InferenceSettings``: what is asked, what is done, what is left.

    Nothing is written before ``sample`` or ``finish``. Raises UserError when the output folder
    belongs to something else.
    """

    def __init__(self, settings, processes):
        self.settings, self.processes = settings, processes
        self.folder = Path(settings.output_dir)
        self.rows = load_dataset(settings.data_path)[: settings.limit]
        self.identity = {
            "settings": settings.result_settings(),
            "questions": len(self.rows),
            "data_sha256": sha256([settings.data_path]),
            "model_sha256": sha256(checkpoint_files(settings.model_type, settings.model_id)),
        }
        _check_folder(self.folder, self.identity, settings.overwrite)
        self.done = {} if settings.overwrite else records.read(self.folder)
        if not set(self.done) <= set(range(len(self.rows))):
            raise UserError(f"{self.folder}: holds samples of other questions; use --overwrite true")

    @property
    def finished(self):
        return len(self.done) == len(self.rows)

    def sample(self, model, tokenizer):
        """Samples what is left of this process's share. Returns its Speed."""
        prompts = tokenizer([model.format_prompt(row["question"]) for row in self.rows])["input_ids"]
        settings = self.settings
        try:
            longest = max(map(len, prompts))
            check_length(model, longest, settings.latent_length, settings.max_new_tokens)
        except ValueError as error:
            raise UserError(f"{settings.data_path}: {error}") from None
        self._open()
        todo, speed = self._share(prompts), Speed()
        seen = voted = covered = 0
        with progress(
            sum(map(len, todo)), unit="question", disable=not self.processes.is_main_process
        ) as bar:
            for batch in todo:
                found = self._sample_batch(model, tokenizer, prompts, batch, speed)
                seen += len(found)
                voted += sum(r["vote"] is not None and r["vote"] == _gold(r) for r in found)
                covered += sum(any(r["correct"]) for r in found)
                shares = f"vote {100 * voted / seen:.1f} %, coverage {100 * covered / seen:.1f} %"
                bar.set_postfix_str(shares, refresh=False)
                bar.update(len(batch))
        return speed

    def _open(self):
        """Prepares the folder and tells all processes what is done, so that they share the rest."""
        self.processes.wait_for_everyone()  # all have looked at the folder as it was
        if self.processes.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(self.folder)
            if self.settings.overwrite:
                _remove_run(self.folder)
            self.done = records.gather(self.folder)
            write_json(self.folder / "config.json", self.identity | self._environment())
        (self.done,) = broadcast_object_list([self.done])

    def _share(self, prompts):
        """Batches of this process that are not done.

        Questions are batched by prompt length, always over all of them: a batch that was cut off
        is computed as before, and processes take whole batches in turn.
        """
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        size = self.settings.batch_size
        found = [order[i : i + size] for i in range(0, len(order), size)]
        todo = [batch for batch in found if any(i not in self.done for i in batch)]
        return todo[self.processes.process_index :: self.processes.num_processes]

    def _sample_batch(self, model, tokenizer, prompts, batch, speed):
        settings = self.settings
        request = Request(
            prompts=[prompts[i] for i in batch],
            questions=batch,
            n_samples=settings.n_samples,
            latent_length=settings.latent_length,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            sampling=settings.sampling,
        )
        start = time.monotonic()
        try:
            trajectories = sample(model, request)
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of memory on {model.device}: lower --batch_size {settings.batch_size}"
            ) from None
        speed.seconds += time.monotonic() - start
        speed.latent_steps += len(batch) * settings.n_samples * settings.latent_length
        speed.tokens += sum(len(ids) for answers in trajectories.tokens for ids in answers)
        found = []
        for q, i in enumerate(batch):
            if i in self.done:
                continue
            texts = tokenizer.batch_decode(trajectories.tokens[q], skip_special_tokens=True)
            found.append(_record(i, self.rows[i], texts, model.parse_answer))
            if settings.save_latents:
                self._save_latents(found[-1], prompts[i], trajectories.thoughts[q])
        records.append(self.folder, self.processes.process_index, found)
        return found

    def _save_latents(self, record, prompt, thoughts):
        tensors = {
            "input_ids": torch.tensor(prompt),  # (L,)
            "latent_embeds": thoughts.float().cpu().contiguous(),  # (N, T, D)
            "corrects": torch.tensor(record["correct"]),  # (N,)
        }
        path = self.folder / "latents" / f"{record['idx']:06d}.safetensors"
        write_bytes(path, safetensors.torch.save(tensors))

    def finish(self, speed):
        """Gathers all processes' records, checks them and writes metrics.json. Returns its content."""
        speeds = gather_object([asdict(speed)])
        self.processes.wait_for_everyone()
        if not self.processes.is_main_process:
            return None
        done = records.gather(self.folder)
        if sorted(done) != list(range(len(self.rows))):
            raise UserError(
                f"{self.folder}: {len(done)} of {len(self.rows)} questions are done; run again to go on"
            )
        pools = [(done[i]["predictions"], _gold(done[i])) for i in sorted(done)]
        metrics = {
            "questions": len(pools),
            "n_samples": self.settings.n_samples,
            "by_n": summarize(pools, self.settings.report_n),
            "speed": self._speed(speeds),
        }
        write_json(self.folder / "metrics.json", metrics)
        return metrics

    def _speed(self, speeds):
        """Of the session that sampled last: an empty one keeps what stands."""
        seconds = max(speed["seconds"] for speed in speeds)
        path = self.folder / "metrics.json"
        if not seconds:
            return json.loads(path.read_text(encoding="utf-8"))["speed"] if path.exists() else {}
        return {
            "seconds": round(seconds, 2),
            "latent_steps_per_second": round(sum(s["latent_steps"] for s in speeds) / seconds, 1),
            "tokens_per_second": round(sum(s["tokens"] for s in speeds) / seconds, 1),
        }

    def _environment(self):
        device = self.processes.device
        cuda = device.type == "cuda"
        return {
            "batch_size": self.settings.batch_size,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "accelerate": accelerate.__version__,
            },
            "device": torch.cuda.get_device_name(device) if cuda else f"cpu {platform.machine()}",
            "processes": self.processes.num_processes,
            "threads_per_process": torch.get_num_threads(),
            "git_commit": _git_commit(),
        }


def _gold(record):
    return parse_number(record["answer"])


def _record(idx, row, texts, parse_answer):
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


def _check_folder(folder, identity, overwrite):
    """Raises UserError when the folder holds something else than the run of this identity."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; name a folder")
    path = folder / "config.json"
    if not path.exists():
        if folder.exists() and not all(is_temporary(file) for file in folder.iterdir()):
            raise UserError(f"--output_dir {folder}: holds other files; name a new or empty folder")
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        old_settings = old["settings"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: not the config.json of a run; choose another --output_dir") from None
    if overwrite:
        return
    settings = identity["settings"]
    other = [f"--{key}" for key in settings if old_settings.get(key) != settings[key]]
    other += [key for key in identity if key != "settings" and old.get(key) != identity[key]]
    if other:
        raise UserError(
            f"{folder} holds a run with another {other[0]}; choose another --output_dir or "
            "--overwrite true"
        )


def _remove_run(folder):
    """Removes a run's own files; config.json, by which the folder is known, goes last."""
    for path in (*records.parts(folder), *folder.glob("latents/*.safetensors")):
        path.unlink()
    for name in ("metrics.json", "config.json"):
        (folder / name).unlink(missing_ok=True)


def _git_commit():
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() or None
