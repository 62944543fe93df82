"""Where a reward model's gain comes from: python -m benchmarks.judge_controls POOL --prm_id MODEL

A pool is the folder of a run of src.infer_gpt2 or src.infer_llama with --save_latents true. Its
trajectories are scored with their own thoughts and with others in their place, and with a part of
the rewards. A gain that stays with the thoughts of another trajectory of the question is no
judgement of a trajectory: its thoughts tell the model what the right answer is. One that stays
with the mean of all thoughts comes from question and answer alone.

"alone": the model chooses among the different answers of the pool by their rewards after the
thoughts of one trajectory, without a vote. Where that is better than greedy, the model is the
better solver. Its chance level is a random choice among these answers.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.models.loading import load_backbone, load_reward_model
from src.runs.finished_runs import read_json
from src.sampling.trajectories import cat_steps, thought_mask
from src.search.best_of_n import score_pools
from src.search.choosers import trajectory_scores
from src.search.voting import measure
from utils import records
from utils.answers import is_right
from utils.errors import UserError, reports_user_errors
from utils.metrics import is_mixed, measured, question_auc

REPORT_N = (4, 16, 64)


@dataclass
class SavedPool:
    """Q questions of a run: their records and latents (utils.records), and its settings."""

    records: list
    latents: list
    settings: dict

    @classmethod
    def read(cls, folder):
        """Raises UserError when a file is missing or damaged."""
        found = sorted(records.read(folder).items())
        if not found:
            raise UserError(f"{folder}: no run with samples there; name the folder of one")
        latents = [records.read_latents(records.latents_path(folder, idx)) for idx, _ in found]
        settings = read_json(Path(folder) / "config.json")["settings"]
        return cls([record for _, record in found], latents, settings)

    def report_n(self):
        n = len(self.records[0]["predictions"])
        return [size for size in REPORT_N if size <= n] or [n]

    def mean_thoughts(self):
        """The mean of each thought over all trajectories that have it, (T, D)."""
        thoughts = cat_steps([x["latent_embeds"][None] for x in self.latents], dim=0)
        lengths = torch.stack([x["latent_lengths"] for x in self.latents])  # (Q, N)
        exist = thought_mask(lengths, thoughts.shape[2])[..., None]  # (Q, N, T, 1)
        return (thoughts * exist).sum((0, 1)) / exist.sum((0, 1)).clamp(min=1)


def replacements(pool):
    """{name: for each question its thoughts (N, T, D) and how many exist (N,)}."""
    own = [(x["latent_embeds"], x["latent_lengths"]) for x in pool.latents]
    mean = pool.mean_thoughts()
    return {
        "own": own,
        "another trajectory's": [(x.roll(1, 0), lengths.roll(1, 0)) for x, lengths in own],
        "another question's": [own[q - 1] for q in range(len(own))],
        "mean": [(mean[: x.shape[1]].expand_as(x), lengths) for x, lengths in own],
        "zeros": [(torch.zeros_like(x), lengths) for x, lengths in own],
    }


def score(model, pool, replaced):
    """The pool's records with the rewards of their answers after replaced thoughts."""
    scored = []
    for record, latents, (thoughts, lengths) in zip(
        pool.records, pool.latents, replaced, strict=True
    ):
        prompts, answers = [latents["input_ids"].tolist()], [latents["answer_ids"]]
        fields = score_pools(model, prompts, thoughts[None], lengths[None], answers)
        scored.append(record | {key: values[0] for key, values in fields.items()})
    return scored


def parts_of_rewards(scored):
    """{name: records} with the rewards of the thoughts alone, and of the answer alone."""
    if "answer_scores" not in scored[0]:
        return {}
    no_thought = [record | {"scores": [[0.0] for _ in record["scores"]]} for record in scored]
    no_answer = [record | {"answer_scores": None} for record in scored]
    return {"own, rewards of thoughts": no_answer, "own, reward of the answer": no_thought}


def judgement(scored, report_n):
    """AUC, and by N accuracy and gain over the vote of best-of-N and of the weighted vote."""
    pairs = [
        (np.array(trajectory_scores(record, "sum")), np.array(record["correct"]))
        for record in scored
    ]
    aucs = [question_auc(scores, corrects) for scores, corrects in pairs if is_mixed(corrects)]
    by_n = measure(scored, report_n)["by_n"]
    kept = [f"{name}{end}" for name in ("best_of_n", "weighted_vote") for end in ("", "_gain")]
    chosen = {n: {key: measures[key] for key in kept} for n, measures in by_n.items()}
    return {"auc": measured(aucs, scale=1, decimals=3) if aucs else None, "by_n": chosen}


