"""Schedules: pure functions of progress, never of wall time or micro-batches."""

from __future__ import annotations


def lr_multiplier(
    step: int, num_iterations: int, *, warmup_ratio: float, warmdown_ratio: float, final_lr_frac: float
) -> float:
    """Linear warm-up, constant, linear warm-down to `final_lr_frac`. `step` counts optimizer steps from 0.

    10 steps, warm-up 0.2, warm-down 0.5, final 0: `[0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]`.
    """
    warmup = round(warmup_ratio * num_iterations)
    warmdown = round(warmdown_ratio * num_iterations)
    if step < warmup:
        return (step + 1) / warmup
    left = num_iterations - step
    if warmdown == 0 or left >= warmdown:
        return 1.0
    share = max(left, 0) / warmdown
    return share + (1 - share) * final_lr_frac


def muon_momentum(step: int, warmup_steps: int = 300) -> float:
    """0.85 → 0.95 over the first steps: early gradients turn quickly and want a short memory."""
    share = min(step / warmup_steps, 1.0)
    return (1 - share) * 0.85 + share * 0.95
