"""The model card of a checkpoint: README.md with the hub's metadata, from the folder's own files.

python -m src.training.model_card FOLDER... writes the cards of finished checkpoints again.
"""

import json
import sys
import textwrap
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from src.models import BACKBONES
from src.training.losses.cot import COT
from utils.benchmarks import BENCHMARKS
from utils.config import read_yaml
from utils.datasets import data_name
from utils.errors import reports_user_errors
from utils.files import write_text
from utils.hub_data import is_hub_id, parse_hub_id

NAME = "README.md"
_TAGS = ["latent-reasoning", "test-time-scaling", "arxiv:2510.07745"]
# columns of a reward model's table, by the names of its metrics
_POOL_METRICS = {
    "recall_at_1": "best-of-N", "weighted_vote": "weighted vote", "vote": "majority vote",
    "coverage": "coverage", "auc": "pairwise AUC",
}  # fmt: skip
_JUDGE_METRICS = {
    "recall_at_1": "pool judge", "vote": "majority vote", "coverage": "coverage",
    "auc": "pairwise AUC",
}  # fmt: skip
_FILES = "`recipe.yaml` holds all settings, `metrics.json` the history."
_PLACE = "From the root of latent-tts, with the path or the hub id of this folder:"
_CITATION = """## Citation

```bibtex
@misc{you2025parallel,
  title = {Parallel Test-Time Scaling for Latent Reasoning Models},
  author = {Runyang You and Yongqi Li and Meng Liu and Wenjie Wang and Liqiang Nie and Wenjie Li},
  year = {2025},
  eprint = {2510.07745},
  archivePrefix = {arXiv}
}
```
"""


def write_card(folder):
    """Writes README.md into the folder of a checkpoint that has its other files."""
    write_text(Path(folder) / NAME, model_card(folder))


def model_card(folder):
    """The text of a checkpoint's card, from its recipe.yaml, metrics.json and config.json.

    The folder's path, as it is given, stands in the commands of the card.
    """
    folder = Path(folder)
    recipe = {"model_type": "coconut"} | read_yaml(folder / "recipe.yaml")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    is_reward_model = "train_pools" in recipe
    describe = _of_reward_model if is_reward_model else _of_backbone
    if recipe.get("judges_pool"):
        describe = _of_pool_judge
    if recipe["model_type"] == COT:
        describe = _of_cot
    results, sections = describe(folder, recipe, metrics)
    base = recipe["model_id"] if is_reward_model else recipe.get("base")
    paths = () if is_reward_model else (recipe["train"], recipe["valid"])
    data = ModelCardData(
        language="en",
        license="mit" if _from_scratch(base) else None,  # else it is that of the base
        library_name="transformers",
        base_model=base if _is_on_hub(base) else None,
        tags=[*_TAGS, recipe["model_type"], *(["reward-model"] if is_reward_model else [])],
        datasets=sorted({hub for hub in map(_hub_data, paths) if hub}) or None,
        model_name=folder.name,
        eval_results=results or None,
    )
    parts = [f"# {folder.name}\n", *sections, _CITATION]
    return f"---\n{data.to_yaml().strip()}\n---\n\n" + "\n".join(parts)


def _of_backbone(folder, recipe, metrics):
    """The results and the sections of a backbone's card."""
    valid, base, is_tiny = recipe["valid"], recipe.get("base"), recipe["train"] == "tiny"
    results, training = _of_training(folder, recipe, metrics)
    infer = f"python -m {_command(folder)} --model_type {recipe['model_type']}"
    infer += f" --model_id {folder.as_posix()} --data_path {valid}"
    return results, [
        _text(
            f"A {_class(recipe)} model with {metrics['parameters']:,} parameters. It solves "
            "arithmetic word problems by latent thoughts, continuous vectors, in place of written "
            "steps."
        ),
        *training,
        _text(f"## Use\n\n{_PLACE}"),
        _commands(f"{infer} --do_sample false", f"{infer} --sampling_by noise --n_samples 64"),
        _text(
            f"## Limits\n\n{'It knows only the words of its benchmark. ' if is_tiny else ''}"
            f"Its answer is a number. {_license_note(base)}"
        ),
    ]


