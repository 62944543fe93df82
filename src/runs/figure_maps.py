"""The figure "map": where the sampled thoughts of a few questions lie, around the greedy path."""

from dataclasses import dataclass

import numpy as np

from src.runs.figure_data import groups_of, sampler_labels, sampler_of
from src.runs.figure_style import OUTCOME_COLORS, draw_legend, load_matplotlib
from utils.errors import UserError, warn
from utils.records import latents_path, read_latents

QUESTIONS, TRAJECTORIES = 3, 64  # at most so many questions, and trajectories of each sampler
PROJECTIONS = ("pca", "tsne")
MARKERS = {"dropout": "o", "noise": "^", "svp": "s", "weight_noise": "D", "tokens": "v"}
NUMBERED = 6  # thoughts of the greedy path that carry their number, about
PANEL = 2.35  # inches
PATH_LOOK = {"color": "black", "linewidth": 0.8, "marker": "o", "markersize": 3}
MEAN_LOOK = {"color": "black", "linestyle": "none", "marker": "x", "markersize": 4}


@dataclass
class Cloud:
    """The sampled thoughts of one question by one sampler.

    points (N, T, 2), NaN where a trajectory has fewer thoughts; corrects (N,). In the space of all
    dimensions, as a root mean square over the thoughts that the greedy path has too: drift, the
    distance from the greedy thought to the mean of the samples' thoughts, and spread, the distance
    of a sample's thought from this mean. Both are estimated without bias, squared.
    """

    points: np.ndarray
    corrects: np.ndarray
    drift: float
    spread: float


@dataclass
class QuestionMap:
    """One question: its greedy path (T, 2), and the Cloud of each sampler.

    shares: of the variance, which the two axes show; None where these are no linear projections.
    """

    idx: int
    greedy: np.ndarray
    clouds: list
    shares: list | None


def map_figures(runs, projection):
    """[("map MODEL BENCHMARK", Figure)], where thoughts were saved, those of a greedy run too.

    Of each kind of sampler, the run with the largest coverage is drawn.

    projection: one of PROJECTIONS. Raises UserError where its library is missing.
    """
    saved = [run for run in runs if run.settings.get("save_latents")]
    figures = []
    for same in groups_of(saved, lambda run: run.model_key).values():
        pools, greedy = _best_of_kinds(same), [run for run in same if run.greedy]
        if not pools:
            continue
        if not greedy:
            mend = "also run its command with --do_sample false --save_latents true"
            warn(f"no map of the thoughts of {pools[0].folder}: {mend}")
            continue
        maps = question_maps(pools, greedy[0], projection)
        if maps:
            name = f"map {pools[0].columns['model']} {pools[0].columns['benchmark']}"
            figures.append((name, _figure(pools, maps)))
    if projection != "pca" and not figures:
        warn(f"--projection {projection} has no effect: there is no map of thoughts")
    return figures


def _best_of_kinds(runs):
    """Of the pools of each kind of sampler the one with the largest coverage."""

    def coverage(run):
        return run.metrics["by_n"][str(run.metrics["n_samples"])]["coverage"]["value"]

    sampled = [run for run in runs if run.metrics["n_samples"] > 1]
    kinds = groups_of(sampled, lambda run: run.columns["sampler"])
    return [max(kinds[kind], key=coverage) for kind in sorted(kinds)]


def question_maps(pools, greedy, projection):
    """The QuestionMaps of some pools, [] where thoughts are missing, which gives a warning."""
    maps = []
    for idx in chosen_questions(pools):
        try:
            read = [read_latents(latents_path(run.folder, idx)) for run in (greedy, *pools)]
        except UserError as error:
            warn(f"no map of thoughts: {error}")
            return []
        maps.append(_question_map(idx, *read, projection=projection))
    return maps


def chosen_questions(pools):
    """The first questions with right and wrong answers in all pools, then those in some pools."""

    def mixed(idx):
        return sum(len(set(run.records[idx]["correct"][:TRAJECTORIES])) == 2 for run in pools)

    questions = sorted(pools[0].records, key=lambda idx: (-mixed(idx), idx))
    return [idx for idx in questions if mixed(idx)][:QUESTIONS]


def _question_map(idx, greedy, *sampled, projection):
    """The QuestionMap of the saved tensors of a question (utils.records.read_latents)."""
    path = _thoughts(greedy)[0]  # (T, D)
    path = path[~np.isnan(path[:, 0])]
    pools = [_thoughts(latents) for latents in sampled]  # (N, T, D) each
    vectors = np.concatenate([path, *(x.reshape(-1, path.shape[1]) for x in pools)])
    exists = ~np.isnan(vectors[:, 0])
    points, shares = np.full((len(vectors), 2), np.nan), None
    if projection == "pca":
        points[exists], shares = _principal_components(vectors[exists])
    else:
        points[exists] = _neighbours(vectors[exists])
    ends = np.cumsum([len(path), *(x.shape[0] * x.shape[1] for x in pools)])
    parts = np.split(points, ends[:-1])
    clouds = []
    for part, x, latents in zip(parts[1:], pools, sampled, strict=True):
        corrects = latents["corrects"].numpy()[: len(x)]
        clouds.append(Cloud(part.reshape(*x.shape[:2], 2), corrects, *_drift(x, path)))
    return QuestionMap(idx, parts[0], clouds, shares)


