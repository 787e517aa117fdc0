"""The decoder computes what transformers computes, whole and in parts."""

import jax.numpy as jnp
import numpy as np
import torch

from jaxedit.models.decoder import Tap, causal_mask, positions
from jaxedit.models.weights import load_safetensors_folder

from .conftest import Tiny, torch_logits

TOLERANCE = 1e-5


def test_logits_equal_those_of_transformers(tiny: Tiny, tokens: np.ndarray) -> None:
    np.testing.assert_allclose(tiny.logits(tokens), torch_logits(tiny.torch, tokens), atol=TOLERANCE, rtol=0)


def test_left_padding_changes_nothing(typical: Tiny, tokens: np.ndarray) -> None:
    decoder = typical.model.bind(typical.params)
    padded = np.concatenate([np.zeros((3, 4), int), tokens], axis=1)
    valid = np.arange(24)[None] >= 4 * np.ones((3, 1))
    got = decoder(jnp.asarray(padded), jnp.asarray(valid))[:, 4:]
    np.testing.assert_allclose(got, typical.logits(tokens), atol=TOLERANCE, rtol=0)


def test_bfloat16_loads_and_is_near(typical: Tiny, tokens: np.ndarray) -> None:
    params = load_safetensors_folder(typical.folder, typical.model.config, jnp.bfloat16)
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(jnp.bfloat16)}
    low = np.asarray(typical.model.bind(params)(tokens), np.float32)
    full = typical.logits(tokens)
    assert np.abs(low - full).max() < 0.05 * np.abs(full).max()


def _whole(tiny: Tiny, tokens: np.ndarray) -> tuple:
    valid = jnp.ones(tokens.shape, bool)
    decoder = tiny.model.bind(tiny.params)
    return decoder, decoder.embed(jnp.asarray(tokens), positions(valid)), positions(valid), causal_mask(valid)


def test_split_at_any_layer_equals_the_whole(typical: Tiny, tokens: np.ndarray) -> None:
    decoder, embedded, position, mask = _whole(typical, tokens)
    last = typical.model.config.n_layers
    whole = typical.logits(tokens)
    for cut in range(last + 1):
        h, _, _ = decoder.run(embedded, range(cut), position=position, mask=mask)
        h, _, _ = decoder.run(h, range(cut, last), position=position, mask=mask)
        np.testing.assert_allclose(decoder.logits(h), whole, atol=TOLERANCE, rtol=0)


def test_memory_of_the_prefix_and_tail_equal_the_whole(typical: Tiny, tokens: np.ndarray) -> None:
    decoder, embedded, position, mask = _whole(typical, tokens)
    layers, cut = range(typical.model.config.n_layers), 7
    _, _, memory = decoder.run(
        embedded[:, :cut], layers, position=position[:, :cut], mask=mask[:, :cut, :cut], keep_memory=True
    )
    tail, _, _ = decoder.run(
        embedded[:, cut:], layers, position=position[:, cut:], mask=mask[:, cut:], memory=memory
    )
    np.testing.assert_allclose(decoder.logits(tail), typical.logits(tokens)[:, cut:], atol=TOLERANCE, rtol=0)


def _torch_parts(tiny: Tiny, layer: int) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Block, MLP and down-projection of a layer."""
    if tiny.model.config.family == "gpt2":
        block = tiny.torch.transformer.h[layer]
        return block, block.mlp, block.mlp.c_proj
    block = tiny.torch.model.layers[layer]
    return block, block.mlp, block.mlp.down_proj


def _first(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_trace_equals_what_torch_hooks_see(typical: Tiny, tokens: np.ndarray) -> None:
    seen: dict[tuple[str, int], np.ndarray] = {}
    hooks = []
    layers = range(typical.model.config.n_layers)
    for layer in layers:
        block, mlp, down = _torch_parts(typical, layer)

        def keep(name: str, layer: int = layer):
            return lambda _m, args, out: seen.update({(name, layer): _first(out).numpy()})

        def keep_input(_m, args, out, layer: int = layer) -> None:
            seen["key", layer] = args[0].numpy()

        hooks += [mlp.register_forward_hook(keep("mlp")), block.register_forward_hook(keep("residual"))]
        hooks.append(down.register_forward_hook(keep_input))
    torch_logits(typical.torch, tokens)
    for hook in hooks:
        hook.remove()
    decoder, embedded, position, mask = _whole(typical, tokens)
    at = np.array([[0, 5], [19, 2], [7, 7]])
    _, trace, _ = decoder.run(
        embedded,
        layers,
        position=position,
        mask=mask,
        trace=("key", "mlp", "residual"),
        trace_at=jnp.asarray(at),
    )
    assert len(seen) == 3 * len(layers)
    for (name, layer), theirs in seen.items():
        expected = np.take_along_axis(theirs, at[..., None], axis=1)
        np.testing.assert_allclose(getattr(trace, name)[layer], expected, atol=TOLERANCE, rtol=0)


def test_tap_equals_adding_in_a_torch_hook(typical: Tiny, tokens: np.ndarray) -> None:
    decoder, embedded, position, mask = _whole(typical, tokens)
    rng, at = np.random.default_rng(1), np.array([3, 11, 0])
    vector = rng.normal(size=(3, typical.model.config.d_model)).astype(np.float32)

    def add(_m, _args, output):
        _first(output)[torch.arange(3), torch.from_numpy(at)] += torch.from_numpy(vector)
        return output

    for layer, site in ((0, "mlp"), (1, "block"), (2, "mlp")):
        block, mlp, _ = _torch_parts(typical, layer)
        hook = (mlp if site == "mlp" else block).register_forward_hook(add)
        expected = torch_logits(typical.torch, tokens)
        hook.remove()
        tap = Tap(layer, site, jnp.asarray(vector), jnp.asarray(at))
        layers = range(typical.model.config.n_layers)
        h, _, _ = decoder.run(embedded, layers, position=position, mask=mask, tap=tap)
        np.testing.assert_allclose(decoder.logits(h), expected, atol=TOLERANCE, rtol=0)
        assert np.abs(expected - typical.logits(tokens)).max() > 1e-2
