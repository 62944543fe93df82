"""What all commands do around their work: open a folder, resume, share the work, show progress."""

from collections import Counter
from dataclasses import replace

from accelerate.utils import gather_object

from src.models.loading import bundled_backbone
from src.models.precision import slowness
from src.runs.questions import check_lengths, check_words, encode_questions
from src.runs.run_folder import RunFolder, fingerprint_of
from src.sampling.compilation import Compilation, missing_compiler, timed_apart
from src.sampling.engine import sample
from src.sampling.memory import set_budget
from utils import device_memory
from utils.datasets import load_dataset
from utils.errors import UserError, warn
from utils.processes import SharedSums, handed_out, where
from utils.progress import progress

_COMPILED_FROM = 50_000  # trajectories; compiling takes a minute or more, which few do not pay back


class Job:
    """A command at work on the questions of a data file. Nothing is written before ``complete``.

    A subclass gives ``outputs``, patterns of the files that it writes, and:
    finished: whether nothing is left to do; trajectories: how many are still to be sampled, by all
    processes together; done: the questions (indices) that are finished, from ``open`` on the same
    on every process; batches(): all questions, in lists that are computed together; work_on(unit):
    computes one of them, keeps what is not in ``done`` and returns a line of running metrics;
    finish(): closes the run, whose results are all written, and returns its metrics on the first
    process; report(metrics): prints them.

    sums: the SharedSums of the processes while they work.

    Raises UserError when data, model or folder can't be used.
    """

    outputs = ()
    trajectory_cost = 1  # time of a trajectory in all, in units of sampling it

    def __init__(self, arguments, processes, loader):
        self.arguments, self.processes, self.loader = arguments, processes, loader
        self.rows = load_dataset(arguments.data_path)[: arguments.limit]
        self.prompts = None
        self.budget = None  # of the models' memory, see ``limit_memory``
        self.sums = None
        self.ran_out_of_memory = False
        fingerprint = self.fingerprint()
        self.run_folder = RunFolder(arguments.output_dir, fingerprint, arguments.overwrite)
        self.folder = self.run_folder.path

    def fingerprint(self):
        """What the results depend on."""
        args = self.arguments
        model = (args.model_type, args.model_id)
        return fingerprint_of(args.result_settings(), len(self.rows), args.data_path, *model)

    def backbone(self):
        """The backbone and its tokenizer."""
        args = self.arguments
        return self.loader.backbone(args.model_type, args.model_id, args.model_dtype)

    def models(self):
        """The models that work together, loaded."""
        return [self.backbone()[0]]

    def limit_memory(self):
        """Loads the models and sets how much memory they may work with. All processes call it.

        Raises UserError where --memory_gib leaves no room.
        """
        args = self.arguments
        positions = max(map(len, self.prompts)) + args.latent_length + args.max_new_tokens
        self.budget = set_budget(self.models(), positions, args.memory_gib)
        # The least of all processes: the parts of a unit must not depend on who computes it.
        self.budget.size = min(gather_object([self.budget.size]))

    def set_compilation(self):
        """Has the backbone's steps compiled where --compile asks for it, and the device can.

        Raises UserError where it must and can't.
        """
        asked, device = self.arguments.compile, self.processes.device
        pays = device.type == "cuda" and self.trajectories >= _COMPILED_FROM
        can_compile, sampler = self.arguments.sampling().compiles, self.arguments.sampling_by
        if asked == "on" and not can_compile:
            raise UserError(f"--compile on: --sampling_by {sampler} does not compile; leave it out")
        wanted = asked == "on" or (asked == "auto" and pays and can_compile)
        lacking = missing_compiler(device) if wanted else None
        if lacking and asked == "on":
            raise UserError(f"--compile on: {lacking} is missing; install it or leave the flag out")
        compiles = wanted and not lacking
        self.backbone()[0].compilation = Compilation(asked == "on") if compiles else None

    def prepare(self):
        """Encodes the questions and loads the models, after a check that they suit each other."""
        args, (model, tokenizer) = self.arguments, self.backbone()
        if self.prompts is None:
            prompts = encode_questions(model, tokenizer, self.rows)
            check_lengths(prompts, model, args.latent_length, args.max_new_tokens, args.data_path)
            files = (args.model_id, args.data_path)
            check_words(prompts, self.rows, model, tokenizer, *files, args.allow_unknown)
            self.prompts = prompts
        self.set_compilation()
        args.sampling().prepare(model)  # what this keeps counts as memory of the model
        self.limit_memory()

    @property
    def model_key(self):
        return self.arguments.model_type, self.arguments.model_id

    def introduce(self):
        """Prints which model runs on what; warns of a number format that is slow here."""
        args, processes = self.arguments, self.processes
        if not processes.is_main_process:
            return
        note = " (bundled)" if args.model_id == str(bundled_backbone(args.model_type)) else ""
        model = f"{args.model_type} {args.model_id}{note}, {args.sampler_name}"
        data = f"on {len(self.rows)} questions of {args.data_path}"
        device = where(processes.device, processes.num_processes)
        print(f"{model}, {data}; {args.model_dtype} on {device}", flush=True)
        slow = slowness(args.model_dtype)
        if slow and not self.finished:
            warn(f"--model_dtype {slow}")

    def seconds_per_trajectory(self):
        """By a measurement of about a second, with twice as many samples each time.

        What compiling takes does not count.
        """
        batch = list(range(len(self.rows)))[: self.arguments.batch_size]
        model, request, count, total = self.backbone()[0], self.request(batch), 1, 0
        while True:
            counter = Counter()
            with timed_apart(model, counter):
                sample(model, replace(request, n_samples=count))
            total += counter["seconds"]
            if total > 1:
                return counter["seconds"] / (count * len(batch))
            count = min(2 * count, request.n_samples)

    def complete(self):
        """Does what is left of the work; returns the metrics on the first process."""
        if not self.finished:
            self.prepare()
            self.open()
            self._work_through(self.units())
        if self.processes.is_main_process:  # --report_n may be new, even if nothing was left to do
            self.run_folder.save_flags(self.arguments.flags())
        return self.finish()

    def push(self):
        """Sends the finished run to the hub if its flag says so; only the first process does."""
        repo = self.arguments.push_to_hub
        if repo is not None and self.processes.is_main_process:
            self.run_folder.push(repo, self.outputs)

    def open(self):
        """Creates the folder; with --overwrite true removes the old run first. All processes call
        it, and it ends in a barrier. A subclass then tells all of them what is done."""
        self.run_folder.open(self.processes, self.arguments.batch_size, self.outputs)

    def units(self):
        """The batches that are left. They do not depend on what is done: a batch that was
        interrupted is computed as before."""
        return [batch for batch in self.batches() if any(i not in self.done for i in batch)]

    def _work_through(self, units):
        """Works on the units until none is left: each goes to the first process that is free. The
        processes wait for each other at the end only. The bar counts what all of them have done."""
        self.sums, total = SharedSums(), sum(map(len, units))
        quiet = not self.processes.is_main_process
        with progress(total, unit="question", disable=quiet) as bar:
            for unit in handed_out(units, self.sums):
                bar.set_postfix_str(self._try(unit), refresh=False)
                bar.update(self.sums.add("questions done", len(unit)) - bar.n)
            self.processes.wait_for_everyone()
            bar.update(total - bar.n)

    def _try(self, unit):
        """``work_on`` with half the memory whenever it ran out, until that is too little."""
        while True:
            try:
                return self.work_on(unit)
            except (RuntimeError, MemoryError) as error:
                if not device_memory.ran_out(error):
                    raise
            # Outside the except block: the traceback holds tensors.
            self._halve_memory()

    def _halve_memory(self):
        """Raises UserError when the memory is too little already."""
        device, size = self.processes.device, self.arguments.batch_size
        if not self.budget.halve():
            mend = f"lower --batch_size {size}, raise --memory_gib or free memory there"
            raise UserError(f"out of memory on {device} with the smallest batches: {mend}")
        device_memory.release(device)
        if not self.ran_out_of_memory:
            warn(f"out of memory on {device}: going on with smaller batches (see --memory_gib)")
            self.ran_out_of_memory = True

    def by_length(self, questions):
        """Batches of questions (indices) with prompts of similar length, the longest first: the
        less the last ones cost, the more evenly the processes end."""
        order = sorted(questions, key=lambda i: (len(self.prompts[i]), i))
        size = self.arguments.batch_size
        return [order[i : i + size] for i in range(0, len(order), size)][::-1]

    def request(self, batch):
        """The Request for a batch of questions."""
        return self.arguments.request([self.prompts[i].tolist() for i in batch], batch)
