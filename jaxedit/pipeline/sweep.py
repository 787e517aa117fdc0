"""Many runs from one configuration: every combination of a grid of settings, each in a folder of its own."""

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxedit.errors import ConfigError, JaxeditError, RunError
from jaxedit.pipeline.config import RunConfig, check, config_from
from jaxedit.pipeline.sequence import Stop, never, resume, run
from jaxedit.pipeline.stopping import asked_to_stop
from jaxedit.trajectory.store import RunFolder

Engine = Literal["here", "local", "slurm"]


class Point(NamedTuple):
    """One run of a sweep."""

    values: dict[str, Any]  # of the grid's settings, by dotted name
    config: RunConfig


class Outcome(NamedTuple):
    """What became of it."""

    point: Point
    error: str | None  # None where the run came to its end
    stopped: bool = False  # by SIGTERM, after its last chunk was saved


def read_grid(grid: Sequence[str]) -> dict[str, list[Any]]:
    """Values to try by dotted name, from SETTING=VALUE,VALUE,...

    A value is what TOML reads, or a name without quotes; of "layers" one layer, or a range such as 6-10.
    Raises ConfigError for text of another form.
    """
    given = assigned("grid", grid, "SETTING=VALUE,VALUE,... with each setting once")
    return {name: [_value(name, one) for one in text.split(",")] for name, text in given.items()}


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE for each; a value is what TOML reads, or the text as it stands, commas included."""
    given = assigned("options", options, "NAME=VALUE with each name once")
    return {name: toml_value(text) for name, text in given.items()}


def assigned(what: str, texts: Sequence[str], form: str) -> dict[str, str]:
    """What stands behind "=" by the name before it. Raises ConfigError for text of another form, and a name twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, given = text.partition("=")
        if not name or not given or name in found:
            raise ConfigError(f"{what}: {text!r} is not {form}")
        found[name] = given
    return found


def _value(name: str, text: str) -> Any:
    layers = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if name.split(".")[-1] == "layers" and layers:
        first, last = layers.groups()
        return list(range(int(first), int(last or first) + 1))
    return toml_value(text)


def toml_value(text: str) -> Any:
    """What TOML reads, or a text without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def points(base: RunConfig, grid: dict[str, list[Any]]) -> list[Point]:
    """All combinations, the last setting changing fastest; run folders are named by them, within `base.out`.

    Raises ConfigError for settings that do not exist or cannot work, before anything is run, and for two runs
    that would share a folder.
    """
    found: list[Point] = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        content = dataclasses.asdict(base)
        for name, value in chosen.items():
            _put(content, name, value)
        content["out"] = str(Path(base.out) / _name(chosen))
        config = config_from(content)
        check(config)
        if any(config.out == other.config.out for other in found):
            raise ConfigError(f"grid: two runs would be {config.out}: give each value once, in other words")
        found.append(Point(chosen, config))
    return found


def _put(content: dict[str, Any], name: str, value: Any) -> None:
    *tables, last = name.split(".")
    for table in tables:
        content = content.get(table, {}) if isinstance(content, dict) else {}
    if not isinstance(content, dict) or last not in content:
        raise ConfigError(
            f"grid: there is no setting {name!r} of a run; settings of the editor are settings.NAME"
        )
    content[last] = value


def _name(values: dict[str, Any]) -> str:
    parts = [f"{name.split('.')[-1]}-{_spoken(value)}" for name, value in values.items()]
    return re.sub(r"[^\w.+-]+", "-", "_".join(parts)) or "run"


def _spoken(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return "-".join(str(one) for one in dict.fromkeys((value[0], value[-1])))


def run_or_resume(config: RunConfig, stop: Stop = never) -> None:
    """Makes the run, goes on with it, or leaves it where it is finished; `stop` as `jaxedit.pipeline.run` takes it.

    Raises RunError where its folder holds a run of other settings.
    """
    path = Path(config.out)
    if not path.exists():
        run(config, stop=stop)
        return
    there = config_from(RunFolder.open(path).read("config"))
    if dataclasses.replace(there, out=config.out) != config:
        raise RunError(f"{path} is a run of other settings: choose another folder with --out")
    resume(path, stop=stop)


def sweep(
    chosen: Sequence[Point], engine: Engine = "here", jobs: int = 1, options: dict[str, Any] | None = None
) -> Iterator[Outcome]:
    """Runs all of them, `jobs` at the same time; outcomes come in their order. One that fails stops no other.

    After SIGTERM the run at work saves its chunk and is the last.

    "here": in this process, one after the other. "local" and "slurm" hand each run to submitit, as a process of
    this machine or a job of the cluster; `options` are submitit's, such as `slurm_partition`.
    Raises ConfigError where submitit is wanted and not installed.
    """
    if engine == "here":
        with asked_to_stop() as stop:
            for point in chosen:
                error = attempt(point.config, stop)
                yield Outcome(point, error, stop())
                if stop():
                    return
        return
    submit = _submitter(Path(chosen[0].config.out).parent / "jobs", engine, options or {})
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda point: Outcome(point, submit(point.config)), chosen)


def attempt(config: RunConfig, stop: Stop = never) -> str | None:
    """Why `run_or_resume` failed; None where it did not. Whatever it was, other runs know nothing of it."""
    try:
        run_or_resume(config, stop)
    except JaxeditError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _submitter(folder: Path, engine: Engine, options: dict[str, Any]) -> Callable[[RunConfig], str | None]:
    try:
        import submitit
    except ImportError:
        raise ConfigError(
            f"engine {engine!r} needs submitit: `pip install -e '.[sweep]'` in a clone, or take engine 'here'"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder, cluster=engine)
        executor.update_parameters(**options)
    except (
        RuntimeError,
        NameError,
        TypeError,
        ValueError,
    ) as error:  # no cluster here, or options it has not
        raise ConfigError(f"engine {engine!r}: {error}") from None

    def submit(config: RunConfig) -> str | None:
        try:
            return executor.submit(attempt, config).result()
        except Exception as error:  # refused by the cluster, or ended before its run was
            told = [type(error).__name__, *str(error).splitlines()][:2]
            return f"{': '.join(told)} (logs of jobs are in {folder})"

    return submit
