"""One Flax NNX decoder, configured per family.

Parameters live in a flat dict (see `jaxedit.types.Params`); `Model.bind` joins them with the static graph
inside a traced function. Hidden states are `[N, T, d_model]`: N independent rows of T tokens.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxedit.models.config import DecoderConfig
from jaxedit.models.packing import Packing, pack, unpack
from jaxedit.models.rotary import rotary_angles, rotate
from jaxedit.types import LowRank, Trace

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
MASKED = -1e30  # finite, so that a row without any visible key stays finite


class Memory(NamedTuple):
    """Keys and values of attention over K tokens that were run before."""

    key: Float[Array, "N K H D"]
    value: Float[Array, "N K H D"]


class Tap(NamedTuple):
    """Adds `vector` to the output of a layer's "attention", "mlp" or "block" (the site) at one token a row."""

    layer: int
    site: str
    vector: Float[Array, "N d_model"]
    at: Int[Array, "N"]


class Patch(NamedTuple):
    """Puts vectors in the place of what a site gives at the tokens `where`; layers not named stay as they are.

    Sites are the output of the "attention" or the "mlp", and the "residual" stream after the block.
    """

    site: str
    vectors: dict[int, Float[Array, "#N T d_model"]]
    where: dict[int, Bool[Array, "N T"]]


class Linear(nnx.Module):
    """`y = x @ kernel + bias`, computed in the wider of both dtypes, returned in the dtype of `x`.

    So a float32 edited matrix keeps its precision inside a bfloat16 model. With an `adapter` the output is
    that of `kernel + left @ right`, without ever forming that sum.
    """

    def __init__(self, d_in: int, d_out: int, bias: bool, *, rngs: nnx.Rngs):
        scale = d_in**-0.5
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (d_in, d_out)))
        self.bias = nnx.Param(jnp.zeros((d_out,))) if bias else None
        self.adapter: LowRank | None = None

    def __call__(self, x: Float[Array, "*N d_in"]) -> Float[Array, "*N d_out"]:
        y = jnp.matmul(x, self.kernel[...], precision="highest")
        if self.adapter is not None:
            inner = jnp.matmul(x, self.adapter.left, precision="highest")
            y = y + jnp.matmul(inner, self.adapter.right, precision="highest")
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class Norm(nnx.Module):
    """Layer or root-mean-square normalisation with float32 statistics."""

    def __init__(self, config: DecoderConfig):
        self.centred, self.eps = config.norm == "layer", config.norm_eps
        self.scale = nnx.Param(jnp.ones((config.d_model,)))
        self.bias = nnx.Param(jnp.zeros((config.d_model,))) if self.centred else None

    def __call__(self, x: Float[Array, "*N d_model"]) -> Float[Array, "*N d_model"]:
        y = x.astype(jnp.float32)
        if self.centred:
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.eps)
        y = y.astype(x.dtype) * self.scale[...]
        return y if self.bias is None else y + self.bias[...]


