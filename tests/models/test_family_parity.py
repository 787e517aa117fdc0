"""What families add to the decoder, part by part: windows over memory and padding, sites, names of tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxedit.errors import ModelError
from jaxedit.models.decoder import Tap, causal_mask, positions
from jaxedit.models.families import FAMILIES
from jaxedit.models.weights import load_safetensors_folder
from tests.reference import layout

from .conftest import Tiny, assert_bare_loads, assert_same, loaded, rewritten, torch_logits

TOLERANCE = 1e-5
BUFFERS = {
    "gptj": {
        "h.0.attn.bias": np.ones((1, 1, 4, 4), bool),
        "h.0.attn.masked_bias": np.array(-1e9, np.float32),
    },
    "gpt_neox": {
        "layers.0.attention.bias": np.ones((1, 1, 4, 4), bool),
        "layers.0.attention.masked_bias": np.array(-1e9, np.float32),
        "layers.0.attention.rotary_emb.inv_freq": np.ones(2, np.float32),
    },
    "opt": {},
}
LLAMA_BUFFERS = {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within the tolerance, of the largest number where that is above 1."""
    bound = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, atol=bound, rtol=0)


def test_prefix_in_memory_and_tail_are_the_whole_rows_padded_or_not(family: Tiny, tokens: np.ndarray) -> None:
    """Tokens of the tail see a part of the prefix only where there is a window."""
    pad, cut, layers = 4, 15, range(family.model.config.n_layers)
    padded = jnp.asarray(np.concatenate([np.zeros((3, pad), int), tokens], axis=1))
    valid = jnp.broadcast_to(jnp.arange(pad + tokens.shape[1]) >= pad, padded.shape)
    position, mask = positions(valid), causal_mask(valid)

    @jax.jit
    def of_tail(params):
        decoder = family.model.bind(params)
        h = decoder.embed(padded, position)
        _, _, memory = decoder.run(
            h[:, :cut], layers, position=position[:, :cut], mask=mask[:, :cut, :cut], keep_memory=True
        )
        tail, _, _ = decoder.run(
            h[:, cut:], layers, position=position[:, cut:], mask=mask[:, cut:], memory=memory
        )
        return decoder.logits(tail)

    close(of_tail(family.params), torch_logits(family.torch, tokens)[:, cut - pad :])


