"""A page shows the lesson as it is now, and its pictures are small."""

import re

import pytest

from lessons import pages
from lessons.check import HERE

EVERY = sorted(HERE.glob("[01][0-9]_*.py"))


@pytest.mark.parametrize("lesson", EVERY, ids=lambda path: path.stem)
def test_no_page_is_out_of_date(lesson):
    text = (pages.PAGES / f"{lesson.stem}.md").read_text(encoding="utf-8")
    again = f"run: python lessons/pages.py {lesson.name[:2]}"
    assert text.rstrip("\n").split("\n")[-1] == pages.stamp(lesson), again
    for name in re.findall(r"^!\[.*\]\((.*)\)$", text, flags=re.MULTILINE):
        assert (pages.PAGES / name).stat().st_size < 130_000, name
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    assert f"](pages/{lesson.stem}.md)" in readme, "link the page in lessons/README.md"


def test_there_is_no_page_or_picture_without_its_lesson():
    numbers = {lesson.name[:2] for lesson in EVERY}
    stems = {lesson.stem for lesson in EVERY}
    for path in pages.PAGES.iterdir():
        assert path.name[:2] in numbers if path.suffix != ".md" else path.stem in stems, path


LESSON = '''\
# %% [markdown]
# # 00 · Small
#     1 + 1 = 2
# %%
from lessons import check
args = check.options()
for i in range(2):

    print(i + 1)
# %%
x = 7
# %%
# region Solution: unfold
def f():
    return 1
# endregion
'''


def test_a_page_has_prose_code_output_and_a_folded_solution(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pages.py"])
    monkeypatch.setattr("lessons.check.OUT", tmp_path)
    lesson = tmp_path / "00_small.py"
    lesson.write_text(LESSON, encoding="utf-8")
    text = pages.page(lesson)
    assert text.startswith("# 00 · Small\n    1 + 1 = 2\n\n```python\nfrom lessons")
    assert "    print(i + 1)\n```\n\n```text\n1\n2\n```\n\n```python\nx = 7\n```" in text
    assert "</summary>\n\n```python\ndef f():\n    return 1\n```\n\n</details>" in text
    assert pages.digest(LESSON) in text.rstrip().split("\n")[-1]


def test_an_error_names_the_line_of_the_lesson(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pages.py"])
    monkeypatch.setattr("lessons.check.OUT", tmp_path)
    lesson = tmp_path / "00_small.py"
    lesson.write_text("# %%\nx = 1\n# %%\n\n1 / 0\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError) as error:
        pages.page(lesson)
    assert error.traceback[-1].lineno == 4
