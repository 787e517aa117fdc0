"""Settings of editors for the models they were published on, and for SmolLM2-135M.

A model is known by its shape (`SHAPES`), not by its name: a fine-tuned model of the same shape has the same
preset, wherever it was loaded from. For every other model, and every editor without a row here, the method's
own preset holds, whose layers follow from the depth of the model (`jaxedit.editors.registry`).
"""

from typing import Any, NamedTuple, TypeAlias

from jaxedit.models.config import DecoderConfig

TABLE = "paper table"
COMPOSED = "weights of the paper; layers and values of MEMIT's or AlphaEdit's table for this model"
RELEASED = "settings released with EasyEdit (arXiv 2308.07269), from the literature"
SEARCH = "own search over decades; scripts/search_presets.py repeats it"
DEPTH = "by depth rule, unverified"

# What a model's `DecoderConfig` must be, field by field; what is not named may be anything.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-xl": {"family": "gpt2", "n_layers": 48, "d_model": 1600, "d_ff": 6400},
    "gpt-j-6b": {"family": "gptj", "n_layers": 28, "d_model": 4096, "d_ff": 16384},
    "llama-2-7b": {"family": "llama", "n_layers": 32, "d_model": 4096, "d_ff": 11008},
    # 128,256 tokens tell it from models of 32,000 such as Mistral's.
    "llama-3-8b": {"family": "llama", "n_layers": 32, "d_model": 4096, "d_ff": 14336, "vocab_size": 128256},
    "mistral-7b": {"family": "mistral", "n_layers": 32, "d_model": 4096, "d_ff": 14336},
    "qwen2.5-7b": {"family": "qwen2", "n_layers": 28, "d_model": 3584, "d_ff": 18944},  # and Qwen2-7B
    # The rotary base tells it from SmolLM-135M, whose base is 10,000.
    "smollm2-135m": {"family": "llama", "n_layers": 30, "d_model": 576, "d_ff": 1536, "rope_theta": 100000.0},
}


Departures: TypeAlias = dict[str, Any]  # by name, as in `jaxedit.editors.Settings`
Rows: TypeAlias = dict[str, Departures]  # by model


class Preset(NamedTuple):
    """Departures from a method's own preset."""

    source: str  # TABLE, COMPOSED, RELEASED, SEARCH or DEPTH
    settings: Departures


ROME_VALUES: Departures = {"learning_rate": 0.5, "steps": 20, "weight_decay": 0.5, "clamp": 4.0, "kl": 0.0625}
ROME_LLAMA = ROME_VALUES | {"layers": (5,), "steps": 25, "weight_decay": 1e-3}
ROME: Rows = {
    "gpt2-xl": ROME_VALUES | {"layers": (17,)},
    "gpt-j-6b": ROME_VALUES | {"layers": (5,)},
    "llama-2-7b": ROME_LLAMA,
    "llama-3-8b": ROME_LLAMA,
}

# Layers and value optimisation of the MEMIT family.
SPAN_VALUES: Departures = {
    "learning_rate": 0.5,
    "steps": 25,
    "weight_decay": 0.5,
    "clamp": 0.75,
    "kl": 0.0625,
}
SPAN: Rows = {
    "gpt2-xl": SPAN_VALUES | {"layers": (13, 14, 15, 16, 17), "steps": 20},
    "gpt-j-6b": SPAN_VALUES | {"layers": (3, 4, 5, 6, 7, 8)},
    "llama-2-7b": SPAN_VALUES | {"layers": (4, 5, 6, 7, 8)},
    "llama-3-8b": SPAN_VALUES | {"layers": (4, 5, 6, 7, 8)},
}
LAM = {"gpt2-xl": 20000.0, "gpt-j-6b": 15000.0, "llama-2-7b": 15000.0, "llama-3-8b": 15000.0}
MEMIT: Rows = {model: SPAN[model] | {"lam": lam} for model, lam in LAM.items()}
EMMET: Rows = {
    "gpt2-xl": SPAN["gpt2-xl"] | {"layers": (17,), "lam": 10000.0},
    "gpt-j-6b": SPAN["gpt-j-6b"] | {"layers": (5,), "lam": 1e5},
    "llama-2-7b": SPAN["llama-2-7b"] | {"layers": (5,), "lam": 1e5},
    "llama-3-8b": SPAN["llama-3-8b"] | {"layers": (5,), "lam": 1e5},
}
BLUE: Rows = {
    "gpt2-xl": MEMIT["gpt2-xl"] | {"layers": (13, 17)},
    "gpt-j-6b": MEMIT["gpt-j-6b"] | {"layers": (3, 8)},
    "llama-2-7b": MEMIT["llama-2-7b"] | {"layers": (4, 8)},
    "llama-3-8b": MEMIT["llama-3-8b"] | {"layers": (4, 8)},
}
PMET_VALUES: Departures = {"learning_rate": 0.2, "steps": 30, "kl": 1.0, "lam": 6000.0}
PMET: Rows = {"gpt-j-6b": MEMIT["gpt-j-6b"] | PMET_VALUES}
# AlphaEdit's L2 is `lam_n`.
ALPHAEDIT: Rows = {
    "gpt2-xl": SPAN["gpt2-xl"] | {"null_threshold": 0.02, "lam_n": 10.0},
    "gpt-j-6b": SPAN["gpt-j-6b"] | {"null_threshold": 0.02, "lam_n": 10.0},
    "llama-2-7b": SPAN["llama-2-7b"] | {"null_threshold": 0.02, "lam_n": 10.0, "learning_rate": 0.1},
    "llama-3-8b": SPAN["llama-3-8b"] | {"null_threshold": 0.02, "lam_n": 10.0, "learning_rate": 0.1},
}
# `patience` is that of most-probable early stopping.
ENCORE: Rows = {
    "gpt2-xl": MEMIT["gpt2-xl"] | {"lam_n": 10.0, "patience": 4},
    "llama-2-7b": MEMIT["llama-2-7b"] | {"lam_n": 10.0, "patience": 3},
    "llama-3-8b": MEMIT["llama-3-8b"] | {"lam_n": 20.0, "patience": 2},
}


