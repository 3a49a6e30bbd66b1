"""A lesson runs as a notebook, wherever the notebook lies (skipped without the extra `lessons`)."""

import os

import pytest

from lessons.check import HERE


def test_a_lesson_runs_as_a_notebook_in_another_folder(tmp_path, monkeypatch):
    jupytext = pytest.importorskip("jupytext")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    source = (HERE / "03_push.py").read_text(encoding="utf-8")
    assert "check.options()" in source
    source = source.replace("check.options()", "check.options(fast=True, solution=True)")

    # Without an installed minialign the kernel finds the repository by its path.
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    notebook = jupytext.reads(source, fmt="py:percent")
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3",
                                     resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("RIGHT: ") == 2
    assert any("image/png" in output.get("data", {}) for output in outputs)
