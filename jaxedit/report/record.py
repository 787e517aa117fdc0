"""What figures and tables need to know of a run, read from its folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxedit.errors import RunError
from jaxedit.evaluation.edits import summarise
from jaxedit.trajectory.files import sensible
from jaxedit.trajectory.store import RunFolder

SCORES = ("ES", "PS", "NS")
RIGHT_AFTER = {"ES": "rewrite_success", "PS": "paraphrase_success", "NS": "neighborhood_success"}
AT_THE_END = ("unedited", "final", "unedited_norm", "final_norm")


class RunRecord(NamedTuple):
    """One run, finished or stopped. What is known at its end is empty until then."""

    name: str  # of its folder
    editor: str
    asked: int  # facts the run is to edit
    edits: Int[np.ndarray, "U"]  # facts written after each update; batches read, where they are text
    norm: dict[str, Float[np.ndarray, "U"]]  # ||W||_F of each edited matrix after each update
    update: dict[str, Float[np.ndarray, "U"]]  # ||Delta||_F of each update; 0 where it was refused
    scores: dict[str, Float[np.ndarray, "E"]]  # of each fact right after its update; empty without scoring
    refused: int  # updates that the guard left out
    unedited: dict[str, float]  # ES, PS, NS, S, ... of all edits on the unedited model
    final: dict[str, float]  # the same on the final model
    unedited_norm: dict[str, float]  # ||W||_F of MLP matrices and edited ones before the first update
    final_norm: dict[str, float]  # of each edited matrix as it is used: after `Editor.finalize`
    final_scores: Mapping[str, Float[np.ndarray, "E"]] = {}  # of each fact on the final model

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.final)

    def right_after(self) -> dict[str, float]:
        """Means over the facts scored right after their update, as `summarise` names them."""
        return summarise(self.scores) if self.scores else {}

    def running(self, score: str) -> Float[np.ndarray, "E"]:
        """Mean of a score over the first 1, 2, ... edits, each right after its update; NaN before there is one."""
        values = self.scores[RIGHT_AFTER[score]]
        there = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return np.cumsum(np.where(there, values, 0.0)) / np.cumsum(there)

    def trajectory(self, path: str) -> tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]:
        """Edits and norm of an edited matrix, from the unedited one on where that is known."""
        if path not in self.unedited_norm:
            return self.edits, self.norm[path]
        return np.r_[0, self.edits], np.r_[self.unedited_norm[path], self.norm[path]]

    def growth(self, path: str) -> Float[np.ndarray, "N"]:
        """Norm of an edited matrix over that of the start of its `trajectory`, minus 1."""
        _, norm = self.trajectory(path)
        return norm / norm[0] - 1.0

    def grown(self, path: str) -> float:
        """Growth of the matrix as it is used in the end; some transforms restrain it after the last edit."""
        _, norm = self.trajectory(path)
        return self.final_norm.get(path, norm[-1]) / norm[0] - 1.0

    def alignment_share(self, path: str) -> float:
        """How much of the growth of ||W||^2 is due to <W, Delta>, as `jaxedit.diagnostics.path.alignment_share`.

        From the log alone, for dense updates too: the sum of 2 <W, Delta> is what the squares of the updates leave of
        the growth. NaN where nothing was written.
        """
        _, norm = self.trajectory(path)
        steps = float(np.square(self.update[path][len(self.edits) - len(norm) + 1 :]).sum())
        cross = float(norm[-1] ** 2 - norm[0] ** 2) - steps
        return cross / (abs(cross) + steps) if steps else float("nan")

    @property
    def matrices(self) -> list[str]:
        """What is edited of two dimensions, where that is known; else everything edited."""
        return [path for path in self.norm if path in self.unedited_norm] or list(self.norm)

    def same_kind(self, path: str) -> list[float]:
        """Unedited norms of the matrices of the same kind in all layers that this run does not edit."""
        return [
            norm
            for other, norm in self.unedited_norm.items()
            if kind_of(other) == kind_of(path) and other not in self.norm
        ]


def read_run(path: str | Path) -> RunRecord:
    """The record of a run folder. Raises RunError where it is none, is damaged, or has no update yet."""
    folder = RunFolder.open(path)
    lines = folder.metrics()
    if not lines:
        raise RunError(f"{path} has no finished update to report: `jaxedit resume {path}` goes on with it")
    config = folder.read("config")
    summary = folder.read("summary") if folder.finished else {name: {} for name in AT_THE_END}
    with sensible(path):
        return RunRecord(
            name=folder.path.resolve().name,
            editor=str(config["editor"]),
            asked=int(config["count"]),
            edits=np.cumsum([len(line["facts"]) or 1 for line in lines]),
            norm={
                p: _floats(line["norm"][p] for line in lines) for p in sorted(lines[0]["norm"], key=layer_of)
            },
            update={
                p: _floats(line["delta_norm"][p] if line["applied"] else 0.0 for line in lines)
                for p in lines[0]["norm"]
            },
            scores={
                name: _floats(value for line in lines for value in line["scores"][name])
                for name in lines[0]["scores"]
            },
            refused=sum(not line["applied"] for line in lines),
            unedited=summary["unedited"],
            final=summary["final"],
            unedited_norm=summary["unedited_norm"],
            final_norm=summary.get("final_norm", {}),
            final_scores={
                name: _floats(values) for name, values in summary.get("by_fact", {}).get("final", {}).items()
            },
        )


def layer_of(path: str) -> int:
    """The layer's number in a parameter path; -1 where there is none."""
    return next((int(part) for part in path.split(".") if part.isdigit()), -1)


def kind_of(path: str) -> str:
    """A parameter path without its layer's number."""
    return ".".join(part for part in path.split(".") if not part.isdigit())


def projection_of(path: str) -> str:
    """`layers.3.mlp.down.kernel` is mlp.down."""
    return kind_of(path).removeprefix("layers.").removesuffix(".kernel")


def _floats(values: Iterable[Any]) -> Float[np.ndarray, "N"]:
    return np.array([np.nan if value is None else value for value in values], np.float64)