@contextmanager
def hooked(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_trace_equals_what_torch_hooks_see(family: Tiny, tokens: np.ndarray) -> None:
    """Outputs of MLP and attention are those of their last matrix, whatever norm follows."""
    seen, handles, shape = {}, [], tokens.shape
    layers = range(family.model.config.n_layers)
    sites = {"mlp": layout.mlp, "attention": layout.attention, "residual": layout.block}
    for layer in layers:
        for name, module in sites.items():

            def keep(_m, _args, out, at: tuple[str, int] = (name, layer)) -> None:
                seen[at] = first(out).numpy().reshape(*shape, -1)

            handles.append(module(family.torch, layer).register_forward_hook(keep))

        def keep_input(_m, args, _out, layer: int = layer) -> None:
            seen["key", layer] = args[0].numpy().reshape(*shape, -1)

        handles.append(layout.down(family.torch, layer).register_forward_hook(keep_input))
    with hooked(handles):
        torch_logits(family.torch, tokens)

    @jax.jit
    def traced(params):
        decoder, position = family.model.bind(params), positions(jnp.ones(shape, bool))
        mask = causal_mask(jnp.ones(shape, bool))
        h = decoder.embed(jnp.asarray(tokens), position)
        names = ("key", *sites)
        return decoder.run(h, layers, position=position, mask=mask, trace=names)[1]

    trace = traced(family.params)
    assert len(seen) == 4 * len(layers)
    for (name, layer), theirs in seen.items():
        close(getattr(trace, name)[layer], theirs)


def test_taps_equal_adding_in_torch_hooks(family: Tiny, tokens: np.ndarray) -> None:
    rng, at = np.random.default_rng(1), np.array([3, 11, 0])
    places = ((0, "mlp", layout.mlp), (1, "attention", layout.attention), (2, "block", layout.block))
    vectors = rng.normal(size=(3, 3, family.model.config.d_model)).astype(np.float32)

    def adding(vector: np.ndarray):
        def add(_m, _args, output):
            out = first(output)
            out.view(3, -1, out.shape[-1])[torch.arange(3), torch.from_numpy(at)] += torch.from_numpy(vector)
            return output

        return add

    given = list(zip(places, vectors, strict=True))
    handles = [
        module(family.torch, layer).register_forward_hook(adding(vector))
        for (layer, _, module), vector in given
    ]
    with hooked(handles):
        expected = torch_logits(family.torch, tokens)
    taps = [Tap(layer, site, jnp.asarray(vector), jnp.asarray(at)) for (layer, site, _), vector in given]

    @jax.jit
    def tapped(params):
        decoder, valid = family.model.bind(params), jnp.ones(tokens.shape, bool)
        h, _, _ = decoder.run(
            decoder.embed(jnp.asarray(tokens), positions(valid)),
            range(family.model.config.n_layers),
            position=positions(valid),
            mask=causal_mask(valid),
            tap=taps,
        )
        return decoder.logits(h)

    close(tapped(family.params), expected)
    assert np.abs(expected - torch_logits(family.torch, tokens)).max() > 1e-2


@pytest.mark.parametrize("name", ["mistral", "qwen2", "phi3", "gemma2", "gemma3_text"])
def test_a_window_hides_what_is_beyond_it(made, tokens: np.ndarray, name: str) -> None:
    """In a local layer a token's output depends on the last `window` tokens up to itself, and on no other."""
    family = made(name)
    config = family.model.config
    assert config.window is not None
    layer = config.local_layers[0]

    @jax.jit
    def attended(params, h):
        decoder, valid = family.model.bind(params), jnp.ones(tokens.shape, bool)
        one = range(layer, layer + 1)
        run = decoder.run(h, one, position=positions(valid), mask=causal_mask(valid), trace=("attention",))
        return run[1].attention[layer]

    decoder = family.model.bind(family.params)
    h = decoder.embed(jnp.asarray(tokens), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
    moved = np.abs(attended(family.params, h.at[:, 6].add(1.0)) - attended(family.params, h)).max(axis=(0, 2))
    assert np.flatnonzero(moved).tolist() == list(range(6, 6 + config.window))


@pytest.mark.slow
def test_bfloat16_is_as_near_as_that_of_transformers(family: Tiny, tokens: np.ndarray) -> None:
    """Mean squared distance to float32, at most half as much again."""
    full = torch_logits(family.torch, tokens)
    low = load_safetensors_folder(family.folder, family.model.config, jnp.bfloat16)
    ours = np.asarray(jax.jit(lambda params: family.model.bind(params)(tokens))(low), np.float32)
    theirs = type(family.torch).from_pretrained(family.folder, dtype=torch.bfloat16)
    with torch.no_grad():
        theirs = theirs(torch.from_numpy(tokens)).logits.float().numpy()
    assert np.square(ours - full).mean() <= 1.5 * np.square(theirs - full).mean()


def test_names_without_prefix_and_legacy_buffers_load(family: Tiny, tmp_path: Path) -> None:
    name = family.model.config.family
    assert_bare_loads(family, tmp_path, FAMILIES[name].prefix, BUFFERS.get(name, LLAMA_BUFFERS))


def test_shards_load_as_one_file(family: Tiny, tmp_path: Path) -> None:
    family.torch.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(family, loaded(family, tmp_path))


def test_a_tied_head_may_be_stored_under_any_of_its_names_but_not_differ(
    made, family: Tiny, tmp_path: Path
) -> None:
    name = family.model.config.family
    tied = family if family.model.config.tied_head else made(f"{name}-other")
    assert tied.model.config.tied_head
    table = next(t.name for t in FAMILIES[name].tensors(tied.model.config) if t.paths == ("embedding",))
    for head in FAMILIES[name].heads:
        assert_same(tied, loaded(tied, rewritten(tied, tmp_path, lambda t, head=head: t | {head: t[table]})))
        with pytest.raises(ModelError, match="tie_word_embeddings"):
            loaded(tied, rewritten(tied, tmp_path, lambda t, head=head: t | {head: t[table] + 1}))


def test_the_head_goes_by_its_old_and_its_new_name(made, tmp_path: Path) -> None:
    neox = made("gpt_neox")
    old, new = FAMILIES["gpt_neox"].heads

    def renamed(tensors: dict) -> dict:
        head = next(tensors.pop(name) for name in (old, new) if name in tensors)
        return tensors | {new: head}

    def back(tensors: dict) -> dict:
        return {old if name == new else name: tensor for name, tensor in tensors.items()}

    for change in (renamed, back):
        assert_same(neox, loaded(neox, rewritten(neox, tmp_path, change)))
