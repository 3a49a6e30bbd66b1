"""The settings at which studies compare methods: how they are chosen, and which are chosen."""

import ast

from pretend import Pretend, function

from minialign.lab.arena import Run
from minialign.lab.studies import rivals, tuned
from minialign.methods import build_method


def test_settings_are_chosen_by_right_answers_on_seeds_of_their_own(tmp_path, monkeypatch):
    """First the rate, then the hyper-parameters, and the best of two seeds wins at last."""
    monkeypatch.setattr(tuned, "FIELDS", {"noisy": ("sft", "simpo", "sft → dpo")})
    first = {5e-5: 0.1, 1e-4: 0.5, 2e-4: 0.6, 5e-4: 0.3}
    second = {1e-4: 0.9, 2e-4: 0.3}
    asked = []

    class Noted(Pretend):
        def run(self, runs, seeds=None):
            asked.append((seeds, len(runs)))
            rates = first if seeds == tuned.SEEDS[:1] else second
            data = {}
            for label, run in runs.items():
                right = rates.get(run.recipe.lr, 0.1)
                if run.hyper.get("beta") in (8.0, 0.01):
                    right += 0.05
                data[label] = {"right": [right]}
            return data

    best = tuned.choose(Noted(tmp_path, {}))["noisy"]
    assert best == {"sft": ({}, 1e-4), "simpo": ({"beta": 8.0, "gamma": 4.0}, 2e-4),
                    "sft → dpo": ({"beta": 0.01}, 2e-4)}
    one, other = tuned.SEEDS[:1], tuned.SEEDS[1:]
    assert asked == [(one, 3 * len(tuned.RATES)), (one, 3 + 2), (other, 3 * 2)]
    assert not set(tuned.SEEDS) & set(range(600))


def test_every_setting_of_a_grid_can_be_built_and_every_rival_has_a_grid():
    for name, grid in tuned.GRIDS.items():
        for hyper in grid:
            run = tuned.setting("clean", name, hyper, 1e-4)
            assert vars(build_method(run.method, run.hyper, 4)).items() >= hyper.items()
    for data, names in tuned.FIELDS.items():
        assert data in tuned.DATA and set(names) <= set(tuned.GRIDS)
    assert {"sft", "dft", "dft2", *rivals.RIVALS} <= set(tuned.FIELDS["noisy"])


def test_tune_prints_what_can_stand_in_the_file(tmp_path, monkeypatch):
    best = {"noisy": {"sft": ({}, 1e-05), "simpo": ({"beta": 8.0, "gamma": 4.0}, 0.0002)}}
    monkeypatch.setattr(tuned, "choose", lambda lab: best)
    lab_ = Pretend(tmp_path, {})
    lab_.tune = True
    sentence = function("methods")(lab_).sentence
    assert ast.literal_eval(sentence.partition("CHOSEN = ")[2]) == best
    assert lab_.seeds == list(tuned.SEEDS)


def test_what_is_chosen_comes_from_the_grids_and_what_has_no_grid_runs_at_its_defaults():
    for data, settings in tuned.CHOSEN.items():
        assert tuple(settings) == tuned.FIELDS[data]
        for name, (hyper, rate) in settings.items():
            assert hyper in tuned.GRIDS[name] and rate in tuned.RATES, (data, name)
    run = tuned.at_best("noisy", "sft → dpo")
    assert (run.method, run.init, run.noise, run.persona) == ("dpo", "sft", 0.3, "troll")
    assert tuned.at_best("pairs", "dpo").persona is None
    assert tuned.at_best("clean", "slic") == Run("slic")
    told = tuned.in_words("simpo", tuned.setting("clean", "simpo", {"beta": 10.0}, 2e-4))
    assert told == "simpo (beta 10, lr 0.0002)"
