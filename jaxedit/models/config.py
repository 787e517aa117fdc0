"""What a decoder-only transformer is made of, as named options. Families only choose among these."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency-dependent stretching of rotary wavelengths."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class DecoderConfig:
    """Static description of a decoder; hashable, so it may be closed over by compiled functions."""

    family: str
    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int
    norm: Literal["layer", "rms"]
    norm_eps: float
    position: Literal["learned", "rope"]
    activation: Literal["gelu_tanh", "gelu", "relu", "silu"]
    gated_mlp: bool
    attention_bias: bool  # on query, key and value
    attention_out_bias: bool
    mlp_bias: bool
    tied_head: bool
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None

    def edited_path(self, layer: int) -> str:
        """Parameter path of the MLP down-projection of `layer`, the matrix that editors write."""
        return f"layers.{layer}.mlp.down.kernel"

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the matrices of a block."""
        attention = tuple(f"attention.{name}" for name in ("query", "key", "value", "out"))
        return (*attention, *(("mlp.gate",) if self.gated_mlp else ()), "mlp.up", "mlp.down")
