"""Probes in linear layers: what goes into a layer, and the gradient of what comes out of it, token by token."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxedit.models.decoder import Decoder, Linear


class Probed(nnx.Module):
    """A linear layer that adds `shift` to its output and keeps its input as `seen`.

    The gradient with respect to a `shift` of zeros is that of the output, at every token.
    """

    seen: nnx.Intermediate

    def __init__(self, linear: Linear, shift: Float[Array, "N T d_out"]):
        self.linear, self.shift = linear, nnx.Perturbation(shift)

    def __call__(self, x: Float[Array, "N T d_in"]) -> Float[Array, "N T d_out"]:
        self.seen = nnx.Intermediate(x)
        y = self.linear(x)
        return y + self.shift[...].astype(y.dtype)


def insert_probes(decoder: Decoder, shifts: dict[str, Float[Array, "N T d_out"]]) -> dict[str, Probed]:
    """Puts a probe in the place of every linear layer named, by its kernel's path, in `shifts`.

    The decoder must have been bound in the function that is differentiated, and be run once.
    """
    decoder.remat = False  # what a probe has seen could not leave the layer
    placed = {}
    for path, shift in shifts.items():
        *parents, name, _ = path.split(".")
        module: Any = decoder
        for part in parents:
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        placed[path] = Probed(getattr(module, name), shift)
        setattr(module, name, placed[path])
    return placed
