"""What a run prints."""

_INTERVAL = ("value", "low", "high")


def _cell(measure):
    return f"{measure['value']:5.1f} [{measure['low']:.1f}, {measure['high']:.1f}]"


def _print_distance(metrics):
    """A line on how far apart the trajectories of the whole pool are; none for a greedy run."""
    if "thought_distance" in metrics:
        value, low, high = (f"{metrics['thought_distance'][k]:.4g}" for k in _INTERVAL)
        print(f"Distance of two trajectories' thoughts, mean: {value} [{low}, {high}]")


def _print_choices(n, summary):
    """Every accuracy for one N, with its gains over the vote and greedy where they are measured."""
    print(f"N = {n}")
    for name, measure in summary.items():
        if name.startswith("pass@") or name.endswith(("_gain", "_gain_over_greedy")):
            continue
        key = "majority" if name == "voting_accuracy" else name
        gains = [(summary.get(f"{key}_gain"), "gain")]
        gains += [(summary.get(f"{key}_gain_over_greedy"), "over greedy")]
        told = [f"   {title} {_cell(gain)}" for gain, title in gains if gain]
        print(f"{name:>22}{_cell(measure):>22}" + "".join(told))


def _print_adaptive(metrics):
    """What stopping at a common error rate would have saved; nothing for small pools."""
    adaptive, n = metrics.get("adaptive", {}).get("0.05"), metrics["n_samples"]
    if adaptive and adaptive["samples"]["value"] < n:
        samples = f"{adaptive['samples']['value']:.1f} of {n} trajectories"
        print(f"With --stop_error 0.05: {samples}, vote {_cell(adaptive['accuracy'])}")


def print_stopped_report(metrics, folder):
    """The measures of a run that stopped each question when its vote was decided."""
    (summary,) = metrics["by_n"].values()
    print(f"{metrics['questions']} questions, percent [95 % interval]; files in {folder}")
    print(f"Unparsable: {_cell(summary['unparsable'])}")
    print(f"Samples a question, mean: {summary['samples']['value']:.2f}")
    print(f"Voting Accuracy: {summary['voting_accuracy']['value']:.2f}")


def print_report(metrics, folder):
    """The measures for every N, then the lines that close stdout, for the largest N.

    Those are in the words of the release (``Pass@4: 51.25``), a line a number, for a grep.
    """
    names = ("coverage", "voting_accuracy", "mean_accuracy", "unparsable")
    print(f"{metrics['questions']} questions, percent [95 % interval]; files in {folder}")
    print("".join(f"{name:>22}" for name in ("N", *names)))
    for n, summary in metrics["by_n"].items():
        print(f"{n:>22}" + "".join(f"{_cell(summary[name]):>22}" for name in names))
    largest = metrics["by_n"][max(metrics["by_n"], key=int)]
    if any(name.endswith("_gain") for name in largest):
        _print_choices(max(metrics["by_n"], key=int), largest)
    _print_adaptive(metrics)
    _print_distance(metrics)
    for name, measure in largest.items():
        if name.startswith("pass@"):
            print(f"P{name[1:]}: {measure['value']:.2f}")
    print(f"Coverage: {largest['coverage']['value']:.2f}")
    print(f"Voting Accuracy: {largest['voting_accuracy']['value']:.2f}")


def print_reward_report(metrics, folder):
    """Every accuracy for every N, with its gain over the majority vote where it is measured."""
    print(f"{metrics['questions']} questions, percent [95 % interval]; files in {folder}")
    for n, summary in metrics["by_n"].items():
        _print_choices(n, summary)
    _print_adaptive(metrics)
    _print_distance(metrics)
