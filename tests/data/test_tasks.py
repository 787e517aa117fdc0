"""Task files: what becomes of their rows, and which rows become prompts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jaxedit.data.tasks import SCHEMAS, FewShot, Task, few_shot, load_task, load_tasks
from jaxedit.errors import ConfigError, FactError

ROWS: dict[str, tuple[dict[str, Any], str, int]] = {  # a row, the right choice, how many there are
    "sst2": ({"sentence": "a dull film . ", "label": 0, "idx": 3}, "negative", 2),
    "sentiment_analysis": ({"sentence": "a fine film", "label": "1"}, "positive", 2),
    "mrpc": ({"sentence1": "He left .", "sentence2": "He went .", "label": 1, "idx": 1}, "yes", 2),
    "cola": ({"sentence": "Them goes {home}.", "label": 0, "idx": 1}, "no", 2),
    "rte": ({"sentence1": "Rome fell.", "sentence2": "Rome won.", "label": 1, "idx": 1}, "no", 2),
    "nli": ({"sentence1": "It rains.", "sentence2": "It is wet.", "label": "entailment"}, "yes", 2),
    "mmlu": ({"question": "4 x 9?", "subject": "m", "choices": ["13", "36", "5"], "answer": 1}, "B", 3),
    "dialogue": ({"article": "f : hi", "options": ["m : hi", "m : no"], "answers": "B", "id": "1"}, "B", 2),
}


def write(folder: Path, name: str, rows: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows))
    return path


def labelled(folder: Path, labels: list[int]) -> Task:
    return load_task(write(folder, "cola", [{"sentence": f"s{i}", "label": x} for i, x in enumerate(labels)]))


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_row_becomes_a_question(name: str, tmp_path: Path) -> None:
    row, right, count = ROWS[name]
    (question,) = load_task(write(tmp_path, name, [row])).questions
    assert question.choices[question.gold] == right
    assert len(set(question.choices)) == count
    assert question.text.endswith(":")
    shown = [
        value for value in row.values() if isinstance(value, str) and len(value) > 5 and value != "entailment"
    ]
    for text in (*shown, *row.get("choices", ()), *row.get("options", ())):
        assert text.strip() in question.text
    assert question.where.endswith(f"{name}.json, record 1")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sst2", {"label": 2}, r"sst2.json, record 2: field 'label' is '2'; it must be one of 0, 1"),
        ("sst2", {"label": None}, "record 2: field 'label'"),
        ("rte", {"sentence2": " "}, "rte.json, record 2: field 'sentence2' is empty"),
        ("nli", {"sentence1": ["a"]}, "nli.json, record 2: field 'sentence1' must be a string, found a list"),
        ("mmlu", {"choices": ["one"]}, "mmlu.json, record 2: field 'choices' must be a list of two"),
        ("mmlu", {"choices": "one"}, "mmlu.json, record 2: field 'choices' must be a list of strings"),
        (
            "mmlu",
            {"answer": 3},
            "mmlu.json, record 2: field 'answer' is '3'; it must be one of A, B, C, 0, 1, 2",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    row = ROWS[name][0]
    path = write(tmp_path, name, [row, row | change])
    with pytest.raises(FactError, match=message):
        load_task(path)
    path = write(tmp_path, name, [row, {key: row[key] for key in row.keys() - change.keys()}])
    with pytest.raises(FactError, match=f"record 2: field '{next(iter(change))}' is missing"):
        load_task(path)


def test_tasks_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("sst2", "mmlu"):
        write(tmp_path, name, [ROWS[name][0]])
    write(tmp_path, "other", [])
    assert {task.name for task in load_tasks([tmp_path])} == {"sst2", "mmlu"}
    with pytest.raises(FactError, match=r"unknown task 'other'.*sst2"):
        load_tasks([tmp_path / "other.json"])
    with pytest.raises(FactError, match="'sst2' is named twice"):
        load_tasks([tmp_path, tmp_path / "sst2.json"])
    with pytest.raises(FactError, match=r"cola\.json: cannot be read"):
        load_tasks([tmp_path / "cola.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FactError, match="empty: holds no task"):
        load_tasks([tmp_path / "empty"])


def test_shots_come_from_the_pool_and_are_never_asked(tmp_path: Path) -> None:
    task = labelled(tmp_path, [0, 1] * 10)
    asked = few_shot(task, FewShot(shots=4, pool=10, items=6))
    assert [question.where for question in asked] == [question.where for question in task.questions[10:16]]
    for question, bare in zip(asked, task.questions[10:16], strict=True):
        blocks = question.text.split("\n\n")
        assert blocks[0] == task.heading
        assert blocks[-1] == bare.text
        assert (question.choices, question.gold) == (bare.choices, bare.gold)
        answered = {f"{one.text} {one.choices[one.gold]}" for one in task.questions[:10]}
        assert len(set(blocks[1:-1])) == 4
        assert set(blocks[1:-1]) < answered
    assert len(few_shot(task, FewShot(shots=0, pool=0))) == 20
    assert few_shot(task, FewShot(shots=0, pool=0))[0].text == f"{task.heading}\n\n{task.questions[0].text}"


def test_the_draw_follows_its_seed_and_takes_each_answer_in_turn(tmp_path: Path) -> None:
    task = labelled(tmp_path, [0] * 7 + [1] * 3 + [0, 1])
    drawn = {seed: few_shot(task, FewShot(seed=seed))[0].text for seed in range(8)}
    assert drawn[3] == few_shot(task, FewShot(seed=3))[0].text
    assert len(set(drawn.values())) > 4
    for text in drawn.values():
        words = [block.rsplit(" ", 1)[1] for block in text.split("\n\n")[1:-1]]
        assert Counter(words) == {"no": 2, "yes": 2}
    eight = few_shot(task, FewShot(shots=8))[0].text.split("\n\n")[1:-1]
    assert Counter(block.rsplit(" ", 1)[1] for block in eight) == {"no": 5, "yes": 3}
    assert (
        len({tuple(block.rsplit(" ", 1)[1] for block in text.split("\n\n")[1:-1]) for text in drawn.values()})
        > 1
    )


@pytest.mark.parametrize("wrong", [{"shots": 5, "pool": 4}, {"pool": 12}, {"items": 0}, {"shots": -1}])
def test_impossible_prompts_are_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'cola' has 12 rows"):
        few_shot(labelled(tmp_path, [0, 1] * 6), FewShot(**wrong))


def test_real_tasks_are_read(real_data: Path) -> None:
    tasks = {task.name: task for task in load_tasks([real_data / "glue"])}
    assert set(tasks) == set(SCHEMAS)
    counts = {"sst2": 856, "mrpc": 258, "cola": 644, "rte": 262, "mmlu": 1516, "nli": 2489}
    assert {name: len(tasks[name].questions) for name in counts} == counts
    for name, options in (("rte", 2), ("mmlu", 4)):
        asked = few_shot(tasks[name])
        assert len(asked) == 100
        assert Counter(question.gold for question in asked) == dict.fromkeys(range(options), 100 // options)
