"""Which saved model to talk to and how to run it: the settings that the chat programs have, and the engine they give.

    engine, meta = ModelChoice(source="sft", model_tag="d4").load(prefix_contexts=4)

torch is imported only by `load`: the HTTP server has these settings too, and leaves the loading to its workers. There
is nothing to run here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nanochat.common import compute_init, resolve_dtype

if TYPE_CHECKING:
    from nanochat.engine import Engine


@dataclass
class ModelChoice:
    source: str = "sft"
    """Which stage's model: base, mid, sft or rl."""
    model_tag: str = ""
    """Which model of that stage, e.g. d4 (empty: the largest)."""
    step: int = -1
    """Which saved step (-1: the last)."""
    device_type: str = ""
    """cpu, cuda or mps (empty: the best there is)."""
    dtype: str = "auto"
    """auto, bfloat16 or float32."""
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """On a CPU, how the weights are kept for reading: fewer bytes are faster (auto: as --dtype says)."""

    def load(self, prefix_contexts: int = 0, seed: int = 42) -> tuple[Engine, dict[str, Any]]:
        """The engine and the checkpoint's meta. `prefix_contexts`: keys and values of finished rows are kept, of so
        many contexts in all, for prompts that begin alike."""
        from nanochat.checkpoint_manager import load_model
        from nanochat.engine import Engine

        _, _, _, _, device = compute_init(self.device_type, seed)
        model, tokenizer, meta = load_model(self.source, device, "eval", self.model_tag, self.step,
                                            resolve_dtype(self.dtype, device.type))
        return Engine(model, tokenizer, self.weights, prefix_contexts * model.config.sequence_len), meta