def _thoughts(latents):
    """The thoughts (N, T, D) of at most TRAJECTORIES trajectories, NaN where they have fewer."""
    thoughts = latents["latent_embeds"][:TRAJECTORIES].double().numpy()
    lengths = latents["latent_lengths"][:TRAJECTORIES, None].numpy()
    thoughts[np.arange(thoughts.shape[1]) >= lengths] = np.nan
    return thoughts


def _principal_components(vectors):
    """The first two of vectors (V, D): points (V, 2), and their shares of the variance."""
    centred = vectors - vectors.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # growing
    plane = directions[:, [-1, -2]]
    plane *= np.sign(plane[abs(plane).argmax(axis=0), [0, 1]])  # their signs are arbitrary
    return centred @ plane, [float(v / variances.sum()) for v in variances[[-1, -2]]]


def _neighbours(vectors):
    """t-SNE of vectors (V, D): points (V, 2)."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        mend = "pip install scikit-learn, or use --projection pca"
        fault = f"scikit-learn can't be loaded ({error})"
        raise UserError(f"--projection tsne: {fault}: {mend}") from None
    perplexity = min(30, (len(vectors) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(vectors)


def _drift(thoughts, path):
    """Drift and spread (see Cloud) of thoughts (N, T, D) around a greedy path (T', D)."""
    drifts, spreads = [], []
    for t in range(min(thoughts.shape[1], len(path))):
        samples = thoughts[~np.isnan(thoughts[:, t, 0]), t]  # (n, D)
        if len(samples) > 1:
            spread = samples.var(axis=0, ddof=1).sum()
            drift = ((samples.mean(axis=0) - path[t]) ** 2).sum() - spread / len(samples)
            drifts, spreads = [*drifts, drift], [*spreads, spread]
    return tuple(float(np.sqrt(max(0, np.mean(squares)))) for squares in (drifts, spreads))


def _figure(pools, maps):
    """A column a question, a row a sampler; the panels of a column have the same axes."""
    size = (PANEL * len(maps) + 0.3, PANEL * len(pools) + 0.9)
    figure = load_matplotlib().figure.Figure(figsize=size, layout="constrained")
    columns, labels = pools[0].columns, sampler_labels(pools)
    title = f"{columns['model']}, sampled thoughts of questions of {columns['benchmark']}"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    axes = figure.subplots(len(pools), len(maps), squeeze=False)
    for row, run in enumerate(pools):
        for axis, of_question in zip(axes[row], maps, strict=True):
            _draw(
                axis,
                of_question,
                of_question.clouds[row],
                MARKERS[run.columns["sampler"].split("+")[0]],
            )
            axis.set_title(f"question {of_question.idx}, {labels[sampler_of(run)]}")
    dot = {"linestyle": "none", "marker": "o"}
    entries = {f"sample, {name}": dot | {"color": c} for name, c in OUTCOME_COLORS.items()}
    entries["greedy path"] = PATH_LOOK
    if maps[0].shares:
        entries["mean of samples"] = MEAN_LOOK
    draw_legend(figure, entries)
    return figure


def _draw(axis, of_question, cloud, marker):
    """One panel: a dot for each thought of each sample, the greedy path, drift and spread."""
    from matplotlib.patheffects import withStroke

    for name, color in OUTCOME_COLORS.items():
        points = cloud.points[cloud.corrects == (name == "right")].reshape(-1, 2)
        points = points[~np.isnan(points[:, 0])]
        axis.scatter(*points.T, s=7, color=color, marker=marker, alpha=0.45, linewidths=0)
    count = len(of_question.greedy)
    width = min(PATH_LOOK["linewidth"], 5 / count)  # long paths cross themselves often
    axis.plot(*of_question.greedy.T, **PATH_LOOK | {"linewidth": width})
    if of_question.shares:  # else a mean of points is no projection of the mean
        axis.plot(*_mean_path(cloud), **MEAN_LOOK)
    halo = [withStroke(linewidth=2, foreground="white")]
    for t in range(0, count, max(1, round(count / NUMBERED))):
        look = {"textcoords": "offset points", "fontweight": "bold", "path_effects": halo}
        offset = (-11, -9) if t % 2 else (5, 4)  # neighbours may be close
        axis.annotate(str(t + 1), of_question.greedy[t], offset, **look)
    text = f"drift {cloud.drift:.2g}, spread {cloud.spread:.2g}"
    axis.annotate(text, (0.03, 0.03), xycoords="axes fraction", path_effects=halo)
    _axes(axis, of_question)


def _mean_path(cloud):
    """The mean of the samples' thoughts, (2, T)."""
    return np.ma.masked_invalid(cloud.points).mean(axis=0).filled(np.nan).T


def _axes(axis, of_question):
    """Equal scales on both axes, which hold the points of all samplers."""
    clouds = [cloud.points.reshape(-1, 2) for cloud in of_question.clouds]
    points = np.concatenate([of_question.greedy, *clouds])
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    half = 0.56 * (high - low).max()
    for centre, set_limits in zip((low + high) / 2, (axis.set_xlim, axis.set_ylim), strict=True):
        set_limits(centre - half, centre + half)
    axis.set_aspect("equal")
    axis.grid(False)
    names = ("t-SNE 1", "t-SNE 2")
    if of_question.shares:
        names = [f"PC {k}, {100 * share:.0f} %" for k, share in enumerate(of_question.shares, 1)]
    axis.set_xlabel(names[0])
    axis.set_ylabel(names[1])