def _of_cot(folder, recipe, metrics):
    """The results and the sections of the card of a CoT model, where a backbone starts."""
    results, training = _of_training(folder, recipe, metrics)
    backbone = BACKBONES[recipe["format_of"]].__name__
    return results, [
        _text(
            f"A plain language model with {metrics['parameters']:,} parameters that solves "
            f"arithmetic word problems by steps in words. The training of {backbone} starts from "
            "it."
        ),
        *training,
        _text(f"## Use\n\nAs `base: {folder.as_posix()}` in a recipe of {backbone}."),
        _text(f"## Limits\n\nIts answer is a number. {_license_note(recipe['base'])}"),
    ]


def _of_training(folder, recipe, metrics):
    """Results on the validation set, and the sections on figures and training, but a LatentRM's."""
    accuracy, valid, base = metrics["valid_accuracy"], recipe["valid"], recipe.get("base")
    by_steps = metrics["valid_accuracy_by_steps"] or {}
    is_tiny = recipe["train"] == "tiny"
    source = "generated problems of the tiny benchmark" if is_tiny else f"`{recipe['train']}`"
    results = (
        [] if accuracy is None else [_result(data_name(valid), "accuracy", accuracy, "greedy")]
    )
    return results, [
        _text(f"## Figures\n\nGreedy accuracy on the validation set `{valid}`: {accuracy} %."),
        _table(["steps of a problem", *by_steps], ["accuracy, %", *by_steps.values()]),
        _text(
            f"## Training\n\nTrained {f'from `{base}`' if base else 'from scratch'} on {source}: "
            f"{metrics['minutes']} minutes in {_precision(metrics)}. {_FILES}"
        ),
        _commands(f"accelerate launch -m src.train_backbone {folder.as_posix()}/recipe.yaml"),
    ]


def _of_reward_model(folder, recipe, metrics):
    """The results and the sections of a reward model's card."""
    generator, results, rows = recipe["model_id"], [], []
    for pool, path in recipe["eval_pools"].items():
        found = {name: metrics["final"][f"{pool}_{name}"] for name in _POOL_METRICS}
        name = Path(path).name
        rows.append([f"{name} (`{pool}`)", *found.values()])
        results += [
            _result(name, "accuracy", found["recall_at_1"], "best-of-N"),
            _result(name, "accuracy", found["weighted_vote"], "weighted vote"),
            _result(name, "auc", found["auc"], "pairwise AUC"),
        ]
    choose = f"python -m {_command(folder)}_rm --model_type {recipe['model_type']}"
    choose += f" --model_id {generator} --prm_id {folder.as_posix()} --sampling_by noise"
    return results, [
        _text(
            f"A LatentRM with {metrics['parameters']:,} parameters: a reward model that scores the "
            f"latent thoughts of the {_class(recipe)} model `{generator}`, to choose among its "
            "sampled answers."
        ),
        _text(
            "## Figures\n\nOn the pools of sampled trajectories that the recipe evaluates; "
            "accuracies in percent. The AUC is the share of pairs of a right and a wrong trajectory"
            f" of one question that the scores order rightly.{_choice_note(recipe)}"
        ),
        _table(["pool", *_POOL_METRICS.values()], *rows),
        _text(
            f"## Training\n\nTrained on pools of {metrics['questions']:,} questions in all, from "
            f"the generator's weights on{_new_layers(recipe)}: {metrics['steps']:,} steps in "
            f"{_precision(metrics)}. {_FILES} The pools that it names come from "
            "`src.annotate_data`."
        ),
        _commands(f"accelerate launch -m src.train {folder.as_posix()}/recipe.yaml"),
        _text(f"## Use\n\n{_PLACE}"),
        _commands(choose, f"{choose} --prm_mode beam_search --num_beams 4"),
        _text(f"## Limits\n\n{_limits(recipe)}{_license_note(generator)}"),
    ]


