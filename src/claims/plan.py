"""The command lines that src.reproduce runs, and the folder of each run."""

from pathlib import Path

from src.claims.setting import BEAMS, SIZES
from src.models import architectures
from src.runs.launch import command_line, sampling_command
from src.sampling.samplers import STRENGTHS
from utils.config import read_yaml

# The reward models of the claims: what differs from the paper's recipe.
TRAININGS = {
    "contrastive-rollout": {},  # the paper's LatentRM
    "bce-rollout": {"loss": {"bce": 1.0}},
    "contrastive-outcome": {"labels": "outcome"},
    "random-head": {"train_weights": False},
}
PAPER = "contrastive-rollout"
SHIPPED = "shipped"
JUDGE = "judge"  # the pool judge of the setting
JUDGE_SIZES = (16, 64)  # N at which it judges
PARTS = ("train", "valid")  # of the annotated data
SWEPT = "Test"  # the benchmark on which strengths are swept
BATCHES = {"limit": 200, "n_samples": 16, "batch_size": 7}  # of the runs in other batches
MAP_LIMIT = 40  # questions whose thoughts are kept for the map


class Plan:
    """The folders and command lines of a Setting."""

    def __init__(self, setting):
        self.setting, self.folder = setting, Path(setting.folder)
        self.architecture = architectures(setting.model_type)[0]  # of the bundled and published

    def greedy(self, benchmark):
        return self.folder / "greedy" / benchmark

    def pool(self, benchmark, sampler, strength, seed):
        """The folder of a pool of 64 sampled trajectories a question."""
        return self.folder / "pools" / benchmark / f"{sampler}-{strength}-seed{seed}"

    def scored_pool(self, benchmark, seed):
        """The folder of the pool that reward models score; its thoughts are kept."""
        sampler = self.setting.sampler
        return self.pool(benchmark, sampler, self.setting.chosen[sampler], seed)

    def other_batches(self, sampler, seed):
        """The folder of a smaller pool in other batches and one process."""
        return self.folder / "other_batches" / f"{sampler}-seed{seed}"

    def map(self, sampler):
        """The folder of a small run whose thoughts are kept; sampler None: greedy."""
        return self.folder / "maps" / (sampler or "greedy")

    def annotated(self, part):
        """The folder of the annotated pool, ``train`` or ``valid``."""
        return self.folder / "annotated" / part

    def trained(self, kind, seed):
        """The folder of a reward model: trained, or for SHIPPED and JUDGE that of the setting."""
        if kind == SHIPPED:
            return Path(self.setting.reward_model)
        if kind == JUDGE:
            return Path(self.setting.judge)
        return self.folder / "reward_models" / f"{kind}-seed{seed}"

    def chosen(self, kind, benchmark, seed):
        """The folder of a pool's scores by a reward model."""
        return self.folder / "chosen" / benchmark / f"{kind}-seed{seed}"

    def beams(self, kind, benchmark, seed):
        return self.folder / "beams" / benchmark / f"{kind}-seed{seed}"

    def cells(self, stage):
        """The file of a stage's command lines."""
        return self.folder / "cells" / f"{stage}.txt"

    def alone(self, seed):
        """The file of what the shipped reward model answers by itself."""
        return self.folder / "alone" / f"seed{seed}.json"

    def _sampling(self, benchmark, folder, **flags):
        """The command line of a sampling run. A flag of None is left out."""
        setting = self.setting
        shared = {
            "model_type": setting.model_type,
            "model_id": setting.model_id,
            "data_path": setting.benchmarks[benchmark],
            "limit": setting.limit,
            "batch_size": setting.batch_size,
        }
        command = sampling_command(self.architecture)
        return command_line(command, shared | flags | {"output_dir": folder})

    def _pool(self, benchmark, sampler, strength, seed):
        """A pool. That of the chosen strength is kept with its thoughts, if it is to be scored."""
        kept = sampler == self.setting.sampler and strength == self.setting.chosen[sampler]
        flags = {
            "n_samples": SIZES[-1],
            "report_n": SIZES,
            "sampling_by": sampler,
            STRENGTHS[sampler]: strength,
            "seed": seed,
            "save_latents": True if kept else None,
        }
        return self._sampling(benchmark, self.pool(benchmark, sampler, strength, seed), **flags)

    def _at_most(self, questions):
        return min(questions, self.setting.limit or questions)

    def greedy_cells(self):
        return [self._sampling(b, self.greedy(b), do_sample=False) for b in self.setting.benchmarks]

    def pool_cells(self):
        """The chosen strengths on every benchmark, all strengths on one of them."""
        setting = self.setting
        return [
            self._pool(benchmark, sampler, strength, seed)
            for benchmark in setting.benchmarks
            for sampler, chosen in setting.chosen.items()
            for strength in (setting.grid(sampler) if benchmark == SWEPT else [chosen])
            for seed in setting.seeds
        ]

    def map_cells(self):
        """Small runs whose thoughts are kept for the map: greedy and both samplers."""
        flags = {"limit": self._at_most(MAP_LIMIT), "save_latents": True}  # the map shows a few
        lines = [self._sampling(SWEPT, self.map(None), do_sample=False, **flags)]
        for sampler, strength in self.setting.chosen.items():
            drawn = {"sampling_by": sampler, STRENGTHS[sampler]: strength}
            lines.append(self._sampling(SWEPT, self.map(sampler), **flags | drawn))
        return lines

    def other_batch_cells(self):
        """The same samples in other batches, for one process."""
        return [
            self._sampling(
                SWEPT,
                self.other_batches(sampler, seed),
                **BATCHES | {"limit": self._at_most(BATCHES["limit"])},
                sampling_by=sampler,
                **{STRENGTHS[sampler]: strength},
                seed=seed,
            )
            for sampler, strength in self.setting.chosen.items()
            for seed in self.setting.seeds
        ]

    def annotation_cells(self):
        """The pools on which the reward models are trained and evaluated."""
        setting = self.setting
        shared = {
            "model_type": setting.model_type,
            "model_id": setting.model_id,
            "batch_size": 2 * setting.batch_size,
            "sampling_by": setting.sampler,
            "seed": 1,
        }
        train = {
            "data_path": setting.train_data,
            "limit": setting.train_questions,
            "n_samples": 8,
            "n_samples_per_step": setting.rollouts,
        }
        valid = {
            "data_path": setting.valid_data,
            "limit": setting.valid_questions,
            "n_samples": SIZES[-1],
            "n_samples_per_step": 0,
        }
        return [
            command_line("src.annotate_data", shared | flags | self._saved_in(part))
            for part, flags in {"train": train, "valid": valid}.items()
        ]

    def _saved_in(self, part):
        folder = self.annotated(part)
        return {"save_path": folder.parent, "name": folder.name}

    def recipes(self):
        """{recipe's file: its content}: the setting's recipe with what differs."""
        return {
            self.folder / "recipes" / f"{kind}-seed{seed}.yaml": changed
            for kind, changes in TRAININGS.items()
            for index, seed in enumerate(self.setting.seeds)
            for changed in [self._recipe(self.trained(kind, seed), index) | changes]
        }

    def commands(self):
        """{what they make: all command lines}, the trainings of reward models included."""
        trainings = [f"accelerate launch -m src.train {path}" for path in self.recipes()]
        cells = {
            "greedy": self.greedy_cells(),
            "pools": self.pool_cells(),
            "maps": self.map_cells(),
            "other_batches": self.other_batch_cells(),
            "annotated": self.annotation_cells(),
            "chosen": self.chosen_cells(),
            "beams": self.beam_cells(),
        }
        lines = {name: [f"python -m {line}" for line in of_one] for name, of_one in cells.items()}
        return lines | {"reward_models": trainings}

    def _recipe(self, folder, training_seed):
        return read_yaml(Path(self.setting.recipe)) | {
            "output_dir": str(folder),
            "model_type": self.setting.model_type,
            "model_id": self.setting.model_id,
            "train_pools": [str(self.annotated("train"))],
            "eval_pools": {"test_n_64": str(self.annotated("valid"))},
            "seed": training_seed,
        }

    def chosen_cells(self):
        """The scores of every seed's pools by every reward model, and by the judge if there is one.

        The shipped one samples its pools itself, so that costs are measured.
        """
        lines, kinds = [], [*TRAININGS, *([JUDGE] if self.setting.judge else [])]
        for benchmark in self.setting.benchmarks:
            for seed in self.setting.seeds:
                lines += [self._scores(kind, benchmark, seed) for kind in kinds]
                folder = self.chosen(SHIPPED, benchmark, seed)
                lines.append(self._chooses(SHIPPED, benchmark, seed, folder, {"report_n": SIZES}))
        return lines

    def beam_cells(self):
        """Beam search by the paper's reward model and by the shipped one."""
        beams = {"num_beams": BEAMS[0], "num_beam_candidates": BEAMS[1]}
        mode = {"prm_mode": "beam_search"} | beams
        return [
            self._chooses(kind, benchmark, seed, self.beams(kind, benchmark, seed), mode)
            for kind in (PAPER, SHIPPED)
            for benchmark in self.setting.benchmarks
            for seed in self.setting.seeds
        ]

    def _scores(self, kind, benchmark, seed):
        """The scores of a saved pool, which all other settings are taken from."""
        flags = {
            "prm_id": self.trained(kind, seed),
            "pool": self.scored_pool(benchmark, seed),
            "report_n": JUDGE_SIZES if kind == JUDGE else SIZES,
            "output_dir": self.chosen(kind, benchmark, seed),
        }
        return command_line(sampling_command(self.architecture, chooses=True), flags)

    def _chooses(self, kind, benchmark, seed, folder, mode):
        setting, sampler = self.setting, self.setting.sampler
        flags = {
            "model_type": setting.model_type,
            "model_id": setting.model_id,
            "prm_id": self.trained(kind, seed),
            "data_path": setting.benchmarks[benchmark],
            "limit": setting.limit,
            "batch_size": setting.batch_size,
            "sampling_by": sampler,
            STRENGTHS[sampler]: setting.chosen[sampler],
            "seed": seed,
            "output_dir": folder,
        }
        return command_line(sampling_command(self.architecture, chooses=True), flags | mode)
