"""Running padded rows through some layers at the cost of their real tokens."""

from jaxtyping import Array, Bool, Float, Int

from jaxedit.models.decoder import Decoder
from jaxedit.models.packing import pack, packing_of, unpack


def run_rows(
    decoder: Decoder,
    h: Float[Array, "N T d_model"],
    layers: range,
    *,
    position: Int[Array, "N T"],
    mask: Bool[Array, "N T T"],
    real: Bool[Array, "N T"],
    places: int | None,
) -> Float[Array, "N T d_model"]:
    """Hidden states after `layers`: of the `real` tokens alone, for which there are `places`; of all for None."""
    packing = None if places is None else packing_of(real, places)
    h = h if packing is None else pack(h, packing)
    h, _, _ = decoder.run(h, layers, position=position, mask=mask, packing=packing)
    return h if packing is None else unpack(h, packing)
