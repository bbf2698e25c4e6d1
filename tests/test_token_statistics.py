"""Statistics over tokens, against numbers that were worked out by hand."""

import math

import pytest
import torch

from hubplugin.evaluation.token_statistics import LogitsPiece, TokenValues

# probabilities of four tokens at four positions: two windows of two
BASE = [[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.45, 0.2, 0.1]]
VARIANT = [[0.7, 0.1, 0.1, 0.1], [0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.4, 0.3], [0.25, 0.2, 0.45, 0.1]]
FOLLOWING = [0, 1, 3, 0]  # right by both; by the variant alone; by the base alone; by neither, though they differ


def quality(windows: int = 2):
    values = TokenValues(against_base=True)
    for part in (slice(0, 3), slice(3, 4)):  # pieces need not be windows
        logits, base = (torch.tensor(rows[part]).log() + 3 for rows in (VARIANT, BASE))
        values.add(LogitsPiece(logits, torch.tensor(FOLLOWING[part]), base))
    return values.quality(windows)


def test_flips_count_positions_at_which_being_right_changed() -> None:
    assert quality().flips == 2 / 4
    assert quality().top1_agreement == 1 / 4  # which also counts where both are wrong in their own ways


def test_the_acceptance_rate_is_the_mass_that_both_share() -> None:
    shared = [1.0, 0.3 + 0.3 + 0.2 + 0.1, 0.1 + 0.2 + 0.3 + 0.3, 0.25 + 0.2 + 0.2 + 0.1]
    assert quality().acceptance_rate == pytest.approx(sum(shared) / 4, abs=1e-6)


def test_the_standard_error_of_the_mean_kl_is_over_windows() -> None:
    swap, larger = 0.1 * math.log(4 / 3), 0.25 * math.log(0.45 / 0.2)
    first, second = (0 + swap) / 2, (swap + larger) / 2
    assert quality().mean_kl == pytest.approx((first + second) / 2, rel=1e-5)
    assert quality().mean_kl_stderr == pytest.approx(abs(first - second) / 2, rel=1e-5)
    assert math.isnan(quality(windows=1).mean_kl_stderr)


def test_perplexity_is_that_of_the_variant() -> None:
    expected = math.exp(-sum(math.log(row[token]) for row, token in zip(VARIANT, FOLLOWING, strict=True)) / 4)
    assert quality().perplexity == pytest.approx(expected, rel=1e-6)


def test_a_copy_is_accepted_always_and_flips_nothing() -> None:
    values = TokenValues(against_base=True)
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    values.add(LogitsPiece(logits, torch.arange(6), logits.clone()))
    same = values.quality(windows=3)
    assert (same.flips, same.mean_kl, same.mean_kl_stderr) == (0, 0, 0)
    assert same.acceptance_rate == pytest.approx(1, abs=1e-6) and same.acceptance_rate <= 1
