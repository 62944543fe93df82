"""Runs a method over a data file: batches, processes, resume, output files.

A method (src/inference/methods.py) answers a batch of questions; it has ``prompts``, token ids a
question, ``batch(ids)``, the records of these questions, and ``work`` and ``questions``, what it has done
so far.
"""

import json
from collections import Counter
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object

from src.inference.folder import check_folder, environment
from utils import records
from utils.errors import UserError
from utils.files import remove_temporary, write_json
from utils.progress import progress
from utils.records import gold_of


class Run:
    """One run: what is asked, what is done, what is left.

    identity: what the results depend on (src.inference.folder.identity_of). Nothing is written
    before ``answer`` or ``finish``. Raises UserError when the folder belongs to something else.
    """

    def __init__(self, settings, processes, rows, identity):
        self.settings, self.processes, self.rows, self.identity = settings, processes, rows, identity
        self.folder = Path(settings.output_dir)
        check_folder(self.folder, identity, settings.overwrite)
        self.done = {} if settings.overwrite else records.read(self.folder)
        if not set(self.done) <= set(range(len(rows))):
            raise UserError(f"{self.folder}: holds samples of other questions; use --overwrite true")

    @property
    def finished(self):
        return len(self.done) == len(self.rows)

    def answer(self, method):
        """Answers what is left of this process's share."""
        self._open()
        todo = self._share(method.prompts)
        seen = voted = covered = 0
        with progress(
            sum(map(len, todo)), unit="question", disable=not self.processes.is_main_process
        ) as bar:
            for batch in todo:
                found = [r for r in method.batch(batch) if r["idx"] not in self.done]
                records.append(self.folder, self.processes.process_index, found)
                seen += len(found)
                voted += sum(r["vote"] is not None and r["vote"] == gold_of(r) for r in found)
                covered += sum(any(r["correct"]) for r in found)
                shares = f"vote {100 * voted / seen:.1f} %, coverage {100 * covered / seen:.1f} %"
                bar.set_postfix_str(shares, refresh=False)
                bar.update(len(batch))

    def _open(self):
        """Prepares the folder and tells all processes what is done, so that they share the rest."""
        self.processes.wait_for_everyone()  # all have looked at the folder as it was
        if self.processes.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(self.folder)
            if self.settings.overwrite:
                _remove_run(self.folder)
            self.done = records.gather(self.folder)
            place = environment(self.processes, self.settings.batch_size)
            write_json(self.folder / "config.json", self.identity | place)
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

    def finish(self, method, measure):
        """Gathers all processes' records, checks them and writes metrics.json. Returns its content.

        method: the one that answered, or None where nothing was left to answer. measure(records): the
        measures of all records, in order.
        """
        work, questions = (method.work, method.questions) if method else ({}, 0)
        done = gather_object([(questions, {size: dict(spent) for size, spent in work.items()})])
        self.processes.wait_for_everyone()
        if not self.processes.is_main_process:
            return None
        found = self._all_records()
        metrics = {"questions": len(found)} | measure(found) | {"speed": self._speed(done)}
        write_json(self.folder / "metrics.json", metrics)
        return metrics

    def _all_records(self):
        done = records.gather(self.folder)
        if sorted(done) != list(range(len(self.rows))):
            raise UserError(
                f"{self.folder}: {len(done)} of {len(self.rows)} questions are done; run again to go on"
            )
        return [done[i] for i in sorted(done)]

    def _speed(self, done):
        """Of the session that answered last; one that had nothing to answer keeps what stands there.

        done: (questions, work) of each process. per_question: {size of the pool: what a question costs}.
        """
        questions = sum(count for count, _ in done)
        if not questions:
            path = self.folder / "metrics.json"
            return json.loads(path.read_text(encoding="utf-8"))["speed"] if path.exists() else {}
        works = [work for _, work in done]
        seconds = max(sum(spent["seconds"] for spent in work.values()) for work in works)
        total, cost = Counter(), {}
        for size in sorted(set().union(*works)):
            total += sum((Counter(work.get(size, {})) for work in works), Counter())
            cost[str(size)] = {key: round(value / questions, 4) for key, value in sorted(total.items())}
        rates = {f"{k}_per_second": round(total[k] / seconds, 1) for k in ("latent_steps", "tokens")}
        return {"seconds": round(seconds, 2)} | rates | {"per_question": cost}


def _remove_run(folder):
    """Removes a run's own files; config.json, by which the folder is known, goes last."""
    for path in (*records.parts(folder), *folder.glob("latents/*.safetensors")):
        path.unlink()
    for name in ("metrics.json", "config.json"):
        (folder / name).unlink(missing_ok=True)
