"""Model folders from the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from jaxedit.errors import ModelError
from jaxedit.models.tensorfiles import weight_files

PATTERNS = ["model.safetensors", "model-*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
PROBE_SECONDS = 4.0


def fetch(repository: str) -> Path:
    """The folder of a hub repository "org/name", downloaded or from the hub's own cache.

    Raises ModelError where it does not exist, may not be read, or the hub is out of reach.
    """
    try:
        return Path(snapshot_download(repository, allow_patterns=PATTERNS))
    except Exception as error:  # network, access, disk: the hub's client raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot get {repository!r} from the Hugging Face hub ({reason}); check the name, the network "
            "and for closed models HF_TOKEN, or give the path of a local folder"
        ) from error


def fetch_quickly(repository: str) -> Path | None:
    """The folder of a hub repository, or None where it cannot be had: within seconds if the hub is silent.

    One that the hub's own cache has whole is taken from there, so that a name means the same weights with and without
    a network.
    """
    if (cached := _cached(repository)) is not None:
        return cached
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        HfApi().model_info(repository, timeout=PROBE_SECONDS)
        return fetch(repository)
    except Exception:  # whatever the reason, the caller has another source
        return None


def _cached(repository: str) -> Path | None:
    """What a download left in the hub's cache, where that came to its end."""
    try:
        folder = Path(snapshot_download(repository, allow_patterns=PATTERNS, local_files_only=True))
        weight_files(folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, ModelError, OSError):
        return None
    needed = ("config.json", "tokenizer.json")
    return folder if all((folder / name).is_file() for name in needed) else None
