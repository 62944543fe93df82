"""--config: the flags of a command in a YAML file, and flags.yaml, which every run writes."""

import pytest
import yaml

from src.runs.commands import COMMANDS
from tests.commands import assert_one_line_error, assert_success, command, outputs, run_here
from utils.cli import parse_flags

DATA = ("--data_path", "data/tiny_valid.json", "--limit", 3)
NOISE = ("--sampling_by", "noise")
RUNS = {
    "greedy": ("infer_gpt2", *DATA, "--do_sample", "false"),
    "noise": ("infer_gpt2", *DATA, *NOISE, "--noise_std", 1e-5, "--n_samples", 2),
    "codi": ("infer_gpt2", *DATA, "--model_type", "codi", "--n_samples", 4, "--report_n", 3),
    "colar": ("infer_llama", *DATA, "--n_samples", 2, "--bayesian_vote", "true"),
    "best_of_n": ("infer_gpt2_rm", *DATA, *NOISE, "--n_samples", 2, "--score_by", "mean"),
    "beams": ("infer_gpt2_rm", *DATA, "--prm_mode", "beam_search", "--num_beams", 2),
    "colar_beams": ("infer_llama_rm", *DATA, "--prm_mode", "beam_search"),
}
ANNOTATION = ("annotate_data", *DATA, "--n_samples", 2, "--n_samples_per_step", 1)


def parsed(module, *flags):
    name = f"src.{module}"
    return parse_flags(COMMANDS[name].arguments, name, "", [*map(str, flags)])


def write_flags(tmp_path, text):
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    return path


def assert_repeats(module, flags, folder):
    """The run's flags.yaml gives the same flags, and in another folder the same results."""
    path = folder / "run/flags.yaml"
    assert parsed(module, "--config", path) == parsed(module, *flags)
    before = path.read_text()
    again = assert_success(run_here(command(module, "--config", path)))
    assert "question/s" not in again.stderr  # the run is finished
    assert path.read_text() == before
    elsewhere = ("--config", path, "--output_dir", folder / "again")
    assert_success(run_here(command(module, *elsewhere)))
    assert outputs(folder / "again") == outputs(folder / "run")


@pytest.mark.parametrize("name", RUNS)
def test_flags_yaml_gives_the_same_run_again(name, tmp_path):
    module, *flags = RUNS[name]
    flags += ["--output_dir", tmp_path / "run"]
    assert_success(run_here(command(module, *flags)))
    assert_repeats(module, flags, tmp_path)


def test_flags_yaml_of_a_choice_from_a_pool_gives_it_again(tmp_path):
    flags = ("--n_samples", 2, "--save_latents", "true", "--output_dir", tmp_path / "pool")
    assert_success(run_here(command("infer_gpt2", *DATA, *flags)))
    flags = ("--pool", tmp_path / "pool", "--output_dir", tmp_path / "run")
    assert_success(run_here(command("infer_gpt2_rm", *flags)))
    assert_repeats("infer_gpt2_rm", flags, tmp_path)


def test_flags_yaml_of_an_annotation_gives_the_same_shards_again(tmp_path):
    module, *flags = ANNOTATION
    place = ("--save_path", tmp_path, "--name")
    assert_success(run_here(command(module, *flags, *place, "run")))
    path = tmp_path / "run/flags.yaml"
    assert parsed(module, "--config", path) == parsed(module, *flags, *place, "run")
    assert_success(run_here(command(module, "--config", path, "--name", "again")))
    shard = "shard_00000.safetensors"
    assert (tmp_path / "again" / shard).read_bytes() == (tmp_path / "run" / shard).read_bytes()


def test_flags_yaml_is_that_of_the_last_command_and_never_overwrites(tmp_path):
    line = ("infer_gpt2", *DATA, *NOISE, "--n_samples", 4, "--output_dir", tmp_path / "run")
    assert_success(run_here(command(*line, "--overwrite", "true")))
    assert_success(run_here(command(*line, "--report_n", 2)))
    values = yaml.safe_load((tmp_path / "run/flags.yaml").read_text())
    assert values["report_n"] == [2]
    assert "overwrite" not in values
    assert_success(run_here(command(*line, "--seed", 3, "--overwrite", "true")))
    assert yaml.safe_load((tmp_path / "run/flags.yaml").read_text())["seed"] == 3


