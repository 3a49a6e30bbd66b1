"""The race: who takes part, what is printed and written, and the pictures."""

import json
import multiprocessing
from dataclasses import fields, replace

import pytest
import torch
from newcomer import Newcomer
from PIL import Image
from pretend import FEW, run_here

from minialign.__main__ import main
from minialign.lab import arena, plot, race
from minialign.lab.arena import Run
from minialign.lab.studies import tuned
from minialign.lab.workers import run_all
from minialign.methods import METHODS, build_method
from minialign.stats import show
from minialign.train import Recipe

SHORT = Recipe(epochs=1, batch=16, micro_batch=16, lr=1e-3, negatives=2)
OF_SFT = {race.CONTROL, race.BY_SUM, race.FILTER, race.THEN_DPO}     # the controls of SFT


@pytest.fixture
def out(cache, tmp_path, monkeypatch):
    """A results folder in which the base models are trained already, for a race in this process.

    It is short and has few questions. What races do in several processes is asked in test_arena.py.
    """
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "cache").symlink_to(cache)
    for name, n in FEW.items():
        monkeypatch.setattr(arena, name, n)
    monkeypatch.setattr(race, "RECIPE", SHORT)
    monkeypatch.setattr(race, "run_all", run_here)
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


def results(gain, seeds=3, filtered=0.6):
    """Marks of three methods; `dft` answers so much more right than `sft`.

    filtered   how much SFT on the filtered data answers right, where labels are wrong
    """
    def marks(right):
        spread = [0.01 * s for s in range(seeds)]
        values = {"right": right, "wrong": 0.2, "garbage": 0.3, "greedy": 0.5, "agree": 0.9,
                  "skill": 0.8}
        columns = {mark: [x + ds for ds in spread] for mark, x in values.items()}
        points = [[0, -1.0, -1.0, -1.0, -1.0], [4, -0.5, -2.0, -0.5, -2.0]]
        return columns | {"curve": [points] * seeds}

    by_method = {"base": marks(0.3), "sft": marks(0.5), "dft": marks(0.5 + gain)}
    del by_method["base"]["curve"]
    by_method["dft"]["right"] = [x + 0.001 * s for s, x in enumerate(by_method["dft"]["right"])]
    noisy = dict(by_method)
    for name in race.CONTROL, race.BY_SUM, race.THEN_DPO, race.PLAIN:
        noisy[name] = marks(0.55)
    noisy[race.FILTER] = marks(filtered)
    half = {name: by_method[name] for name in ("base", "sft", "dft")}
    return {"clean": by_method, "noisy": noisy, "half": half}


def test_compare_prints_a_table_writes_its_numbers_and_draws_its_pictures(
    out, monkeypatch, capsys
):
    # One control is enough here; what the others are is asked below.
    def one_control(name, run):
        return {race.CONTROL: race.tripled(run)} if name == "sft" else {}

    monkeypatch.setattr(race, "controls", one_control)
    written = ["--out", str(out), "--json", str(out / "n.json")]
    assert main(["compare", "--seeds", "2", "--methods", "sft,dft2", *written]) == 0
    printed = capsys.readouterr().out
    numbers = json.loads((out / "n.json").read_text())
    assert set(numbers) == {"clean", "noisy"}
    assert set(numbers["clean"]) == {"base", "sft", "dft2"}
    assert set(numbers["noisy"]) == {"base", "sft", "dft2", race.CONTROL}
    for condition in numbers.values():
        assert set(condition["dft2"]) == set(race.MARKS)
        assert all(len(values) == 2 for values in condition["dft2"].values())
    assert show(numbers["noisy"]["dft2"]["right"]) in printed
    assert "dft2 against sft" in printed
    for picture in "outcomes", "curves":
        assert (out / f"{picture}.png").stat().st_size > 10_000


def test_controls_race_with_the_method_they_belong_to_and_with_wrong_labels():
    def rows(*methods):
        return set(race.racing(list(methods)))

    assert rows("ift") == {("clean", "ift"), ("noisy", "ift")}
    assert rows("sft") == {("clean", "sft"), ("noisy", "sft"), *(("noisy", c) for c in OF_SFT)}
    dft = {("clean", "dft"), ("noisy", "dft"), ("half", "dft"), ("noisy", race.PLAIN)}
    assert rows("dft") == dft
    assert rows("sft", "dft") == dft | rows("sft") | {("half", "sft")}


