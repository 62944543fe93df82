"""The commands give the stored results of commit 1ef1ee8 (tests/fixed_runs)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.fixed_runs import BACKBONES, CASES, STORED, run_case

# Processors round differently; the latent head of CoLaR, through which thoughts are fed back,
# magnifies rounding.
TOLERANCE = {"coconut": 1e-5, "codi": 1e-5, "colar": 1e-4}
# Keys of a record that must be equal. The others hold numbers, rounded to 1e-4.
EXACT = ("texts", "vote", "candidates")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_fixed_run_gives_the_stored_answers_and_thoughts(backbone, case, tmp_path):
    records, tensors = run_case(backbone, case, tmp_path / "run")
    stored = json.loads((STORED / f"{backbone}.json").read_text())[case]
    for record, expected in zip(records, stored, strict=True):
        assert record.keys() == expected.keys()
        for key in record:
            if key in EXACT:
                assert record[key] == expected[key]
            else:
                assert _flat(record[key]) == pytest.approx(_flat(expected[key]), abs=1e-3)
    all_stored = load_file(STORED / f"{backbone}.safetensors")
    expected_tensors = {
        key.removeprefix(f"{case}/"): value
        for key, value in all_stored.items()
        if key.startswith(f"{case}/")
    }
    assert tensors.keys() == expected_tensors.keys()
    for key, value in tensors.items():
        _assert_close(value, expected_tensors[key], TOLERANCE[backbone])


def _assert_close(value, stored, tolerance):
    """Equal up to ``tolerance`` times the largest number, at least times 1."""
    largest = stored.nan_to_num().abs().max().item() if stored.is_floating_point() else 0
    bound = tolerance * max(1, largest)
    torch.testing.assert_close(value, stored, rtol=0, atol=bound, equal_nan=True)


def _flat(value):
    if not isinstance(value, list):
        return [value]
    return [x for item in value for x in _flat(item)]