@pytest.mark.quick
def test_the_command_line_wins_over_the_file(tmp_path):
    text = "num_return_sequences: 16\nseed: 3\ndo_sample: true\nreport_n: [1, 16]\nlimit: null\n"
    path = write_flags(tmp_path, text)
    arguments = parsed("infer_gpt2", "--config", path, "--generator_type", "codi", "--seed", 4)
    assert (arguments.n_samples, arguments.model_type, arguments.seed) == (16, "codi", 4)
    assert (arguments.report_n, arguments.limit) == ([1, 16], None)
    for flags in (("--n_samples", 4, "--report_n", 1), ("--n-samples=4", "--report_n", "1")):
        assert parsed("infer_gpt2", "--config", path, *flags).n_samples == 4
    path = write_flags(tmp_path, "do_sample: false\nnoise_std: null\n")
    assert not parsed("infer_gpt2", "--config", path).do_sample
    assert parsed("infer_gpt2", "--config", path, "--do_sample", "true").do_sample


@pytest.mark.quick
def test_a_number_of_the_file_is_that_of_the_command_line(tmp_path):
    path = write_flags(tmp_path, "sampling_by: noise\nnoise_std: 5e-1\nmodel_dtype: float32\n")
    assert parsed("infer_gpt2", "--config", path) == parsed(
        "infer_gpt2", *NOISE, "--noise_std", 0.5
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_sample: 4", "unknown key n_sample: did you mean n_samples?"),
        ("--n_samples: 4", "unknown key --n_samples: did you mean n_samples?"),
        ("config: x.yaml", "unknown key config"),
        ("help: true", "unknown key help"),
        ("no_do_sample: true", "unknown key no_do_sample"),
        ("prm_id: x", "unknown key prm_id"),
        ("3: 4", "unknown key 3"),
        ("seed: 1\nseed: 2", "key 'seed' is given twice"),
        ("n_samples: 1\nnum_return_sequences: 2", "n_samples and num_return_sequences"),
        ("n_samples: four", "n_samples must be of type int, not 'four'"),
        ("num_return_sequences: 4.0", "num_return_sequences must be of type int"),
        ("seed: null", "seed must be of type int"),
        ("noise_std: loud", "noise_std must be a finite number"),
        ("do_sample: yes", "do_sample must be of type bool"),
        ("data_path: 3", "data_path must be of type str"),
        ("report_n: 4", "report_n must be a list"),
        ("report_n: [1, x]", "report_n[1] must be of type int"),
        (
            "sampling_by: nois",
            "sampling_by must be one of dropout, noise, svp, weight_noise, tokens, or several",
        ),
        ("batch_size: 0", "--batch_size must be at least 1"),
        ("noise_std: 0.1", "--noise_std has no effect with --sampling_by dropout"),
        ("seed: [1", "not valid YAML"),
        ("", "must hold keys and values"),
    ],
)
def test_a_mistake_in_the_file_is_a_one_line_error_that_names_file_and_key(text, message, tmp_path):
    path = write_flags(tmp_path, text)
    result = run_here(command("infer_gpt2", "--config", path, "--output_dir", tmp_path / "out"))
    assert_one_line_error(result, path, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.quick
def test_a_missing_file_is_a_one_line_error_also_in_a_sweep(tmp_path):
    result = run_here(command("annotate_data", "--config", tmp_path / "none.yaml"))
    assert_one_line_error(result, "none.yaml: no such file")
    path = write_flags(tmp_path, "n_sample: 4")
    (tmp_path / "cells.txt").write_text(f"src.infer_gpt2 --config {path}")
    result = run_here(command("sweep", tmp_path / "cells.txt"))
    assert_one_line_error(result, "cells.txt: line 1", path, "unknown key n_sample")
