"""Made-up dialogs: pictures say what histories claim, tips are kept, splits share nothing."""

from __future__ import annotations

import ast
import re
from collections import Counter

import numpy as np
import pytest

from fastmpi.policies.gta import scene_queries as scenes
from fastmpi.policies.gta.dialogs import Call, Dialogs
from fastmpi.policies.gta.draft import Draft
from fastmpi.policies.gta.generator import MAKERS, DialogSource
from fastmpi.policies.gta.pictures import Rectangle, Sketch, Text, bbox_text
from fastmpi.policies.gta.queries import TEXT_MAKERS
from fastmpi.policies.gta.tools import TOOLS
from fastmpi.tool_calls.arithmetic import evaluate


@pytest.fixture(scope="module")
def source() -> Dialogs:
    return DialogSource().make(np.random.default_rng(5), 300)


def calls_of(source: Dialogs) -> list[Call]:
    return [call for dialog in source.dialogs for call in dialog.calls]


def test_every_tool_is_called_with_its_arguments(source: Dialogs) -> None:
    assert source.num_calls == 300
    calls = calls_of(source)
    assert {call.tool for call in calls} == set(TOOLS)
    for call in calls:
        inputs = {a.name: a for a in TOOLS[call.tool].arguments}
        assert set(call.arguments) <= set(inputs)
        assert {n for n, a in inputs.items() if not a.optional} <= set(call.arguments)
        kinds = {"int": int, "bool": bool}
        assert all(type(v) is kinds.get(inputs[n].type, str) for n, v in call.arguments.items())


def test_pictures_are_named_before_they_are_used(source: Dialogs) -> None:
    taken: Counter[str] = Counter()
    for dialog in source.dialogs:
        known = set(dialog.images)
        taken.update(dialog.images)
        for call in dialog.calls:
            assert call.arguments.get("image", dialog.images[0]) in known
            if call.made:
                assert call.returned is not None
                taken[call.returned] += 1
                known.add(call.returned)
        assert set(dialog.images) <= set(source.pictures)
    assert max(taken.values()) == 1


def test_sums_are_right(source: Dialogs) -> None:
    for call in calls_of(source):
        if call.tool == "Calculator":
            expression = str(call.arguments["expression"])
            assert float(evaluate(expression)) == pytest.approx(float(str(call.returned)))


def test_code_is_python_and_solutions_solve(source: Dialogs) -> None:
    for call in calls_of(source):
        if call.tool in ("Plot", "Solver"):
            fence = re.fullmatch(r"```python\n(.*)\n```", str(call.arguments["command"]), re.S)
            assert fence is not None
            names = [n.name for n in ast.parse(fence[1]).body if isinstance(n, ast.FunctionDef)]
            assert names == ["solution"]
        if call.tool == "Solver" and str(call.returned).startswith("["):
            a, b, c = map(int, re.findall(r"\(?(-?\d+)\)?(?=\*\w\*\*2|\)\*|\), 0\))", fence[1]))
            roots = ast.literal_eval(str(call.returned))
            assert [a * x * x + b * x + c for x in roots] == [0, 0]


def test_the_four_tips_are_kept(source: Dialogs) -> None:
    for dialog in source.dialogs:
        tools = [call.tool for call in dialog.calls]
        if len(dialog.images) > 1:
            described = [c.arguments.get("image") for c in dialog.calls[: len(dialog.images)]]
            assert set(tools[: len(dialog.images)]) == {"ImageDescription"}
            assert tuple(described) == dialog.images
        for call, before in zip(dialog.calls[1:], dialog.calls, strict=False):
            if call.tool == "RegionAttributeDescription":
                assert before.tool == "TextToBbox"
                assert str(before.returned).startswith(str(call.arguments["bbox"]))
        for call in dialog.calls:
            if call.tool == "GoogleSearch":
                assert len(str(call.returned).splitlines()) == call.arguments["k"] in (1, 4)
    searches = {c.arguments["k"] for c in calls_of(source) if c.tool == "GoogleSearch"}
    assert searches == {1, 4}


