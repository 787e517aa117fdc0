"""One Flax NNX decoder, configured per family.

Parameters live in a flat dict (see `jaxedit.types.Params`); `Model.bind` joins them with the static graph
inside a traced function. Hidden states are `[N, T, d_model]`: N independent rows of T tokens.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxedit.models.attention import Memory, attend, capped, extended
from jaxedit.models.config import DecoderConfig
from jaxedit.models.packing import Packing, pack, unpack
from jaxedit.models.products import product, product_with_table
from jaxedit.models.rotary import rotary_angles, rotate
from jaxedit.types import LowRank, Trace

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Tap(NamedTuple):
    """Adds `vector` to the output of a layer's "attention", "mlp" or "block" (the site) at one token a row.

    The output of attention and MLP is that of their last matrix: a norm that follows comes after it.
    """

    layer: int
    site: str
    vector: Float[Array, "N d_model"]
    at: Int[Array, "N"]


class Patch(NamedTuple):
    """Puts vectors in the place of what a site gives at the tokens `where`; layers not named stay as they are.

    Sites are the output of the "attention" or the "mlp" (as for `Tap`), and the "residual" stream after the block.
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
        self.columns: Array | None = None  # see `jaxedit.models.columns`

    def __call__(self, x: Float[Array, "*N d_in"]) -> Float[Array, "*N d_out"]:
        y = product(x, self.kernel[...], self.columns)
        if self.adapter is not None:
            inner = jnp.matmul(x, self.adapter.left, precision="highest")
            y = y + jnp.matmul(inner, self.adapter.right, precision="highest")
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class Norm(nnx.Module):
    """Layer or root-mean-square normalisation with float32 statistics."""

    def __init__(self, config: DecoderConfig, width: int):
        self.centred, self.eps, self.offset = config.norm == "layer", config.norm_eps, config.norm_offset
        self.scale = nnx.Param(jnp.full((width,), 1.0 - self.offset))
        self.bias = nnx.Param(jnp.zeros((width,))) if self.centred else None

    def __call__(self, x: Float[Array, "*N width"]) -> Float[Array, "*N width"]:
        y = x.astype(jnp.float32)
        if self.centred:
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.eps)
        if self.offset:  # in float32: bfloat16 would round 1 + w to 8 bits
            y = (y * (self.offset + self.scale[...].astype(jnp.float32))).astype(x.dtype)
        else:
            y = y.astype(x.dtype) * self.scale[...]
        return y if self.bias is None else y + self.bias[...]


