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
class LinearScaling:
    """All rotary wavelengths `factor` times as long."""

    factor: float


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
    rope_scaling: RopeScaling | LinearScaling | None = None
    rotary_dim: int | None = None  # leading dimensions of a head that are rotated; None: all of them
    rotary_pairs: Literal["halves", "neighbours"] = "halves"  # (i, i + rotary_dim / 2), or (2i, 2i + 1)
    position_offset: int = 0  # row of the first token in the table of learned positions
    window: int | None = None  # how many tokens a local layer sees, the token itself included
    local_layers: tuple[int, ...] = ()  # the layers with that window
    local_rope_theta: float | None = None  # their rotary base, never scaled; None: as in all other layers
    query_scale: float | None = None  # factor of attention scores; None: 1 / sqrt(head_dim)
    score_cap: float | None = None  # attention scores s become cap * tanh(s / cap)
    logit_cap: float | None = None  # so do the logits
    qk_norm: Literal["head", "projection"] | None = None  # of queries and keys: by head, or all heads at once
    pre_norm: bool = True  # normalise what attention and MLP read
    post_norm: bool = False  # normalise what they add to the residual stream
    norm_offset: float = 0.0  # added to the scale of every norm
    parallel: bool = False  # attention and MLP read the same residual stream
    shared_norm: bool = False  # through one norm; only where they are parallel
    embedding_scale: float = 1.0  # factor of token embeddings as they enter the residual stream
    head_bias: bool = False

    def is_local(self, layer: int) -> bool:
        """Whether this layer sees a window of tokens only."""
        return layer in self.local_layers

    def edited_path(self, layer: int) -> str:
        """Parameter path of the MLP down-projection of `layer`, the matrix that editors write."""
        return f"layers.{layer}.mlp.down.kernel"

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the matrices of a block."""
        attention = tuple(f"attention.{name}" for name in ("query", "key", "value", "out"))
        return (*attention, *(("mlp.gate",) if self.gated_mlp else ()), "mlp.up", "mlp.down")
