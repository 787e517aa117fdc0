"""Downstream tasks: rows of their files as multiple-choice questions, and few-shot prompts of them."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from jaxedit.data.reading import Record, read_records, take_text, take_texts
from jaxedit.errors import ConfigError, FactError, unknown_name


@dataclass(frozen=True)
class Question:
    """`text` ends without a space where the answer begins, which is `" " + choices[gold]`."""

    where: str  # file and record
    text: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """All questions of a file, in its order; `heading` says what is asked."""

    name: str
    heading: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class FewShot:
    """Which rows of a task become prompts."""

    shots: int = 4
    """Answered questions before each question; the same for all."""
    pool: int = 10
    """First rows of the file, from which these are drawn; they are never asked."""
    items: int = 100
    """Questions asked: the rows that follow, or as many as there are."""
    seed: int = 0
    """Of the draw."""


@dataclass(frozen=True)
class Schema:
    """How a row is put to a model: text fields into the template, the label's value to a choice.

    With `options`, a field that is a list, these are lettered below the template, and the choices are the letters.
    The label is then an option's letter or its index.
    """

    heading: str
    template: str
    fields: tuple[str, ...]
    label: str = "label"
    choices: tuple[tuple[str, str], ...] = ()  # value in the file, word in the prompt
    options: str | None = None
    ask: str = "Answer:"


_YES = (("0", "no"), ("1", "yes"))
_OPINION = Schema(
    "Is the opinion of each review positive or negative?",
    "Review: {sentence}",
    ("sentence",),
    choices=(("0", "negative"), ("1", "positive")),
    ask="Opinion:",
)
_FOLLOWS = Schema(
    "Does each statement follow from the text before it, yes or no?",
    "Text: {sentence1}\nStatement: {sentence2}",
    ("sentence1", "sentence2"),
    choices=(("0", "yes"), ("1", "no")),
)
SCHEMAS = {
    "sst2": _OPINION,
    "sentiment_analysis": _OPINION,
    "mrpc": Schema(
        "Do both sentences mean the same, yes or no?",
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}",
        ("sentence1", "sentence2"),
        choices=_YES,
    ),
    "cola": Schema(
        "Is each sentence grammatical, yes or no?", "Sentence: {sentence}", ("sentence",), choices=_YES
    ),
    "rte": _FOLLOWS,
    "nli": dataclasses.replace(_FOLLOWS, choices=(("entailment", "yes"), ("not_entailment", "no"))),
    "mmlu": Schema(
        "Each question has one right answer.",
        "Question: {question}",
        ("question",),
        label="answer",
        options="choices",
    ),
    "dialogue": Schema(
        "How does each conversation go on?", "{article}", ("article",), label="answers", options="options"
    ),
}


def load_task(path: str | Path) -> Task:
    """The task of a JSON list of rows; the file's name tells which it is, such as `sst2.json`.

    GLUE's SST-2, MRPC, CoLA and RTE (arXiv 1804.07461), MMLU (2009.03300), NLI and dialogue as papers on sequences
    of edits use them.

    Raises:
        FactError: no task of that name; a row lacks a field, or one is empty, of another kind, or no label of
            the task (names file, row and field).
    """
    name = Path(path).stem
    if name not in SCHEMAS:
        raise FactError(f"{path}: {unknown_name('task', name, SCHEMAS)} The file's name tells the task.")
    schema = SCHEMAS[name]
    rows = enumerate(read_records(path), start=1)
    questions = [_question(row, schema, f"{path}, record {number}") for number, row in rows]
    return Task(name, schema.heading, tuple(questions))


def load_tasks(paths: Iterable[str | Path]) -> list[Task]:
    """The tasks of files, and of all files in folders whose names tell a task.

    Raises:
        FactError: a folder without one, a task that comes twice, or as `load_task`.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path / f"{name}.json" for name in SCHEMAS) if path.is_dir() else [path]
        files += [file for file in found if file.is_file() or not path.is_dir()]
        if path.is_dir() and not any(file.is_file() for file in found):
            raise FactError(f"{path}: holds no task; their files are {', '.join(sorted(SCHEMAS))} (.json)")
    if doubled := sorted({file.stem for file in files if [x.stem for x in files].count(file.stem) > 1}):
        raise FactError(f"task {doubled[0]!r} is named twice: give each task once")
    return [load_task(file) for file in files]


def few_shot(task: Task, config: FewShot = FewShot()) -> list[Question]:
    """The questions that are asked, each with the heading and the same answered questions before it.

    Of the pool's questions each answer is drawn as often as the others, as far as they go; the order is drawn too.

    Raises:
        ConfigError: more shots than the pool has questions, or nothing left to ask.
    """
    shots, pool, items = config.shots, config.pool, config.items
    if not 0 <= shots <= pool or items < 1 or len(task.questions) <= pool:
        raise ConfigError(
            f"task {task.name!r} has {len(task.questions)} rows: cannot take {shots} shots from the first {pool} "
            f"and ask {items}; need shots <= pool < rows, and items >= 1"
        )
    chosen = _draw([question.gold for question in task.questions[:pool]], shots, config.seed)
    answered = [task.questions[i] for i in chosen]
    parts = [task.heading, *(f"{shot.text} {shot.choices[shot.gold]}" for shot in answered)]
    before = "".join(f"{part}\n\n" for part in parts)
    asked = task.questions[pool : pool + items]
    return [dataclasses.replace(question, text=before + question.text) for question in asked]


def _draw(answers: Sequence[int], count: int, seed: int) -> list[int]:
    """Indices of `count` of the answers: one of each in turn, in a random order."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(answers)).tolist()
    turn = [[answers[j] for j in shuffled[:i]].count(answers[one]) for i, one in enumerate(shuffled)]
    first = sorted(range(len(shuffled)), key=turn.__getitem__)[:count]
    return [shuffled[i] for i in rng.permutation(first)]


def _question(row: Record, schema: Schema, where: str) -> Question:
    texts = {name: take_text(row, name, where) for name in (*schema.fields, schema.label)}
    options = take_texts(row, schema.options, where) if schema.options else ()
    if empty := [name for name, text in texts.items() if not text]:
        raise FactError(f"{where}: field {empty[0]!r} is empty")
    label = texts.pop(schema.label)
    if schema.options and not (1 < len(options) <= len(ascii_uppercase) and all(options)):
        raise FactError(
            f"{where}: field {schema.options!r} must be a list of two options or more, none empty"
        )
    values = dict(schema.choices) if not options else _letters(len(options))
    known = {**{name: i for i, name in enumerate(values)}, **({str(i): i for i in range(len(options))})}
    if label not in known:
        raise FactError(f"{where}: field {schema.label!r} is {label!r}; it must be one of {', '.join(known)}")
    lines = [f"{letter}. {option}" for letter, option in zip(values, options, strict=False)]
    text = "\n".join([schema.template.format(**texts), *lines, schema.ask])
    return Question(where, text, tuple(values.values()), known[label])


def _letters(count: int) -> dict[str, str]:
    return {letter: letter for letter in ascii_uppercase[:count]}
