"""The base model: trained once, and again only when something changed that it depends on."""

import random
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
    monkeypatch.setattr(small, "COURSES", (2,))
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


@pytest.mark.parametrize("fitnesses, updates", [([0.99], 2), ([0.9, 0.99], 5), ([0.9, 0.9], 5)])
def test_a_base_model_is_trained_until_it_is_fit(fitnesses, updates, tmp_path, monkeypatch):
    monkeypatch.setattr(small, "COURSES", (2, 3))
    monkeypatch.setattr(small, "fitness", lambda *_: fitnesses.pop(0))
    ticks = []
    small.base_model(0, tmp_path, lambda: ticks.append(1))
    assert len(ticks) == updates and not fitnesses


def test_fitness_is_the_lesser_of_copying_and_reversing(monkeypatch):
    """Against a model that is asked nothing: log-probs are given by hand."""
    model, tokenizer = train_a_little(0, 1), byte_tokenizer(tasks.WORDS)

    def given(p_known, p_reversed):
        def logps(_, batch):
            p = p_reversed
            if len(batch.mask) == 2:
                p = p_known / 2             # half of it on the right answer, half on the wrong
            n = batch.mask.sum(-1, keepdim=True)
            return p.log() * batch.mask / n
        return logps

    for known, backwards in ((0.9, 0.5), (0.3, 1.0)):
        p = torch.tensor(known), torch.tensor(backwards)
        monkeypatch.setattr(small, "batch_logps", given(*p))
        assert small.fitness(model, tokenizer, 0) == pytest.approx(min(known, backwards))


def test_a_model_is_looked_at_with_questions_that_no_exam_asks(monkeypatch):
    model, tokenizer = train_a_little(0, 1), byte_tokenizer(tasks.WORDS)
    asked = []

    def noted(tokenizer, index, prompt, answers):
        asked.append(prompt)
        return original(tokenizer, index, prompt, answers)

    original = tasks.as_example
    monkeypatch.setattr(tasks, "as_example", noted)
    small.fitness(model, tokenizer, 0)
    _, test = tasks.all_questions(random.Random(0))
    assert len(asked) == 2 * small.N_LOOK and not set(asked) & {q.prompt() for q in test}


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
