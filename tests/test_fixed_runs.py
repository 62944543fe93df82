"""The commands give the results that they gave at commit 1ef1ee8 (tests/fixed_runs)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.fixed_runs import BACKBONES, CASES, STORED, run_case

# Processors round differently; CoLaR feeds its thoughts back through a head that magnifies it.
TOLERANCE = {"coconut": 1e-5, "codi": 1e-5, "colar": 1e-4}
EXACT = ("texts", "vote", "candidates")  # of a record; the others are numbers, rounded to 1e-4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_fixed_run_gives_the_stored_answers_and_thoughts(backbone, case, tmp_path):
    records, tensors = run_case(backbone, case, tmp_path / "run")
    stored = json.loads((STORED / f"{backbone}.json").read_text())[case]
    assert [{k: r[k] for k in r if k in EXACT} for r in records] == [
        {k: r[k] for k in r if k in EXACT} for r in stored
    ]
    for record, before in zip(records, stored, strict=True):
        assert record.keys() == before.keys()
        for key in record.keys() - set(EXACT):
            assert _flat(record[key]) == pytest.approx(_flat(before[key]), abs=1e-3)
    whole = load_file(STORED / f"{backbone}.safetensors")
    kept = {k.removeprefix(f"{case}/"): v for k, v in whole.items() if k.startswith(f"{case}/")}
    assert tensors.keys() == kept.keys()
    for key, value in tensors.items():
        _assert_close(value, kept[key], TOLERANCE[backbone])


def _assert_close(value, stored, tolerance):
    """Equal up to ``tolerance`` times the largest number, or times 1."""
    largest = stored.nan_to_num().abs().max().item() if stored.is_floating_point() else 0
    bound = tolerance * max(1, largest)
    torch.testing.assert_close(value, stored, rtol=0, atol=bound, equal_nan=True)


def _flat(value):
    if not isinstance(value, list):
        return [value]
    return [x for item in value for x in _flat(item)]