def _of_pool_judge(folder, recipe, metrics):
    """The results and the sections of a pool judge's card."""
    generator, results, rows = recipe["model_id"], [], []
    for pool, path in recipe["eval_pools"].items():
        found = {name: metrics["final"][f"{pool}_{name}"] for name in _JUDGE_METRICS}
        name = Path(path).name
        rows.append([f"{name} (`{pool}`)", *found.values()])
        results.append(_result(name, "accuracy", found["recall_at_1"], "pool judge"))
    return results, [
        _text(
            f"A pool judge with {metrics['parameters']:,} parameters: it chooses among the "
            f"distinct answers that sampled trajectories of the {_class(recipe)} model "
            f"`{generator}` gave. It reads the states of that model, which stays as it is, and the "
            "votes."
        ),
        _text(
            "## Figures\n\nOn the pools of sampled trajectories that the recipe evaluates; "
            "accuracies in percent. The AUC is the share of pairs of a right and a wrong answer "
            f"of one question that the scores order rightly.{_choice_note(recipe)}"
        ),
        _table(["pool", *_JUDGE_METRICS.values()], *rows),
        _text(
            f"## Training\n\nTrained on {metrics['questions']:,} pools: {metrics['steps']:,} steps "
            f"in {_precision(metrics)}. {_FILES} The pools that it names come from "
            "`src.annotate_data`."
        ),
        _commands(f"accelerate launch -m src.train {folder.as_posix()}/recipe.yaml"),
        _text(f"## Use\n\n{_PLACE}"),
        _commands(
            f"python -m {_command(folder)}_rm --model_type {recipe['model_type']} --model_id "
            f"{generator} --prm_id {folder.as_posix()} --sampling_by noise"
        ),
        _text(
            "## Limits\n\nIt judges pools of its own generator, and was trained on one sampler."
            f"{_license_note(generator)}"
        ),
    ]


def _choice_note(recipe):
    metric = recipe.get("metric_for_best_model")
    if not recipe.get("load_best_model_at_end"):
        return ""
    return f" The checkpoint was chosen by `{metric}`, so these figures are somewhat flattered."


def _new_layers(recipe):
    count = recipe.get("extra_layers")
    return f", with {count} new layers on top" if count else ""


def _limits(recipe):
    text = "It judges the thoughts of its own generator only. "
    if recipe.get("answer_weight"):
        text += (
            "It also learned to answer the question by itself (`answer_weight`), which the paper's "
            "LatentRM does not, and scores the answer too. A gain over the vote may come from that "
            "alone: COCONUT's bundled reward model solves the problems better than its generator, "
            "while thoughts alone hardly reveal their quality (docs/latent_rm.md of latent-tts). "
        )
    if recipe.get("reads_answer"):
        text += (
            "It also reads the trajectory's answer (`reads_answer`), unlike the paper's LatentRM. "
        )
    return text


def _text(text):
    """Paragraphs and headings, wrapped."""
    parts = (textwrap.fill(part, 100, break_on_hyphens=False) for part in text.split("\n\n"))
    return "\n\n".join(parts) + "\n"


def _commands(*lines):
    return "```bash\n" + "\n".join(lines) + "\n```\n"


def _result(dataset, kind, value, name):
    return EvalResult(
        task_type="text-generation",
        task_name="arithmetic word problems",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=kind,
        metric_name=f"{name} accuracy" if kind == "accuracy" else name,
        metric_value=value,
    )


def _table(*rows):
    head, *others = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([head, "| --- " * len(rows[0]) + "|", *others]) + "\n"


def _class(recipe):
    return BACKBONES[recipe["model_type"]].__name__


def _command(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # A LatentRM has its generator's architecture, a pool judge one of its own.
    return f"src.infer_{config.get('generator_architecture') or config['model_type']}"


def _precision(metrics):
    return {"bf16": "bfloat16", "no": "float32"}[metrics["mixed_precision"]]


def _from_scratch(base):
    """Whether a model owes its weights to no one else: there is no base, or it was trained here
    from scratch, as its recipe says."""
    if base is None:
        return True
    path = Path(base) / "recipe.yaml"
    return path.is_file() and read_yaml(path).get("base") is None


def _license_note(base):
    return "" if _from_scratch(base) else f"The license of `{base}` applies."


def _is_on_hub(base):
    if base is None or Path(base).exists():
        return False
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return True


def _hub_data(path):
    """The hub data set behind a data path, or None."""
    if is_hub_id(path):
        return parse_hub_id(path).repo
    name = data_name(path)
    return BENCHMARKS[name].hub if name in BENCHMARKS else None


@reports_user_errors
def main():
    for folder in sys.argv[1:]:
        write_card(folder)
        print(Path(folder) / NAME)


if __name__ == "__main__":
    main()
