"""Every command with every backbone, on small random checkpoints, and with one more backbone."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from src.models import BACKBONES
from src.models.latent_reasoner import LatentReasoner
from tests.commands import (
    assert_one_line_error,
    assert_success,
    command,
    outputs,
    run,
    run_here,
    samples_of,
)
from tests.conftest import random_gpt2, save_checkpoint, save_random_checkpoint
from utils.answers import after_hash

DATA = ("--data_path", "data/tiny_valid.json", "--limit", 12)
COMMANDS = {"codi": ("infer_gpt2", "infer_gpt2_rm"), "colar": ("infer_llama", "infer_llama_rm")}
SAMPLERS = {
    "noise": ("--sampling_by", "noise", "--noise_std", 0.4),
    "dropout": ("--sampling_by", "dropout", "--dropout_p", 0.2),
}
MIXED = ("--sampling_by", "noise+svp+tokens", "--noise_std", 0.2, "--svp_alpha", 0.2)


@pytest.fixture(scope="module", params=COMMANDS)
def generator(request, tmp_path_factory):
    """The name of a backbone and the folder of a small random checkpoint of it."""
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    return request.param, save_random_checkpoint(request.param, folder)


LENGTHS = ("--latent_length", 6, "--max_new_tokens", 8)


def infer(generator, folder, *flags, processes=1):
    name, path = generator
    flags = (*DATA, "--n_samples", 5, *LENGTHS, "--output_dir", folder, *flags)
    model = ("--model_type", name, "--model_id", path)
    return command(COMMANDS[name][0], *model, *flags, processes=processes)


@pytest.mark.parametrize(
    ("sampler", "processes"), [(MIXED, 2), (SAMPLERS["dropout"], 1)], ids=["mixed", "dropout"]
)
def test_batch_size_and_processes_change_nothing(generator, sampler, processes, tmp_path):
    flags = (*sampler, "--bayesian_vote", "true", "--batch_size")
    assert_success(run_here(infer(generator, tmp_path / "one", *flags, 1)))
    many = infer(generator, tmp_path / "many", *flags, 5, processes=processes)
    assert_success(run(many) if processes > 1 else run_here(many))
    assert _without_log_probs(tmp_path / "one") == _without_log_probs(tmp_path / "many")


def _without_log_probs(folder):
    """The records, without what rounding may change in the last digit, and the metrics."""
    rows = [{k: v for k, v in row.items() if k != "log_probs"} for row in samples_of(folder)]
    return rows, outputs(folder)[1]


def test_zero_noise_or_dropout_is_greedy(generator, tmp_path):
    for name, flags in {
        "greedy": ("--do_sample", "false"),
        "noise": ("--sampling_by", "noise", "--noise_std", 0.0),
        "dropout": ("--sampling_by", "dropout", "--dropout_p", 0.0),
    }.items():
        assert_success(run_here(infer(generator, tmp_path / name, "--n_samples", 1, *flags)))
    assert outputs(tmp_path / "noise") == outputs(tmp_path / "greedy")
    assert outputs(tmp_path / "dropout") == outputs(tmp_path / "greedy")


@pytest.fixture(scope="module")
def reward_model(generator, tmp_path_factory):
    return train_reward_model(generator, tmp_path_factory.mktemp("reward_model"))


def train_reward_model(generator, folder):
    """The folder of a reward model that src.train made from a pool of src.annotate_data."""
    name, path = generator
    model = ("--model_type", name, "--model_id", path)
    flags = (*DATA, "--n_samples", 4, *LENGTHS, *SAMPLERS["noise"])
    for rollouts in (0, 2):
        pool = (
            "--n_samples_per_step",
            rollouts,
            "--save_path",
            folder,
            "--name",
            f"pool{rollouts}",
        )
        assert_success(run_here(command("annotate_data", *model, *flags, *pool)))
    recipe = {
        "output_dir": str(folder / "rm"),
        "model_type": name,
        "model_id": str(path),
        "seed": 1,
        "train_pools": [str(folder / "pool0")],
        "eval_pools": {"test_n_4": str(folder / "pool0")},
        "labels": "outcome",
        "loss": {"contrastive": 1.0, "bce": 1.0},
        "answer_weight": 1.0,
        "keep_unmixed": True,
        "extra_layers": 1,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "report_to": "none",
    }
    (folder / "rm.yaml").write_text(yaml.safe_dump(recipe))
    assert_success(run_here(command("train", folder / "rm.yaml")))
    return folder / "rm"


def choose(generator, reward_model, folder, *flags):
    """Runs the command that chooses by a reward model, and returns its records."""
    name, path = generator
    models = ("--generator_type", name, "--generator_id", path, "--prm_id", reward_model)
    flags = (*DATA, *LENGTHS, *SAMPLERS["noise"], "--output_dir", folder, *flags)
    assert_success(run_here(command(COMMANDS[name][1], *models, *flags)))
    return samples_of(folder)


def save_pool(generator, folder):
    """Samples a pool and saves its thoughts."""
    flags = (*SAMPLERS["noise"], "--save_latents", "true")
    assert_success(run_here(infer(generator, folder, *flags)))


def test_best_of_n_scores_the_thoughts_that_exist(generator, reward_model, tmp_path):
    save_pool(generator, tmp_path / "pool")
    flags = ("--num_return_sequences", 5, "--report_n", 5)
    best = choose(generator, reward_model, tmp_path / "x", "--prm_mode", "best_of_n", *flags)
    for i, record in enumerate(best):
        latents = load_file(tmp_path / f"pool/latents/{i:06d}.safetensors")
        num_thoughts = [len(scores) for scores in record["scores"]]
        assert num_thoughts == latents["latent_lengths"].tolist()
        assert len(record["answer_scores"]) == 5


def test_batch_size_changes_no_beam(generator, reward_model, tmp_path):
    flags = ("--prm_mode", "beam_search", "--num_beams", 2, "--num_beam_candidates", 2)
    flags += ("--score_by", "mean")
    one, many = (
        choose(generator, reward_model, tmp_path / str(size), *flags, "--batch_size", size)
        for size in (1, 16)
    )
    assert [row["texts"] for row in one] == [row["texts"] for row in many]
    assert [row["vote"] for row in one] == [row["vote"] for row in many]


def test_a_command_for_the_other_architecture_is_refused(generator, tmp_path):
    name, path = generator
    other = {"codi": "infer_llama", "colar": "infer_gpt2"}[name]
    flags = ("--model_type", name, "--model_id", path, "--output_dir", tmp_path)
    assert_one_line_error(run_here(command(other, *flags)), "use the command with")


class Halved(LatentReasoner):
    """A backbone that the project does not know. Its thoughts are half the hidden state."""

    parse_answer = staticmethod(after_hash)

    @staticmethod
    def format_prompt(question):
        return f"{question} <|start-latent|>"

    @staticmethod
    def format_answer(answer):
        return f"### {answer}"

    def to_thought(self, hidden):
        return hidden / 2


def test_the_other_architecture_takes_the_same_way(tmp_path, monkeypatch):
    """CODI on LLaMA is sampled, annotated, and chosen from by a reward model with a projector."""
    monkeypatch.setitem(COMMANDS, "codi", COMMANDS["colar"])
    generator = ("codi", save_random_checkpoint("codi llama", tmp_path / "codi"))
    reward_model = train_reward_model(generator, tmp_path)
    assert "projector.1.weight" in load_file(reward_model / "model.safetensors")
    assert len(choose(generator, reward_model, tmp_path / "x", "--prm_mode", "best_of_n")) == 12


def test_a_backbone_joins_by_one_class_and_one_entry(tmp_path, monkeypatch):
    """It is sampled, annotated, and chosen from by a reward model."""
    monkeypatch.setitem(BACKBONES, "halved", Halved)
    monkeypatch.setitem(COMMANDS, "halved", COMMANDS["codi"])
    model, tokenizer = random_gpt2(Halved, n_positions=128)
    generator = ("halved", save_checkpoint(tmp_path / "halved", model, tokenizer))
    save_pool(generator, tmp_path / "pool")
    latents = load_file(tmp_path / "pool/latents/000000.safetensors")
    ids = latents["input_ids"][None]
    with torch.no_grad():
        hidden = model.transformer(ids).last_hidden_state[0, -1]
    noise = latents["latent_embeds"][:, 0] - hidden / 2
    assert noise.abs().mean() < 0.6
    reward_model = train_reward_model(generator, tmp_path)
    for mode in (("best_of_n", "--num_return_sequences", 5), ("beam_search", "--num_beams", 2)):
        samples = choose(generator, reward_model, tmp_path / mode[0], "--prm_mode", *mode)
        assert len(samples) == 12
