"""Schedules are pure functions: their shape is tested exactly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanochat.schedule import lr_multiplier, muon_momentum


def test_the_worked_example():
    values = [lr_multiplier(s, 10, warmup_ratio=0.2, warmdown_ratio=0.5, final_lr_frac=0.0) for s in range(10)]
    assert [round(v, 6) for v in values] == [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]


ratio = st.floats(0, 0.5)


@given(st.integers(1, 500), ratio, ratio, st.floats(0, 1))
def test_rises_stays_falls_and_is_never_negative(n, warmup, warmdown, final):
    # trap: warmdown-up # trap: steps-vs-micro
    values = [lr_multiplier(s, n, warmup_ratio=warmup, warmdown_ratio=warmdown, final_lr_frac=final) for s in range(n)]
    values = [round(v, 12) for v in values]  # the last bit of a float may go either way
    assert all(0 <= v <= 1 for v in values)
    start = n - round(warmdown * n)
    assert values[:start] == sorted(values[:start])
    assert values[start:] == sorted(values[start:], reverse=True)
    assert lr_multiplier(n + 5, n, warmup_ratio=warmup, warmdown_ratio=warmdown, final_lr_frac=final) >= 0


def test_momentum_warms_up():
    assert muon_momentum(0) == 0.85
    assert abs(muon_momentum(150) - 0.9) < 1e-12
    assert muon_momentum(300) == muon_momentum(9999) == 0.95
