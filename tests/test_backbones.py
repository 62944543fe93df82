"""Every command with every backbone on small random checkpoints; a backbone from outside joins by its entry."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from src.models import BACKBONES
from src.models.gpt2 import GPT2Decoder
from src.models.latent_reasoner import LatentReasoner
from tests.commands import command, outputs, run, run_here
from tests.conftest import RANDOM, random_gpt2
from utils.answers import after_hash

DATA = ("--data_path", "data/tiny_valid.json", "--limit", 12)
COMMANDS = {"codi": ("infer_gpt2", "infer_gpt2_rm"), "colar": ("infer_llama", "infer_llama_rm")}
SAMPLERS = {
    "noise": ("--sampling_by", "noise", "--noise_std", 0.4),
    "dropout": ("--sampling_by", "dropout", "--dropout_p", 0.2),
}


@pytest.fixture(scope="module", params=COMMANDS)
def generator(request, tmp_path_factory):
    """The name of a backbone and the folder of a small random checkpoint of it."""
    model, tokenizer = RANDOM[request.param](**POSITIONS[request.param])
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return request.param, folder


POSITIONS = {"codi": {"n_positions": 128}, "colar": {"max_position_embeddings": 192}}


def infer(generator, folder, *flags, processes=1):
    name, path = generator
    return command(
        COMMANDS[name][0], "--model_type", name, "--model_id", path, *DATA, "--n_samples", 5,
        "--latent_length", 6, "--max_new_tokens", 8, "--output_dir", folder, *flags, processes=processes,
    )  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_and_processes_change_nothing(generator, sampler, tmp_path):
    flags = (*SAMPLERS[sampler], "--bayesian_vote", "true")
    for name, size in (("one", 1), ("many", 16)):
        done = run_here(infer(generator, tmp_path / name, *flags, "--batch_size", size))
        assert done.returncode == 0, done.stderr
    done = run(infer(generator, tmp_path / "two", *flags, "--batch_size", 2, processes=2))
    assert done.returncode == 0, done.stderr
    assert _without_log_probs(tmp_path / "one") == _without_log_probs(tmp_path / "many")
    assert _without_log_probs(tmp_path / "one") == _without_log_probs(tmp_path / "two")


def _without_log_probs(folder):
    """The records but for what rounding may move in the last place."""
    text, metrics = outputs(folder)
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k != "log_probs"} for row in rows], metrics


def test_strength_zero_is_greedy(generator, tmp_path):
    greedy = ("--do_sample", "false", "--n_samples", 1)
    none = ("--n_samples", 1, "--sampling_by")
    for name, flags in (
        ("greedy", greedy), ("noise", (*none, "noise", "--noise_std", 0.0)),
        ("dropout", (*none, "dropout", "--dropout_p", 0.0)),
    ):  # fmt: skip
        assert run_here(infer(generator, tmp_path / name, *flags)).returncode == 0
    assert (
        outputs(tmp_path / "greedy") == outputs(tmp_path / "noise") == outputs(tmp_path / "dropout")
    )


@pytest.fixture(scope="module")
def judged(generator, tmp_path_factory):
    """The backbone, and a reward model for it."""
    return generator, trained_judge(generator, tmp_path_factory.mktemp("judged"))


def trained_judge(generator, folder):
    """The folder of a reward model that src.train made from a pool of src.annotate_data."""
    name, path = generator
    for rollouts in (0, 2):
        done = run_here(command(
            "annotate_data", "--model_type", name, "--model_id", path, *DATA, "--n_samples", 4,
            "--n_samples_per_step", rollouts, "--latent_length", 6, "--max_new_tokens", 8,
            *SAMPLERS["noise"], "--save_path", folder, "--name", f"pool{rollouts}",
        ))  # fmt: skip
        assert done.returncode == 0, done.stderr
    recipe = {
        "output_dir": str(folder / "rm"), "model_type": name, "model_id": str(path), "seed": 1,
        "train_pools": [str(folder / "pool0")], "eval_pools": {"test_n_4": str(folder / "pool0")},
        "labels": "outcome", "loss": {"contrastive": 1.0, "bce": 1.0}, "answer_weight": 1.0,
        "keep_unmixed": True, "extra_layers": 1, "learning_rate": 1e-3, "max_steps": 2,
        "per_device_train_batch_size": 4, "report_to": "none",
    }  # fmt: skip
    (folder / "rm.yaml").write_text(yaml.safe_dump(recipe))
    done = run_here(command("train", folder / "rm.yaml"))
    assert done.returncode == 0, done.stderr
    return folder / "rm"


def choose(judged, folder, *flags):
    (name, path), prm = judged
    return run_here(command(
        COMMANDS[name][1], "--generator_type", name, "--generator_id", path, "--prm_id", prm, *DATA,
        "--latent_length", 6, "--max_new_tokens", 8, *SAMPLERS["noise"], "--output_dir", folder, *flags,
    ))  # fmt: skip


def records_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("score_by", ["sum", "mean"])
def test_best_of_n_and_beams_choose_by_the_scores_that_exist(judged, tmp_path, score_by):
    assert infer_and_save(judged[0], tmp_path / "pool").returncode == 0
    mode = ("--prm_mode", "best_of_n", "--num_return_sequences", 5, "--report_n", 5)
    done = choose(judged, tmp_path / "best", *mode, "--score_by", score_by)
    assert done.returncode == 0, done.stderr
    for i, record in enumerate(records_of(tmp_path / "best")):
        lengths = load_file(tmp_path / f"pool/latents/{i:06d}.safetensors")[
            "latent_lengths"
        ].tolist()
        assert [len(scores) for scores in record["scores"]] == lengths
        assert len(record["answer_scores"]) == 5
    beams = ("--prm_mode", "beam_search", "--num_beams", 2, "--num_beam_candidates", 2)
    for size in (1, 16):
        done = choose(
            judged, tmp_path / f"{size}", *beams, "--batch_size", size, "--score_by", score_by
        )
        assert done.returncode == 0, done.stderr
    one, many = (records_of(tmp_path / str(size)) for size in (1, 16))
    assert [row["texts"] for row in one] == [row["texts"] for row in many]
    assert [row["vote"] for row in one] == [row["vote"] for row in many]


def infer_and_save(generator, folder):
    return run_here(infer(generator, folder, *SAMPLERS["noise"], "--save_latents", "true"))


def test_a_command_of_the_other_architecture_is_refused(generator, tmp_path):
    name, path = generator
    other = {"codi": "infer_llama", "colar": "infer_gpt2"}[name]
    done = run_here(
        command(other, "--model_type", name, "--model_id", path, "--output_dir", tmp_path)
    )
    assert done.returncode == 2
    assert "use the command with" in done.stderr.splitlines()[-1]


class Halved(LatentReasoner, GPT2Decoder, GPT2LMHeadModel):
    """A backbone from outside: its thoughts are half the hidden state."""

    parse_answer = staticmethod(after_hash)

    @staticmethod
    def format_prompt(question):
        return f"{question} <|start-latent|>"

    @staticmethod
    def format_answer(answer):
        return f"### {answer}"

    def to_thought(self, hidden):
        return hidden / 2


def test_a_backbone_joins_by_one_class_and_one_entry(tmp_path, monkeypatch):
    """Sampled, annotated, judged: nothing else in the house knows of it."""
    monkeypatch.setitem(BACKBONES, "halved", Halved)
    model, tokenizer = random_gpt2(Halved, n_positions=128)
    model.save_pretrained(tmp_path / "halved")
    tokenizer.save_pretrained(tmp_path / "halved")
    monkeypatch.setitem(COMMANDS, "halved", COMMANDS["codi"])
    generator = ("halved", tmp_path / "halved")
    assert infer_and_save(generator, tmp_path / "pool").returncode == 0
    latents = load_file(tmp_path / "pool/latents/000000.safetensors")
    ids = latents["input_ids"][None]
    with torch.no_grad():
        hidden = model.transformer(ids).last_hidden_state[0, -1]
    spread = latents["latent_embeds"][:, 0] - hidden / 2  # the noise alone
    assert spread.abs().mean() < 0.6
    judge = trained_judge(generator, tmp_path)
    for mode in (("best_of_n", "--num_return_sequences", 5), ("beam_search", "--num_beams", 2)):
        done = choose((generator, judge), tmp_path / mode[0], "--prm_mode", *mode)
        assert done.returncode == 0, done.stderr
        assert len(records_of(tmp_path / mode[0])) == 12
