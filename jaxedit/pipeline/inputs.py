"""What a run reads beside weights and facts, by digest: a run that goes on must read the same."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxedit.digests import sha256
from jaxedit.errors import RunError
from jaxedit.models.folders import sha256 as file_sha256
from jaxedit.models.sources import Checkpoint
from jaxedit.pipeline.config import RunConfig
from jaxedit.pipeline.prepare import versions
from jaxedit.pipeline.watch_config import Watch
from jaxedit.trajectory.files import sensible
from jaxedit.trajectory.store import RunFolder

SET_BY_CALLS = ("truncation", "padding")  # what of a tokenizer every use of it leaves changed


def inputs_of(config: RunConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """SHA-256 of the tokenizer, and by setting of every file or folder that the configuration names."""
    return {
        "tokenizer": tokenizer_digest(checkpoint),
        "files": {name: path_digest(path) for name, path in named_files(config).items()},
    }


def require_same_model(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Raises RunError where the model has another architecture or tokenizer than the run was made with.

    Settings that either side does not have yet are not compared.
    """
    with sensible(folder.path / "environment.json"):
        environment = folder.read("environment")
        written = dict(environment["model_config"])
        tokenizer = environment.get("inputs", {}).get("tokenizer")
    now = json.loads(json.dumps(dataclasses.asdict(checkpoint.model.config)))
    for name in sorted(written.keys() & now.keys()):
        if written[name] != now[name]:
            raise RunError(
                f"{folder.path} was made on a model with {name} = {written[name]}, in {checkpoint.folder} it is "
                f"{now[name]}: give back the original config.json"
            )
    if tokenizer is not None and tokenizer != tokenizer_digest(checkpoint):
        raise RunError(
            f"{folder.path} was made with another tokenizer than that in {checkpoint.folder}: give back the original "
            f"tokenizer.json"
        )


def require_same_files(folder: RunFolder, config: RunConfig, watched: bool = False) -> None:
    """Raises RunError where a file that the run's updates depend on is not as it was; `watched`: or its measures."""
    config = config if watched else dataclasses.replace(config, watch=Watch())
    with sensible(folder.path / "environment.json"):
        written = dict(folder.read("environment").get("inputs", {}).get("files", {}))
    for name, path in named_files(config).items():
        if name in written and path_digest(path) != written[name]:
            raise RunError(
                f"{folder.path} was made with another {name} than {path.absolute()} is now: give back the original "
                f"content, or begin another run"
            )


def other_versions(folder: RunFolder) -> dict[str, tuple[str, str]]:
    """Packages that are of another version here than when the run was begun: then and now."""
    with sensible(folder.path / "environment.json"):
        then = dict(folder.read("environment").get("versions", {}))
    now = versions()
    return {name: (then[name], now[name]) for name in then if name in now and then[name] != now[name]}


def named_files(config: RunConfig) -> dict[str, Path]:
    """By setting what a run reads; of several files each has its number."""
    watch, found = config.watch, dict[str, Any]()
    found |= {"network": config.network, "text.file": config.text.file, "moments.text": config.moments.text}
    if watch.measure:
        found["watch.measures.text"] = watch.measures.text
    if watch.ability:
        found["watch.questions.text"] = watch.questions.text
        found |= {f"watch.questions.tasks {i}": path for i, path in enumerate(watch.questions.tasks)}
    return {name: Path(path) for name, path in found.items() if path is not None}


def path_digest(path: Path) -> str:
    """Of a file's content, or of the names and contents of all files below a folder. RunError where neither is."""
    if not path.exists():
        raise RunError(
            f"there is no file or folder {path.absolute()}, which the run reads: put it back there"
        )
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256("".join(f"{file.relative_to(path)} {file_sha256(file)}\n" for file in files).encode())


def tokenizer_digest(checkpoint: Checkpoint) -> str:
    """Of all that decides how a text becomes tokens."""
    content = json.loads(checkpoint.tokenizer.backend_tokenizer.to_str())
    return sha256(
        json.dumps({k: v for k, v in content.items() if k not in SET_BY_CALLS}, sort_keys=True).encode()
    )