class Attention(nnx.Module):
    """Grouped-query attention with an explicit mask, over earlier tokens (memory) and the given ones."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        d, q, kv = config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.query = Linear(d, q, config.attention_bias, rngs=rngs)
        self.key = Linear(d, kv, config.attention_bias, rngs=rngs)
        self.value = Linear(d, kv, config.attention_bias, rngs=rngs)
        self.out = Linear(q, d, config.attention_out_bias, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "N T d_model"] | Float[Array, "M d_model"],
        angles: Float[Array, "N T half"] | None,
        mask: Bool[Array, "N T K"],
        memory: Memory | None,
        slot: Int[Array, ""] | None,
        packing: Packing | None,
    ) -> tuple[Float[Array, "N T d_model"] | Float[Array, "M d_model"], Memory]:
        n, t, _ = mask.shape

        def heads(projection: Linear, count: int) -> Float[Array, "N T count D"]:
            projected = projection(x) if packing is None else unpack(projection(x), packing)
            return projected.reshape(n, t, count, self.head_dim)

        query = heads(self.query, self.n_heads)
        key, value = heads(self.key, self.n_kv_heads), heads(self.value, self.n_kv_heads)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        if memory is not None:
            key, value = extended(memory.key, key, slot), extended(memory.value, value, slot)
        attended = self._attend(query, key, value, mask)
        return self.out(attended if packing is None else pack(attended, packing)), Memory(key, value)

    def _attend(self, query: Array, key: Array, value: Array, mask: Array) -> Float[Array, "N T q"]:
        n, t, _, d = query.shape
        grouped = query.reshape(n, t, self.n_kv_heads, -1, d)
        scores = jnp.einsum("ntkgd,nskd->nkgts", grouped, key, precision="highest")
        scores = scores.astype(jnp.float32) * d**-0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
        out = jnp.einsum("nkgts,nskd->ntkgd", weights.astype(value.dtype), value, precision="highest")
        return out.reshape(n, t, -1)


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))`. The input of `down` is the editors' key."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.activation = config.activation
        self.up = Linear(config.d_model, config.d_ff, config.mlp_bias, rngs=rngs)
        self.gate = (
            Linear(config.d_model, config.d_ff, config.mlp_bias, rngs=rngs) if config.gated_mlp else None
        )
        self.down = Linear(config.d_ff, config.d_model, config.mlp_bias, rngs=rngs)

    def key(self, x: Float[Array, "*N d_model"]) -> Float[Array, "*N d_ff"]:
        activate = ACTIVATIONS[self.activation]
        return activate(self.up(x)) if self.gate is None else activate(self.gate(x)) * self.up(x)


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = Norm(config), Norm(config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)


class Decoder(nnx.Module):
    """Token ids to logits, in steps that can be run apart: `embed`, `run` over a range of layers, `logits`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = 0.02 * jax.random.normal(rngs.params(), (config.vocab_size, config.d_model))
        self.embedding = nnx.Param(table)
        if config.position == "learned":
            shape = (config.max_positions, config.d_model)
            self.position_embedding = nnx.Param(0.01 * jax.random.normal(rngs.params(), shape))
        self.layers = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layers)])
        self.final_norm = Norm(config)
        self.head = None if config.tied_head else Linear(config.d_model, config.vocab_size, False, rngs=rngs)

    def embed(self, tokens: Int[Array, "N T"], position: Int[Array, "N T"]) -> Float[Array, "N T d_model"]:
        h = self.embedding[...][tokens]
        return h + self.position_embedding[...][position] if self.config.position == "learned" else h

    def run(
        self,
        h: Float[Array, "N T d_model"] | Float[Array, "M d_model"],
        layers: range,
        *,
        position: Int[Array, "N T"],
        mask: Bool[Array, "N T K"],
        memory: dict[int, Memory] | None = None,
        slot: Int[Array, ""] | None = None,
        packing: Packing | None = None,
        tap: Tap | Sequence[Tap] | None = None,
        patch: Patch | None = None,
        trace: Collection[str] = (),
        trace_at: Int[Array, "N M"] | None = None,
        keep_memory: bool = False,
    ) -> tuple[Float[Array, "N T d_model"] | Float[Array, "M d_model"], Trace, dict[int, Memory]]:
        """Runs `layers` on hidden states; `mask[n, t, s]` says whether token t sees key s.

        Keys are those of `memory` (per layer), then the T given tokens; with `slot` these take the place of
        the memory's tokens from there on, and K is the memory's size. With `packing` the hidden states are packed,
        and only attention sees rows; neither tap, patch nor trace is known there. `trace` names what to keep ("key",
        "mlp", "residual", "attention"), at the M tokens `trace_at` of every row, or at all. Returns the hidden
        states after the last layer, the trace, and with `keep_memory` each layer's attention keys and values.
        """
        angles = rotary_angles(self.config, position)
        kept, traced = {}, Trace({}, {}, {}, {})
        taps = [tap] if isinstance(tap, Tap) else list(tap or ())
        for index in layers:
            block = self.layers[index]
            earlier = None if memory is None else memory[index]
            attended, seen = block.attention(block.attention_norm(h), angles, mask, earlier, slot, packing)
            attended = patched(tapped(attended, taps, index, "attention"), patch, index, "attention")
            h = h + attended
            key = block.mlp.key(block.mlp_norm(h))
            output = patched(tapped(block.mlp.down(key), taps, index, "mlp"), patch, index, "mlp")
            h = patched(tapped(h + output, taps, index, "block"), patch, index, "residual")
            if keep_memory:
                kept[index] = seen
            for name, vectors in (("key", key), ("mlp", output), ("residual", h), ("attention", attended)):
                if name in trace:
                    getattr(traced, name)[index] = pick(vectors, trace_at)
        return h, traced, kept

    def logits(self, h: Float[Array, "*N d_model"]) -> Float[Array, "*N vocab"]:
        """Next-token logits in float32 from the residual stream after the last layer."""
        h = self.final_norm(h)
        if self.head is not None:
            return self.head(h).astype(jnp.float32)
        # Contracted in place: a transposed table would be copied in every backward pass.
        logits = jnp.einsum("...d,vd->...v", h, self.embedding[...], precision="highest")
        return logits.astype(jnp.float32)

    def __call__(
        self, tokens: Int[Array, "N T"], valid: Bool[Array, "N T"] | None = None
    ) -> Float[Array, "N T vocab"]:
        """Logits at every position of contiguous rows, padding allowed on either side."""
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        position = positions(valid)
        h, _, _ = self.run(
            self.embed(tokens, position),
            range(self.config.n_layers),
            position=position,
            mask=causal_mask(valid),
        )
        return self.logits(h)


def extended(
    memory: Float[Array, "N K H D"], new: Float[Array, "N T H D"], slot: Int[Array, ""] | None
) -> Float[Array, "N K2 H D"]:
    """The memory with new tokens behind it, or in place of its tokens from `slot` on."""
    if slot is None:
        return jnp.concatenate([memory, new], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(memory, new, slot, axis=1)


def tapped(x: Float[Array, "N T d"], taps: Sequence[Tap], layer: int, site: str) -> Float[Array, "N T d"]:
    """Adds the vectors of the taps whose layer and site these are."""
    for tap in taps:
        if (tap.layer, tap.site) == (layer, site):
            x = x.at[jnp.arange(x.shape[0]), tap.at].add(tap.vector.astype(x.dtype))
    return x


def patched(x: Float[Array, "N T d"], patch: Patch | None, layer: int, site: str) -> Float[Array, "N T d"]:
    """The patch's vectors at its tokens where layer and site are the patch's."""
    if patch is None or patch.site != site or layer not in patch.vectors:
        return x
    return jnp.where(patch.where[layer][..., None], patch.vectors[layer].astype(x.dtype), x)


def pick(x: Float[Array, "N T d"], at: Int[Array, "N M"] | None) -> Float[Array, "N M d"]:
    """The vectors of every row at its tokens `at`; all of them for `None`."""
    return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)


def positions(valid: Bool[Array, "N T"]) -> Int[Array, "N T"]:
    """0, 1, 2, ... over the valid tokens of every row; padding gets 0 or repeats."""
    return jnp.maximum(jnp.cumsum(valid, axis=-1) - 1, 0)


def causal_mask(valid: Bool[Array, "N T"]) -> Bool[Array, "N T T"]:
    """Each token sees the valid tokens up to itself."""
    return valid[:, None, :] & jnp.tri(valid.shape[-1], dtype=bool)