class Attention(nnx.Module):
    """Grouped-query attention with an explicit mask, over earlier tokens (memory) and the given ones.

    With a `window` each token sees, of what the mask lets it see, only the last `window` positions up to its own.
    """

    def __init__(self, config: DecoderConfig, window: int | None, *, rngs: nnx.Rngs):
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.window, self.pairs, self.cap = window, config.rotary_pairs, config.score_cap
        self.scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
        d, q, kv = config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.query = Linear(d, q, config.attention_bias, rngs=rngs)
        self.key = Linear(d, kv, config.attention_bias, rngs=rngs)
        self.value = Linear(d, kv, config.attention_bias, rngs=rngs)
        self.out = Linear(q, d, config.attention_out_bias, rngs=rngs)
        self.qk_norm = config.qk_norm
        by_head = config.qk_norm == "head"
        self.query_norm = Norm(config, config.head_dim if by_head else q) if config.qk_norm else None
        self.key_norm = Norm(config, config.head_dim if by_head else kv) if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "N T d_model"] | Float[Array, "M d_model"],
        position: Int[Array, "N T"],
        angles: Float[Array, "N T half"] | None,
        mask: Bool[Array, "N T K"],
        memory: Memory | None,
        slot: Int[Array, ""] | None,
        packing: Packing | None,
    ) -> tuple[Float[Array, "N T d_model"] | Float[Array, "M d_model"], Memory]:
        n, t, _ = mask.shape

        def heads(projection: Linear, count: int, norm: Norm | None = None) -> Float[Array, "N T count D"]:
            projected = projection(x) if packing is None else unpack(projection(x), packing)
            if norm is not None and self.qk_norm == "projection":
                projected = norm(projected)
            projected = projected.reshape(n, t, count, self.head_dim)
            return norm(projected) if norm is not None and self.qk_norm == "head" else projected

        query = heads(self.query, self.n_heads, self.query_norm)
        key, value = heads(self.key, self.n_kv_heads, self.key_norm), heads(self.value, self.n_kv_heads)
        if angles is not None:
            query, key = rotate(query, angles, self.pairs), rotate(key, angles, self.pairs)
        query, key, value = (jnp.swapaxes(each, 1, 2) for each in (query, key, value))
        new = Memory(key, value, position)
        seen = new if memory is None else extended(memory, new, slot)
        if self.window is not None:
            mask = mask & (position[:, :, None] - seen.position[:, None, :] < self.window)
        parts = [seen] if memory is None or slot is not None else [memory, new]
        attended = attend(query, parts, mask, self.scale, self.cap)
        return self.out(attended if packing is None else pack(attended, packing)), seen


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
    """Attention and MLP, each adding its output to the residual stream; norms before, after, or both."""

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs):
        def norm(wanted: bool) -> Norm | None:
            return Norm(config, config.d_model) if wanted else None

        self.parallel, self.shared_norm = config.parallel, config.shared_norm
        self.attention_norm = norm(config.pre_norm)
        self.mlp_norm = norm(config.pre_norm and not config.shared_norm)
        self.attention_post_norm, self.mlp_post_norm = norm(config.post_norm), norm(config.post_norm)
        self.attention = Attention(config, config.window if config.is_local(layer) else None, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def mlp_input(self, h: Array, after: Array, attention_input: Array) -> Float[Array, "*N d_model"]:
        """What the MLP reads, of the residual stream before and after the attention and of the latter's input."""
        if self.shared_norm:
            return attention_input
        return normalised(h if self.parallel else after, self.mlp_norm)

    def mlp_added(self, output: Float[Array, "*N d_model"]) -> Float[Array, "*N d_model"]:
        """What the residual stream gains where the down-projection gives `output`."""
        return normalised(output, self.mlp_post_norm)


class Decoder(nnx.Module):
    """Token ids to logits, in steps that can be run apart: `embed`, `run` over a range of layers, `logits`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.remat = False  # see `Model.remat`
        self.columns: Array | None = None  # of the embedding table; see `jaxedit.models.columns`
        table = 0.02 * jax.random.normal(rngs.params(), (config.vocab_size, config.d_model))
        self.embedding = nnx.Param(table)
        if config.position == "learned":
            shape = (config.max_positions + config.position_offset, config.d_model)
            self.position_embedding = nnx.Param(0.01 * jax.random.normal(rngs.params(), shape))
        self.layers = nnx.List([Block(config, layer, rngs=rngs) for layer in range(config.n_layers)])
        self.final_norm = Norm(config, config.d_model)
        self.head = None if config.tied_head else Linear(config.d_model, config.vocab_size, False, rngs=rngs)
        self.head_bias = nnx.Param(jnp.zeros((config.vocab_size,))) if config.head_bias else None

    def vectors(self, tokens: Int[Array, "*N"]) -> Float[Array, "*N d_model"]:
        """What tokens are in the residual stream before any layer, their positions left out."""
        h = self.embedding[...][tokens]
        scale = self.config.embedding_scale
        return h if scale == 1.0 else h * jnp.asarray(scale, h.dtype)

    def embed(self, tokens: Int[Array, "N T"], position: Int[Array, "N T"]) -> Float[Array, "N T d_model"]:
        """The residual stream before the first layer."""
        h = self.vectors(tokens)
        if self.config.position != "learned":
            return h
        return h + self.position_embedding[...][position + self.config.position_offset]

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
        the memory's tokens from there on, and K is the memory's size. Windows of local layers come on top of
        the mask, from `position` and the memory's. With `packing` the hidden states are packed,
        and only attention sees rows; neither tap, patch nor trace is known there. `trace` names what to keep ("key",
        "mlp", "residual", "attention"; see `jaxedit.types.Trace`), at the M tokens `trace_at` of every row, or at
        all. Returns the hidden states after the last layer, the trace, and with `keep_memory` each layer's
        attention keys and values.
        """
        angles = {
            local: rotary_angles(self.config, position, local)
            for local in sorted({self.config.is_local(index) for index in layers})
        }
        kept, traced = {}, Trace({}, {}, {}, {})
        taps = [tap] if isinstance(tap, Tap) else list(tap or ())

        def layer(index: int, h: Array) -> tuple[Array, Memory, dict[str, Array]]:
            block = self.layers[index]
            earlier = None if memory is None else memory[index]
            read = normalised(h, block.attention_norm)
            turned = angles[self.config.is_local(index)]
            attended, seen = block.attention(read, position, turned, mask, earlier, slot, packing)
            attended = patched(tapped(attended, taps, index, "attention"), patch, index, "attention")
            after = h + normalised(attended, block.attention_post_norm)
            key = block.mlp.key(block.mlp_input(h, after, read))
            output = patched(tapped(block.mlp.down(key), taps, index, "mlp"), patch, index, "mlp")
            h = after + block.mlp_added(output)
            h = patched(tapped(h, taps, index, "block"), patch, index, "residual")
            return h, seen, {"key": key, "mlp": output, "residual": h, "attention": attended}

        for index in layers:
            step = functools.partial(layer, index)
            h, seen, vectors = (jax.checkpoint(step) if self.remat else step)(h)
            if keep_memory:
                kept[index] = seen
            for name in set(trace) & vectors.keys():
                getattr(traced, name)[index] = pick(vectors[name], trace_at)
        return h, traced, kept

    def logits(self, h: Float[Array, "*N d_model"]) -> Float[Array, "*N vocab"]:
        """Next-token logits in float32 from the residual stream after the last layer."""
        h = self.final_norm(h)
        head = self.head
        logits = product_with_table(h, self.embedding[...], self.columns) if head is None else head(h)
        logits = logits if self.head_bias is None else logits + self.head_bias[...]
        logits = logits.astype(jnp.float32)
        return logits if self.config.logit_cap is None else capped(logits, self.config.logit_cap)

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


def normalised(x: Float[Array, "*N d_model"], norm: Norm | None) -> Float[Array, "*N d_model"]:
    """The norm of x, or x where there is none."""
    return x if norm is None else norm(x)


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