def test_a_control_differs_from_its_method_in_one_thing():
    runs = race.racing(["sft", "dft"])
    changes = {race.CONTROL: {"recipe"}, race.BY_SUM: {"hyper"}, race.FILTER: {"filtered"},
               race.THEN_DPO: {"method", "init", "recipe"}}
    for (condition, name), run in runs.items():
        assert isinstance(build_method(run.method, run.hyper, 4), run.method)
        assert run.noise == {"clean": 0, "noisy": 0.3, "half": 0.5}[condition]
        parent = runs[condition, "dft" if name.startswith("dft") else "sft"]
        changed = {f.name for f in fields(Run) if getattr(run, f.name) != getattr(parent, f.name)}
        if name == race.PLAIN:
            assert changed == {"persona"} and run.persona == "plain"
        elif name in OF_SFT:
            assert changed == changes[name]
    tripled = runs["noisy", race.CONTROL].recipe.updates(512)
    assert tripled == 3 * race.RECIPE.updates(512)
    then_dpo, chosen = runs["noisy", race.THEN_DPO], tuned.at_best("noisy", "sft → dpo")
    assert (then_dpo.recipe, then_dpo.persona) == (chosen.recipe, chosen.persona)


def test_a_new_method_in_METHODS_races_and_is_drawn(out, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "newcomer", Newcomer)
    # The class is handed over, not its name: a worker process has its own METHODS.
    assert race.racing(["newcomer"])["noisy", "newcomer"].method is Newcomer
    written = ["--out", str(out), "--json", str(out / "n.json")]
    assert main(["compare", "--seeds", "1", "--methods", "newcomer", *written]) == 0
    numbers = json.loads((out / "n.json").read_text())
    assert set(numbers["noisy"]["newcomer"]) == set(race.MARKS)
    assert numbers["clean"]["newcomer"]["right"] > numbers["clean"]["base"]["right"]
    assert "newcomer" in capsys.readouterr().out
    for picture in "outcomes", "curves":
        drawn = Image.open(out / f"{picture}.png").convert("RGB")
        colors = {color for _, color in drawn.getcolors(drawn.width * drawn.height)}
        assert tuple(bytes.fromhex(plot.color_of("newcomer")[1:])) in colors


def test_numbers_are_written_before_anything_is_drawn(tmp_path, monkeypatch):
    def crash(*args, **how):
        raise RuntimeError("no colour")

    monkeypatch.setattr(race, "race", lambda seeds, methods, cache: results(0.1))
    monkeypatch.setattr(plot, "answer_bars", crash)
    path = tmp_path / "n.json"
    with pytest.raises(RuntimeError, match="no colour"):
        race.run([0, 1, 2], ["sft", "dft"], str(path), str(tmp_path))
    assert len(json.loads(path.read_text())["noisy"]["dft"]["right"]) == 3


def test_the_sentence_follows_the_numbers():
    assert "(better)" in race.sentence(results(0.2)) and "+0.2" in race.sentence(results(0.2))
    assert "(worse)" in race.sentence(results(-0.2))
    assert "(no clear difference)" in race.sentence(results(-0.001))
    assert "(no clear difference)" in race.sentence(results(0.2, seeds=1))


@pytest.mark.parametrize("filtered, conclusion", [
    (0.5, "so DFT takes more from them than that"), (0.9, "so DFT takes less from them than that"),
    (0.701, "so whether DFT takes more from them is open")])
def test_what_is_said_of_the_filter_follows_the_numbers(filtered, conclusion):
    assert conclusion in race.sentence(results(0.2, filtered=filtered))


def test_the_sentence_needs_only_those_who_raced():
    found = results(0.2)
    without = {"clean": {name: found["clean"][name] for name in ("base", "sft")}}
    without["noisy"] = without["clean"]
    assert race.sentence(without) == ""
    for condition in without.values():
        condition["ift"] = found["clean"]["dft"]
    assert "ift against sft" in race.sentence(without) and "filter" not in race.sentence(without)


def test_a_colour_belongs_to_a_name():
    assert plot.color_of("dft") == plot.COLOR["dft"]
    assert plot.color_of("dft", {"dft": "#123456"}) == "#123456"
    assert plot.color_of("newcomer") == plot.color_of("newcomer") in plot.OTHERS
    assert not set(plot.OTHERS) & set(plot.COLOR.values())


def test_a_run_that_fails_stops_the_others(cache):
    long = Run("sft", recipe=replace(SHORT, epochs=1000), persona=None)
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="choose base"):
        run_all({"long": long, "bad": Run("sft", persona=None, init="else")}, [0], cache)
    assert set(multiprocessing.active_children()) <= before