def test_what_one_split_has_the_other_does_not_get() -> None:
    made = DialogSource()
    train, test = (made.make(np.random.default_rng(s), n) for s, n in ((0, 200), (1, 100)))
    queries = [{c.query for d in part.dialogs for c in d.calls} for part in (train, test)]
    assert not queries[0] & queries[1]
    assert not set(train.pictures) & set(test.pictures)
    shown = [
        {draw().tobytes() for name, draw in list(part.pictures.items())[:12]}
        for part in (train, test)
    ]
    assert not shown[0] & shown[1]


def test_equal_contents_are_drawn_anew() -> None:
    """The same stream again would make the same dialogs again."""
    made = DialogSource()
    first, again = (made.make(np.random.default_rng(7), 30) for _ in range(2))
    queries = [{c.query for d in part.dialogs for c in d.calls} for part in (first, again)]
    assert not queries[0] & queries[1]


def test_running_out_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(draft: Draft) -> None:
        draft.query = "always the same"
        draft.call("Calculator", "", "2", expression="1 + 1")

    monkeypatch.setattr("fastmpi.policies.gta.generator.MAKERS", (same,))
    with pytest.raises(ValueError, match="same: nothing new in 1000 tries"):
        DialogSource().make(np.random.default_rng(0), 2)


def test_an_ocr_return_is_what_the_picture_says(source: Dialogs) -> None:
    for call in calls_of(source):
        if call.tool == "OCR":
            lines = str(call.returned).splitlines()
            assert lines and all(re.match(r"\(\d+, \d+, \d+, \d+\) \S", line) for line in lines)


@pytest.mark.parametrize("maker", TEXT_MAKERS, ids=lambda maker: maker.__name__)
def test_texts_stay_inside_their_pictures(maker) -> None:
    for seed in range(12):
        draft = Draft(np.random.default_rng(seed), "0", 1)
        maker(draft)
        for name in draft.finished().images:
            sketch = draft.sketch(name)
            width, height = sketch.size
            assert draft.pictures[name]().size == sketch.size
            texts = [shape for shape in sketch.shapes if isinstance(shape, Text)]
            for text in texts:
                left, top, right, bottom = text.box
                assert 0 <= left < right <= width and 0 <= top < bottom <= height, text
            boxes = [text.box for text in texts]
            for i, a in enumerate(boxes):
                for b in boxes[:i]:
                    apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
                    assert apart or "formula" in maker.__name__, (a, b)


def test_a_sketch_reads_from_top_to_bottom() -> None:
    shapes = (Text(60, 40, "b"), Text(5, 40, "a"), Text(50, 5, "top"), Rectangle((0, 0, 9, 9)))
    sketch = Sketch((90, 70), (255, 255, 255), shapes)
    assert sketch.words() == ("top", "a", "b")
    box, _, word = sketch.ocr().splitlines()[0].rpartition(" ")
    assert word == "top" and box == bbox_text(shapes[2].box)
    dark = np.argwhere(np.asarray(sketch.draw().convert("L"))[3:30] < 128)
    assert len(dark) > 10


def test_boxes_and_counts_are_those_of_the_scene() -> None:
    draft = Draft(np.random.default_rng(2), "0", 1)
    scene = scenes._scene(draft)
    for item in scene.objects:
        left, top, right, bottom = scenes._box(scene, item)
        x, y, _ = item.pixel_coords
        assert 0 <= left < x < right <= 400 and 0 <= top < y < bottom <= 300
    item = scene.objects[0]
    kind = f"{item.color} {item.shape}"
    same = [o for o in scene.objects if (o.color, o.shape) == (item.color, item.shape)]
    assert scenes._number(scene, kind) == len(same) >= 1


def test_makers_are_named_once_for_all() -> None:
    assert len({maker.__name__ for maker in MAKERS}) == 24
