"""Oracles for the optimizer, in float64: slow, one matrix or scalar at a time, from the papers' formulas.

`orthogonalize` applies the quintics to singular values, so no Newton–Schulz iteration is trusted. `PlainOptimizer` is
Muon and AdamW on one machine without stacks, shares or blocks. `polar_express` derives the published coefficients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def orthogonalize(G: Tensor, coefficients, steps: int = 5) -> Tensor:
    """U p(p(...p(S))) Vᵀ of one matrix G (rows, cols) = U S Vᵀ, S first divided by its Euclidean length."""
    U, S, Vt = torch.linalg.svd(G.double(), full_matrices=False)
    S = S / (S.square().sum().sqrt() + 1e-7)
    for i in range(steps):
        a, b, c = coefficients[min(i, len(coefficients) - 1)]
        S = a * S + b * S**3 + c * S**5
    return U @ torch.diag(S) @ Vt


class PlainOptimizer:
    """Weights and state by name, in float64; `muon` and `adamw` give the settings of each name."""

    def __init__(self, weights: dict[str, Tensor], muon: dict[str, dict], adamw: dict[str, dict]):
        self.weights = {name: w.detach().double().clone() for name, w in weights.items()}
        self.muon, self.adamw = muon, adamw
        self.first = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.second = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.steps = 0

    def step(self, grads: dict[str, Tensor], lr_scale: float, momentum: float, clip: float) -> float:
        """Clip the whole gradient to `clip`, update, and return the norm before clipping."""
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
        scale = min(1.0, clip / norm)
        self.steps += 1
        for name, w in self.weights.items():
            g = grads[name].double() * scale
            if name in self.muon:
                s = self.muon[name]
                self.first[name] = momentum * self.first[name] + (1 - momentum) * g
                nesterov = momentum * self.first[name] + (1 - momentum) * g
                aspect = math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
                w *= 1 - s["lr"] * lr_scale * s["weight_decay"]
                w -= s["lr"] * lr_scale * aspect * orthogonalize(nesterov, s["coefficients"])
            else:
                s = self.adamw[name]
                beta1, beta2 = s["betas"]
                self.first[name] = beta1 * self.first[name] + (1 - beta1) * g
                self.second[name] = beta2 * self.second[name] + (1 - beta2) * g * g
                mean = self.first[name] / (1 - beta1**self.steps)
                variance = self.second[name] / (1 - beta2**self.steps)
                w *= 1 - s["lr"] * lr_scale * s["weight_decay"]
                w -= s["lr"] * lr_scale * mean / (variance.sqrt() + s["eps"])
        return norm


def best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic p that minimizes the largest |1 - p(x)| on [low, high], by Remez exchange.

    At the optimum the error is the same, with alternating sign, at low < q < r < high, where q and r are p's extrema.
    As low and high meet at 1, p becomes the Newton–Schulz polynomial of order five: value 1, two derivatives zero.
    """
    if high - low < 1e-6:
        return 15 / 8, -10 / 8, 3 / 8
    q, r, error = (3 * low + high) / 4, (low + 3 * high) / 4, 0.0
    for _ in range(100):
        points = torch.tensor([low, q, r, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, new_error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        if abs(new_error - error) < 1e-15:
            break
        error = new_error
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))  # of p' = a + 3b·x² + 5c·x⁴
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
    return a, b, c


def polar_express(
    steps: int, low: float = 1e-3, cushion: float = 0.02407327424182761, safety: float = 1.01
) -> list[tuple[float, float, float]]:
    """The coefficients of Amsel et al. 2025: each step's best quintic for what the steps before made of [low, 1].

    Below cushion · high the interval is not fitted (that would cost large values more than small ones gain), and the
    polynomial is scaled so that the image of [low, high] is centred at 1.
    """
    high, found = 1.0, []
    for _ in range(steps):
        a, b, c = best_quintic(max(low, cushion * high), high)
        at_low, at_high = (a * x + b * x**3 + c * x**5 for x in (low, high))
        centre = 2 / (at_low + at_high)
        found.append((a * centre / safety, b * centre / safety**3, c * centre / safety**5))
        low, high = at_low * centre, at_high * centre
    return found