def first_of_each_answer(record):
    """The number of the first trajectory that gives each different answer of a pool."""
    predictions = record["predictions"]
    return [
        n
        for n, number in enumerate(predictions)
        if number is not None and number not in predictions[:n]
    ]


def choices_alone(model, pool, replaced):
    """Whether the answer that the model chooses after the first trajectory's thoughts is right.

    Of each question, a list; None where the model does not reward answers.
    """
    if not model.rewards_answer:
        return None
    right = []
    for record, latents, (thoughts, lengths) in zip(
        pool.records, pool.latents, replaced, strict=True
    ):
        rows = first_of_each_answer(record)  # K
        if not rows:
            right.append(False)
            continue
        thoughts, lengths = (x[:1].repeat_interleave(len(rows), dim=0) for x in (thoughts, lengths))
        answers = [latents["answer_ids"][rows]]  # (K, A)
        prompts = [latents["input_ids"].tolist()]
        fields = score_pools(model, prompts, thoughts[None], lengths[None], answers)
        best = rows[int(np.argmax(fields["answer_scores"][0]))]
        right.append(is_right(record["predictions"][best], record["answer"]))
    return right


def baselines(pool, greedy):
    """{name: whether the answer to each question is right, or its chance to be}."""
    found = {
        "first trajectory": [float(record["correct"][0]) for record in pool.records],
        "random choice of an answer": [_chance(record) for record in pool.records],
    }
    if greedy is not None:
        by_question = {record["question"]: record for record in records.read(greedy).values()}
        if not {record["question"] for record in pool.records} <= by_question.keys():
            raise UserError(f"--greedy {greedy}: lacks questions of the pool; run it on the same")
        found["greedy"] = [
            float(by_question[record["question"]]["correct"][0]) for record in pool.records
        ]
    return found


def _chance(record):
    rows = first_of_each_answer(record)
    return sum(record["correct"][n] for n in rows) / max(1, len(rows))


@torch.inference_mode()
def controls(model, pool, greedy=None):
    """{"baselines", "controls"}: the figures of the tables, each with its interval."""
    report_n, simple = pool.report_n(), baselines(pool, greedy)
    reference = simple.get("greedy", simple["first trajectory"])
    rows = {}
    for name, replaced in replacements(pool).items():
        scored = score(model, pool, replaced)
        rows[name] = judgement(scored, report_n)
        if name == "own":
            parts = parts_of_rewards(scored)
            rows |= {part: judgement(of_part, report_n) for part, of_part in parts.items()}
        right = choices_alone(model, pool, replaced)
        if right is not None:
            gains = np.subtract(right, reference, dtype=float)
            rows[name] |= {"alone": measured(right), "alone_gain": measured(gains)}
    by_n = measure(pool.records, report_n)["by_n"]
    simple = {name: measured(values) for name, values in simple.items()}
    for n, measures in by_n.items():
        simple |= {f"vote of {n}": measures["voting_accuracy"]}
        simple |= {f"coverage of {n}": measures["coverage"]}
    return {"baselines": simple, "controls": rows}


def markdown(figures):
    """The figures as two tables. Brackets: the gain over the vote; "alone": over greedy."""
    lines = ["| baseline | right, percent |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(x)} |" for name, x in figures["baselines"].items()]
    rows = figures["controls"]
    sizes = list(rows["own"]["by_n"])
    names = [f"{name}, {n}" for n in sizes for name in ("best-of-N", "weighted vote")]
    head = ["thoughts", "AUC", *names, "alone"]
    lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, row in rows.items():
        cells = [_cell(row["auc"])]
        for n in sizes:
            cells += [_gain(row["by_n"][n], key) for key in ("best_of_n", "weighted_vote")]
        cells.append(_gain(row, "alone"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(x):
    return "-" if x is None else f"{x['value']:g} [{x['low']:g}, {x['high']:g}]"


def _gain(row, key):
    if key not in row:
        return "-"
    gain = row[f"{key}_gain"]
    return f"{row[key]['value']:g} ({gain['value']:+g} [{gain['low']:g}, {gain['high']:g}])"


@reports_user_errors
def main():
    parser = argparse.ArgumentParser(prog="benchmarks.judge_controls", description=__doc__)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--prm_id", required=True, help="the reward model, by path or hub id")
    parser.add_argument("--greedy", type=Path, help="a run without sampling, to compare with")
    parser.add_argument("--json", action="store_true", help="one line of JSON, not tables")
    args = parser.parse_args()
    pool = SavedPool.read(args.pool)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = pool.settings
    backbone, tokenizer = load_backbone(settings["model_type"], settings["model_id"])
    model = load_reward_model(args.prm_id, backbone, tokenizer, device=device)
    figures = controls(model, pool, args.greedy)
    print(json.dumps(figures) if args.json else markdown(figures))


if __name__ == "__main__":
    main()
