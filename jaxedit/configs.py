"""Frozen dataclasses from plain data (TOML, JSON), with errors that name the nearest setting."""

import dataclasses
import sys
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from jaxedit.errors import ConfigError, unknown_name

T = TypeVar("T")
LARGEST = int(sys.float_info.max)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError if it is missing or malformed (with its line)."""
    try:
        return tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, thousands of digits or brackets
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def build(cls: type[T], content: dict[str, Any], where: str = "the configuration") -> T:
    """An instance of the dataclass `cls`; absent fields keep their defaults.

    Raises ConfigError for a field that `cls` does not have (with the nearest names) or a value of another type.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: {content!r} is not a table of settings")
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in content.items():
        if name not in fields:
            raise ConfigError(f"{where}: " + unknown_name("setting", name, fields))
        values[name] = _convert(hints[name], value, f"{where}, setting {name!r}")
    return cls(**values)


def require_at_least(config: Any, /, where: str = "", **least: int) -> None:
    """Raises ConfigError for the first of the named fields of `config` that is below its least value.

    `where` says before its name whose field it is, as in "training: ".
    """
    for name, bound in least.items():
        if (value := getattr(config, name)) < bound:
            raise ConfigError(f"{where}{name} is {value}; it must be at least {bound}")


def require_plain_path(path: str | Path) -> None:
    """Raises ConfigError for a folder in which orbax 0.12 writes checkpoints that it cannot read again."""
    if "[" in (whole := str(Path(path).absolute())):
        raise ConfigError(
            f"{whole}: checkpoints below a folder with '[' in its name are lost; choose another"
        )


def _convert(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and dataclasses.is_dataclass(option) and isinstance(value, dict):
            return build(option, value, where)
        if _fits(option, value):
            return _taken(option, value)
    raise ConfigError(f"{where}: {value!r} is not {_spoken(hint)}")


def _taken(option: Any, value: Any) -> Any:
    """A value that fits an option, as the dataclass has it."""
    if option in (float, Path):
        return option(value)
    if isinstance(value, list | tuple):
        (of, *_) = typing.get_args(option) or (None,)
        return tuple(_taken(of, item) for item in value)
    return value


def _fits(option: Any, value: Any) -> bool:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(args[0], item) for item in value)
    if option is float:
        return isinstance(value, float) or (_fits(int, value) and abs(value) <= LARGEST)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if option is Path:
        return isinstance(value, str | Path)
    return isinstance(value, option)


def _spoken(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return "of type " + str(getattr(hint, "__name__", hint)).replace("NoneType", "None")
