"""The base model: trained once, and again only when something changed that it depends on."""

import sys
from pathlib import Path

import pytest
import torch

from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import small, tasks


def train_a_little(seed, steps):
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(tasks.WORDS)
    model = small.Transformer(tasks.small_config(tokenizer.vocab_size))
    training = small.base_training(model, tokenizer, seed)
    for _ in range(steps):
        next(training)
    return model


def copy_of_the_package(folder, changed=None, change=None):
    """The files behind a base model, one of them changed."""
    for name in small.MADE_BY:
        source = (small.PACKAGE / name).read_text()
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change(source) if name == changed else source)
    return folder


def test_the_base_model_is_trained_once_and_a_damaged_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(small, "STEPS", 2)
    ticks = []
    first, _ = small.base_model(5, tmp_path, lambda: ticks.append(1))
    again, _ = small.base_model(5, tmp_path, lambda: ticks.append(1))
    assert len(ticks) == 2
    path = small.base_path(5, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    anew, _ = small.base_model(5, tmp_path, lambda: ticks.append(1))
    assert len(ticks) == 4
    expected = dict(first.named_parameters())
    for other in again, anew:
        parameters = dict(other.named_parameters())
        torch.testing.assert_close(parameters, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", small.MADE_BY)
def test_code_trains_the_base_model_anew_and_comments_do_not(name, tmp_path):
    def other_words(source):
        _, _, behind = source.partition('"""\n')            # the module's docstring has ended
        return '"""Something else."""\n# A comment.\n' + behind.replace("\n\n\n", "\n\n\n\n")

    same = copy_of_the_package(tmp_path / "same")
    words = copy_of_the_package(tmp_path / "words", name, other_words)
    code = copy_of_the_package(tmp_path / "code", name, lambda source: source + "\nMORE = 1\n")
    assert small.digest(same) == small.digest(words) == small.digest(small.PACKAGE)
    assert small.digest(code) != small.digest(same)


def test_docstrings_and_comments_are_not_code():
    plain = "class A:\n    def f(self):\n        return 'x'\n"
    told = 'class A:\n    """Is A."""\n    def f(self):\n        """Does f."""\n' \
           "        return 'x'      # an x\n"
    assert small.code_alone(plain) == small.code_alone(told)
    assert small.code_alone(plain) != small.code_alone(plain.replace("'x'", "'y'"))


def test_every_file_that_runs_in_base_training_is_known_to_the_cache():
    ran = set()

    def note(frame, event, arg):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(small.PACKAGE):
            ran.add(path.relative_to(small.PACKAGE).as_posix())

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        train_a_little(seed=0, steps=2)
    finally:
        sys.setprofile(before)
    assert "model.py" in ran and ran <= set(small.MADE_BY)
