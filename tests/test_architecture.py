"""The import rules of the house, read off the source."""

import ast
import builtins
import dis
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import jaxedit

PACKAGE = Path(jaxedit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(file for room in ("scripts", "experiments") for file in (ROOT / room).glob("*.py"))


def module_of(file: Path) -> str:
    """`jaxedit/editors/rome.py` is jaxedit.editors.rome."""
    parts = ("jaxedit", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str = "", is_package: bool = False) -> Iterator[str]:
    """Every module (or name of one) that a source imports, wherever it stands, as an absolute dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            up = node.level - is_package
            base = (
                ".".join([*parts[: len(parts) - up], node.module or ""]).strip(".")
                if node.level
                else node.module
            )
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


IMPORTS = {
    module_of(file): set(imports(file.read_text(), module_of(file), file.name == "__init__.py"))
    for file in FILES
}


def within(name: str, rooms: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the rooms or lies in one."""
    return any(name == room or name.startswith(room + ".") for room in rooms)


def offenders(who: tuple[str, ...], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, who)
        for name in sorted(names)
        if within(name, forbidden)
    ]


def outside(who: tuple[str, ...], allowed: tuple[str, ...]) -> list[str]:
    """Imports of ours that are not among the allowed rooms."""
    return [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, who)
        for name in sorted(names)
        if within(name, ("jaxedit",)) and not within(name, allowed)
    ]


def ours(*rooms: str) -> tuple[str, ...]:
    return tuple(f"jaxedit.{room}" for room in rooms)


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    import torch\n"
    assert set(imports(source, "x.y.z")) == {"a.b", "c.d", "x.y.e", "x.f.g", "torch"}
    assert set(imports("from .f import g", "x.y", is_package=True)) == {"x.y.f.g"}
    assert "jaxedit.types.LowRank" in IMPORTS["jaxedit.linalg"]
    assert len(IMPORTS) > 30


def test_torch_is_imported_nowhere() -> None:
    assert offenders(("jaxedit",), ("torch",)) == []


def test_transformers_is_imported_only_where_text_and_checkpoints_are() -> None:
    allowed = ours("data", "models.families", "models.sources", "models.gguf_tokenizer")
    found = [
        name
        for name, names in IMPORTS.items()
        if any(within(n, ("transformers", "tokenizers")) for n in names)
    ]
    assert [name for name in found if not within(name, allowed)] == []


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("errors", ()),
        ("digests", ()),
        ("disk", ()),
        ("batching", ()),
        ("types", ("types", "errors")),
        ("linalg", ("types", "errors")),
        ("parallel", ("errors",)),
        ("processes", ("errors",)),
        ("models", ("models", "batching", "disk", "parallel", "types", "errors")),
        ("data", ("data", "types", "errors")),
        (
            "lookup",
            ("models.attention", "models.decoder", "models.packing", "models.sharing", "types", "errors"),
        ),
        ("packed", ("models.packing", "types", "errors")),
        (
            "values",
            (
                "lookup",
                "packed",
                "batching",
                "linalg",
                "models.decoder",
                "models.packing",
                "types",
                "errors",
            ),
        ),
        ("statistics", ("models", "linalg", "types", "errors")),
        ("editors", ("editors", "batching", "types", "linalg", "models", "values", "lookup", "errors")),
        ("evaluation", ("evaluation", "processes", "models", "types", "errors")),
        ("diagnostics", ("diagnostics", "models", "linalg", "types", "errors")),
        ("trajectory", ("trajectory", "parallel", "linalg", "configs", "digests", "disk", "types", "errors")),
        (
            "training",
            (
                "training",
                "editors",
                "data",
                "evaluation",
                "models",
                "lookup",
                "linalg",
                "types",
                "errors",
                "configs",
                "digests",
                "disk",
            ),
        ),
    ],
)
def test_a_room_imports_only_what_lies_below_it(room: str, allowed: tuple[str, ...]) -> None:
    assert [name for name in IMPORTS if within(name, ours(room))], "the room is gone"
    assert outside(ours(room), ours(*allowed)) == []


def test_editors_never_import_text_scores_or_the_driver() -> None:
    above = ours("data", "diagnostics", "evaluation", "trajectory", "training", "report")
    assert offenders(ours("editors"), above) == []


def test_no_room_but_the_top_imports_an_editor() -> None:
    rooms = ours(
        "types", "linalg", "models", "data", "values", "statistics", "diagnostics", "evaluation", "trajectory"
    )
    assert offenders(rooms, ours("editors")) == []


def test_editors_and_linear_algebra_neither_compile_nor_place_nor_print() -> None:
    """The driver and the scripts decide that."""
    forbidden = {"jit", "pmap", "device_put", "print", "devices"}
    for file in FILES:
        if not within(module_of(file), ours("editors", "linalg", "values", "lookup", "diagnostics")):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            name = (
                node.attr
                if isinstance(node, ast.Attribute)
                else node.id
                if isinstance(node, ast.Name)
                else ""
            )
            assert name not in forbidden, f"{file.name}, line {node.lineno}: {name}"


def globals_read(code: CodeType) -> Iterator[str]:
    """Names that a piece of code, and what it defines, looks up outside of functions."""
    yield from (
        step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    )
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from globals_read(inner)


def undefined(source: str) -> set[str]:
    """Names that a module reads and nothing in it, nor Python, defines."""
    known = {"__file__", "__annotations__", "__qualname__", "__module__", *dir(builtins)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            known.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return set(globals_read(compile(source, "module", "exec"))) - known


def test_every_name_is_defined() -> None:
    """Type checker and linter cannot tell: to them the shapes of jaxtyping are undefined names too."""
    assert undefined("import a\ndef f(x):\n    return [b for y in a(x)] + [len(z)]\n") == {"b", "z"}
    found = {str(file): undefined(file.read_text()) for file in [*FILES, *SCRIPTS]}
    assert {file: names for file, names in found.items() if names} == {}
