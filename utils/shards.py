"""Shards of sampled and labelled trajectories, in the published key layout.

A pool is a folder of ``shard_<number>.safetensors`` and a ``manifest.json``. Shard ``k`` holds the
questions from ``k * shard_size`` on. The published keys of question ``i``, with n trajectories of
up to T thoughts of width D, prompts of L tokens and answers of up to A tokens:

``i.input_ids`` (n, L) int64; ``i.latent_embeds`` (n, T, D) f32; ``i.estimations`` (n, T) f32, the
labels; ``i.corrects`` (n,) bool.

Beyond them: ``i.latent_lengths`` (n,) int64, how many thoughts exist (the others are 0);
``i.predictions`` (n,) f64, the parsed answers, NaN where there is none; ``i.answer_ids`` (n, A)
int64, the answers' tokens with end-of-text, padded with -1.

A question that all trajectories solve, or none, has only a 0-d ``i.input_ids``: how many solve it.

While a run goes on, ``part_<first question>.safetensors`` holds some questions of a shard that is
not whole yet.
"""

import json
import math
from functools import lru_cache
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from utils.datasets import data_sha256
from utils.errors import UserError
from utils.files import sha256, write_bytes, write_json
from utils.hub_data import is_hub_id

MANIFEST = "manifest.json"
PARTS = "part_*.safetensors"
FORMAT = 2  # of the keys below
_KEYS = "input_ids latent_embeds latent_lengths estimations corrects predictions answer_ids".split()


def shard_path(folder, number):
    return Path(folder) / f"shard_{number:05d}.safetensors"


def shard_questions(number, shard_size, total):
    """The question indices of a shard."""
    return range(number * shard_size, min((number + 1) * shard_size, total))


def write_part(folder, questions):
    """Writes some questions of one shard that lie in no other part.

    questions: {index: {key: tensor}}; a skipped question has ``input_ids`` only.
    """
    tensors = {f"{i}.{key}": x for i, of_one in questions.items() for key, x in of_one.items()}
    path = Path(folder) / PARTS.replace("*", f"{min(questions):07d}")
    write_bytes(path, safetensors.torch.save(tensors))


def questions_in_parts(folder):
    """The indices of the questions of all parts. Raises UserError when a part is damaged."""
    return {_question(name) for path in Path(folder).glob(PARTS) for name in _read_part(path)}


def join_parts(folder, number, questions):
    """Writes the shard of these questions from its parts, which it removes.

    Without effect while a question lies in no part. Raises UserError when a part is damaged.
    """
    paths = [path for path in Path(folder).glob(PARTS) if _first_question(path) in questions]
    tensors = {name: tensor for path in paths for name, tensor in _read_part(path).items()}
    if {_question(name) for name in tensors} == set(questions):
        write_bytes(shard_path(folder, number), safetensors.torch.save(tensors))
        for path in paths:
            path.unlink()


def remove_parts(folder):
    """Removes the parts that an interruption has left beside their shards."""
    for path in Path(folder).glob(PARTS):
        path.unlink()


def _read_part(path):
    """{name: tensor} of a part."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run again") from None


def _first_question(path):
    return int(path.stem.removeprefix(PARTS.partition("*")[0]))


def _question(name):
    """The index of the question of a tensor."""
    return int(name.partition(".")[0])


def count_labelled(path):
    """How many questions of a shard are labelled, and not skipped."""
    with safe_open(path, "pt") as shard:
        return sum(key.endswith(".latent_embeds") for key in shard.keys())  # noqa: SIM118


def write_manifest(folder, contents):
    """Closes a pool whose shards are all there: manifest.json names each with its digest.

    contents: the fingerprint of the run and ``shard_size``.
    """
    total, size = contents["questions"], contents["shard_size"]
    paths = [shard_path(folder, k) for k in range(math.ceil(total / size))]
    shards = [
        {"name": path.name, "labelled": count_labelled(path), "sha256": sha256([path])}
        for path in paths
    ]
    labelled = sum(shard["labelled"] for shard in shards)
    write_json(Path(folder) / MANIFEST, contents | {"labelled": labelled, "shards": shards})


class Pool:
    """The labelled questions of a finished pool, read one at a time.

    Raises UserError when the folder is no finished pool, when a shard is missing, cut off, changed
    or not of this pool, or when the question file is no longer the one that was sampled.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)
        self._check_questions()
        self.labelled = []  # (shard file, index of the question)
        for entry in self.manifest["shards"]:
            self.labelled += _labelled_questions(self._check_shard(entry))
        self.labelled.sort(key=lambda labelled: labelled[1])
        if len(self.labelled) != self.manifest["labelled"]:
            fault = f"{len(self.labelled)} labelled questions"
            expected = f"manifest.json says {self.manifest['labelled']}"
            raise UserError(f"{self.folder}: {fault}, {expected}; annotate again")

    def _check_questions(self):
        path = self.manifest["data_path"]
        gone = not is_hub_id(path) and not Path(path).is_file()
        if gone or data_sha256(path) != self.manifest["data_sha256"]:
            fault = f"made from {path}, which has changed or is gone"
            raise UserError(f"{self.folder}: {fault}; restore it or annotate again")

    def _check_shard(self, entry):
        path = self.folder / entry["name"]
        if not path.is_file():
            raise UserError(f"{path}: missing; run the annotation again, it goes on")
        if sha256([path]) != entry["sha256"]:
            raise UserError(f"{path}: damaged or not of this pool; remove it and annotate again")
        return path

    def __len__(self):
        return len(self.labelled)

    def __getitem__(self, i):
        """{key: tensor} of the keys above, and "idx", for labelled question number i."""
        path, idx = self.labelled[i]
        shard = _open(path)
        return {"idx": idx} | {key: shard.get_tensor(f"{idx}.{key}") for key in _KEYS}

    def tensor(self, i, key):
        """One tensor of labelled question number i."""
        path, idx = self.labelled[i]
        return _open(path).get_tensor(f"{idx}.{key}")

    def width(self, i, key):
        """Columns of one tensor of labelled question number i, such as tokens of its prompt."""
        path, idx = self.labelled[i]
        return _open(path).get_slice(f"{idx}.{key}").get_shape()[1]


@lru_cache(maxsize=256)
def _open(path):
    try:
        return safe_open(path, "pt").__enter__()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a shard ({error}); annotate again") from None


def _labelled_questions(path):
    """(path, index) of each labelled question of a shard. Raises UserError when one lacks a key."""
    names = set(_open(path).keys())
    indices = [_question(name) for name in names if name.endswith(".latent_embeds")]
    for idx in indices:
        lacking = [key for key in _KEYS if f"{idx}.{key}" not in names]
        if lacking:
            fault = f"question {idx} has no {lacking[0]}: not a pool of this version"
            raise UserError(f"{path}: {fault}; annotate again")
    return [(path, idx) for idx in indices]


def _manifest(folder):
    path = folder / MANIFEST
    if not path.is_file():
        fault = "no finished pool there (manifest.json)"
        raise UserError(f"{folder}: {fault}; make one with src.annotate_data")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["shards"], manifest["labelled"], manifest["data_path"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the manifest of a pool; annotate again") from None
    return manifest