def _with(rows: Rows, weights: Departures) -> Rows:
    """Every model's row with these departures too."""
    return {model: row | weights for model, row in rows.items()}


# Papers that give weights of their own and take the rest over from MEMIT (span, value optimisation) or from AlphaEdit
# (the same, with its learning rate, the null space's threshold and L2, which is `lam_n`).
PMET_ELSEWHERE = _with(MEMIT, PMET_VALUES)
del PMET_ELSEWHERE["gpt-j-6b"]  # has the row of the paper
LYAPLOCK = _with(SPAN, {"lam": 1000.0})  # the weight, times its queue
LYAPLOCK["llama-3-8b"] |= {"learning_rate": 0.1}  # as released; 0.5 on GPT-J
COMBINED: dict[str, Rows] = {
    "pmet": PMET_ELSEWHERE,
    "betaedit": _with(ALPHAEDIT, {"lam": 3000.0, "lam_n": 10.0}),  # BetaEdit's lam1 and ridge
    "langedit": ALPHAEDIT,  # AlphaEdit's L2
    "evoedit": _with(ALPHAEDIT, {"lam_n": 4.0}),  # EvoEdit's ridge
    "lyaplock": LYAPLOCK,
    "d4s": MEMIT,  # MEMIT's lam
    "nas": ALPHAEDIT,  # the solve is AlphaEdit's, 0.02 and 10
}

FT: Rows = {
    "gpt2-xl": {"learning_rate": 5e-4, "steps": 25, "layers": (17,)},
    "gpt-j-6b": {"learning_rate": 5e-4, "steps": 25, "layers": (21,)},
}
FT_L: Rows = {"gpt2-xl": FT["gpt2-xl"] | {"bound": 5e-4}, "gpt-j-6b": FT["gpt-j-6b"] | {"bound": 5e-5}}

PUBLISHED: dict[str, Rows] = {
    "rome": ROME,
    "r-rome": ROME,
    "memit": MEMIT,
    "memit-history": MEMIT,
    "memit-blue": BLUE,
    "emmet": EMMET,
    "pmet": PMET,
    "alphaedit": ALPHAEDIT,
    "encore": ENCORE,
    "ft": FT,
    "ft-l": FT_L,
}
# ROME there does without the second moment; here it is the paper's, with the released layer and values.
EASY_VALUES = ROME_VALUES | {"steps": 25, "weight_decay": 1e-3}
EASY_SPAN = EASY_VALUES | {"layers": (4, 5, 6, 7, 8)}
EASY_EDIT: dict[str, Rows] = {
    "rome": {model: EASY_VALUES | {"layers": (5,)} for model in ("mistral-7b", "qwen2.5-7b")},
    "memit": {model: EASY_SPAN | {"lam": 15000.0} for model in ("mistral-7b", "qwen2.5-7b")},
    "alphaedit": {"qwen2.5-7b": EASY_SPAN | {"null_threshold": 0.02, "lam_n": 1.0}},
}
# UltraEdit and StableEdit: at the papers' 1e-6 nothing changes: their moments are of thousands of facts. One step of
# 3e-4 writes 85 of 100 facts, one of 6e-4 88, and says most new answers for neighbours too; small steps, until a fact
# is written, all.
SMALL_STEPS: Departures = {"learning_rate": 5e-5, "steps": 20, "stop_loss": 0.7}
SEARCHED: dict[str, Rows] = {
    "memit": {"smollm2-135m": {"layers": (6, 7, 8, 9, 10), "lam": 1000.0}},
    "emmet": {"smollm2-135m": {"layers": (8,), "lam": 100.0}},
    # A smaller weight lets the norms grow, and with them what later edits have to overcome: 300 writes 86 of 100
    # facts one at a time.
    "pmet": {"smollm2-135m": {"lam": 1000.0}},
    # Half the rate and half the steps leave 3 of 10 facts of a batch unwritten.
    "ft": {"smollm2-135m": {"learning_rate": 1e-3, "steps": 50}},
    "ft-l": {"smollm2-135m": {"layers": (8,), "learning_rate": 1e-3, "bound": 0.02}},
    "ultraedit": {"smollm2-135m": SMALL_STEPS},
    "stableedit": {"smollm2-135m": SMALL_STEPS},
}


def _rows(source: str, settings: dict[str, Rows]) -> dict[tuple[str, str], Preset]:
    return {
        (editor, model): Preset(source, given)
        for editor, by_model in settings.items()
        for model, given in by_model.items()
    }


# (editor, model) -> preset
PRESETS = (
    _rows(TABLE, PUBLISHED) | _rows(COMPOSED, COMBINED) | _rows(RELEASED, EASY_EDIT) | _rows(SEARCH, SEARCHED)
)


def known_model(config: DecoderConfig) -> str | None:
    """The model of this shape in `SHAPES`; None for any other."""
    for name, shape in SHAPES.items():
        if all(getattr(config, field) == value for field, value in shape.items()):
            return name
    return None


def preset_for(editor: str, config: DecoderConfig) -> Preset:
    """The editor's row for a model of this shape; without settings, and so by depth, where there is none."""
    return PRESETS.get((editor, known_model(config) or ""), Preset(DEPTH, {}))
