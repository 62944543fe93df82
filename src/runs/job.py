"""What all commands do around their work: open a folder, resume, share the work, show progress."""

import torch

from src.runs.questions import check_lengths, check_words, encode_questions
from src.runs.run_folder import RunFolder, fingerprint_of
from utils.datasets import load_dataset
from utils.errors import UserError
from utils.progress import progress


class Job:
    """A command at work on the questions of a data file. Nothing is written before ``complete``.

    A subclass gives ``outputs``, patterns of the files that it writes, and:
    finished: whether nothing is left to do; trajectories: how many are still to be sampled, by all
    processes together; units(): the work that is left, lists of questions (their indices), in the
    same order on every process; work_on(unit): does it and returns the running metrics, a line;
    finish(): closes the run and returns its metrics on the first process; report(metrics).

    Raises UserError when data, model or folder can't be used.
    """

    outputs = ()

    def __init__(self, arguments, processes, loader):
        self.arguments, self.processes, self.loader = arguments, processes, loader
        self.rows = load_dataset(arguments.data_path)[: arguments.limit]
        self.prompts = None
        fingerprint = self.fingerprint()
        self.run_folder = RunFolder(arguments.output_dir, fingerprint, arguments.overwrite)
        self.folder = self.run_folder.path

    def fingerprint(self):
        """What the results depend on."""
        a = self.arguments
        model = (a.model_type, a.model_id)
        return fingerprint_of(a.result_settings(), len(self.rows), a.data_path, *model)

    def backbone(self):
        """The backbone and its tokenizer."""
        a = self.arguments
        return self.loader.backbone(a.model_type, a.model_id, a.model_dtype)

    def prepare(self):
        """Loads the models and encodes the questions, after a check that the model suits them."""
        a, (model, tokenizer) = self.arguments, self.backbone()
        if self.prompts is None:
            prompts = encode_questions(model, tokenizer, self.rows)
            check_lengths(prompts, model, a.latent_length, a.max_new_tokens, a.data_path)
            check_words(prompts, self.rows, model, tokenizer, a.data_path, a.allow_unknown)
            self.prompts = prompts

    def complete(self):
        """Does what is left of the work; returns the metrics on the first process."""
        if not self.finished:
            self.prepare()
            self.open()
            units = self.units()
            self.processes.wait_for_everyone()  # all have looked at the folder before any writes
            self._work_through(units)
        return self.finish()

    def open(self):
        """Prepares the folder."""
        self.run_folder.open(self.processes, self.arguments.batch_size, self.outputs)

    def _work_through(self, units):
        """This process's share of the units, which processes take in turn."""
        processes = self.processes
        share = units[processes.process_index :: processes.num_processes]
        total, quiet = sum(map(len, share)), not processes.is_main_process
        with progress(total, unit="question", disable=quiet) as bar:
            for unit in share:
                bar.set_postfix_str(self._try(unit), refresh=False)
                bar.update(len(unit))

    def _try(self, unit):
        try:
            return self.work_on(unit)
        except torch.OutOfMemoryError:
            mend = f"lower --batch_size {self.arguments.batch_size}"
            raise UserError(f"out of memory on {self.processes.device}: {mend}") from None

    def by_length(self, questions):
        """Batches of questions (indices) with prompts of similar length."""
        order = sorted(questions, key=lambda i: (len(self.prompts[i]), i))
        size = self.arguments.batch_size
        return [order[i : i + size] for i in range(0, len(order), size)]

    def request(self, batch):
        """The Request for a batch of questions."""
        return self.arguments.request([self.prompts[i].tolist() for i in batch], batch)
