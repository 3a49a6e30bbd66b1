"""What the comparison says, as text and as numbers for a file. Every interval is 95 %, over seeds."""

import math

from torch import Tensor

from minialign.stats import mean_interval, table
from toy import lake as lakes_
from toy.compare import METRICS, Result, Setting

COLUMNS = """\
MSE           mean squared difference of action probabilities to the optimal policy, a network trained on the optimal actions
MSE nearest   the same to the nearest optimal policy, where several actions are equally good
MSE param.    mean squared difference of the parameters to those of that network
success       exact chance to reach the goal from the start; "from beside": from a random neighbour of the path;
              "10 % noise": with every tenth action, on average, replaced by a random one
right beside  share of the path's neighbours where the likeliest action is optimal
cells seen    expected number of different cells in one walk"""


def interval(x: Tensor) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval; seeds without a value (nan: a path without neighbours) do not count."""
    x = x[~x.isnan()]
    return mean_interval(x.tolist()) if len(x) else (math.nan, math.nan)


def spelled(gain: Tensor) -> str:
    """ "+0.123 ± 0.045" """
    mean, half = interval(gain)
    return f"{mean:+.3f} ± {half:.3f}"


def shown(x: Tensor, reference: Tensor | None = None, good: int = 0) -> str:
    """ "0.812±.004", and ▲ or ▼ if the paired 95 % interval says better or worse than SFT on the same seeds."""
    mean, half = interval(x)
    text = f"{mean:.3f}" + ("" if math.isnan(half) else f"±{half:.3f}".replace("±0.", "±."))
    gain, about = interval(x - reference) if reference is not None else (0.0, 0.0)
    sign = " " if math.isnan(about) or abs(gain) <= about else "▲" if good * gain > 0 else "▼" if good * gain < 0 else "≠"
    return text + sign


def tables(results: dict[str, Result], args) -> str:
    """The results as text: the fixed learning rate, then each row's own."""
    sft = results.get("sft")
    better = {name: 0 if name == "states_visited" else -1 if name.startswith("mse") else 1 for name in METRICS}

    def line(result, measured, reference, metrics):
        return [shown(measured[m], None if result is sft or not reference else reference[m], better[m]) for m in metrics]

    fixed = [[r.row.words, *line(r, r.measured, sft and sft.measured, METRICS)] for r in results.values()]
    few = ("mse", "mse_nearest", "success_noise_0.1", "neighbour_accuracy")
    tuned = [[r.row.words, f"{r.tuned_lr:g}", *line(r, r.tuned, sft and sft.tuned, few)] for r in results.values() if r.tuned]
    return "\n".join([
        f"lr {args.lr:g} for all, {args.steps} {args.optimizer} steps, {args.seeds} seeds from {args.first_seed}",
        "mean ± 95 % interval; ▲ ▼ better or worse than SFT, paired by seed (≠ different)",
        table(["", *(f"{head} " for head in METRICS.values())], fixed), "",
        "each row at its own learning rate: the best success at 10 % noise on 20 other seeds",
        table(["", "lr", *(f"{METRICS[m]} " for m in few)], tuned), "", COLUMNS])


def verdict(results: dict[str, Result]) -> str:
    """The paper's ordering, as measured: one sentence with its intervals."""
    if not {"sft", "dpo", "ift_eq21"} <= results.keys():
        return "the paper's ordering (DPO and IFT closer to the optimal policy than SFT) needs the methods sft, dpo and ift_eq21"
    mse = {name: results[name].measured["mse"] for name in ("sft", "dpo", "ift_eq21")}
    ift, dpo = mse["ift_eq21"] - mse["sft"], mse["dpo"] - mse["sft"]
    comes_out = all(sum(interval(gain)) < 0 for gain in (ift, dpo))
    return ("The paper reports DPO and IFT much closer to the optimal policy than SFT. Here MSE(IFT, formula) − MSE(SFT) = "
            f"{spelled(ift)} and MSE(DPO) − MSE(SFT) = {spelled(dpo)}: it {'comes out' if comes_out else 'does not come out'}.")


def played(setting: Setting, results: dict[str, Result], episodes: int) -> str:
    """The exact success at 10 % noise of the first seed's policies against episodes in gymnasium's environment."""
    lake, worst = setting.singles[0], 0.0
    for i, result in enumerate(results.values()):
        exact = result.measured["success_noise_0.1"][0].item()
        policy = lakes_.with_noise(result.policy.probabilities()[0], 0.1)
        share = lakes_.play(lake, policy, episodes, seed=i) / episodes
        error = max(exact * (1 - exact) / episodes, 1 / episodes**2) ** 0.5     # at least one episode of doubt
        worst = max(worst, abs(share - exact) / error)
    return (f"checked: {episodes} episodes per row at 10 % noise, seed {setting.seeds[0]}, in gymnasium's FrozenLake-v1; the "
            f"largest of {len(results)} deviations from the exact success is {worst:.1f} standard errors")


def as_json(results: dict[str, Result]) -> dict:
    """One value per seed in every list."""
    return {name: r.measured | {f"tuned_{metric}": x for metric, x in r.tuned.items()} for name, r in results.items()}


def plain(x):
    """Nested results as JSON can hold them: tensors as lists, null for nan."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, Tensor):
        return plain(x.tolist())
    return None if isinstance(x, float) and not math.isfinite(x) else x
