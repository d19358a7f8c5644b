"""The figures of the FedProx paper, on few rounds and on made-up curves."""

import csv
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from fedlightning import Batching, ConfigurationError, FederatedTrainer, ModelCheckpoint
from fedlightning.analysis import Dissimilarity
from fedlightning.cli.recipe import call_program
from fedlightning.contrib.fedprox_program import RoundSeeded
from fedlightning.datasets import Synthetic
from fedlightning.participation.samplers import SizeWeighted
from fedlightning.participation.stragglers import Stragglers
from recipes.reproductions.fedprox import __main__ as paper
from recipes.reproductions.fedprox import settings
from recipes.reproductions.fedprox.figures import draw

pytest.importorskip("matplotlib", reason="drawing needs the extra `figures`")

LOGGED = ("train_all/loss", "test/accuracy", "dissimilarity/variance")
COLOURS = {"FedAvg": "#ff7f0e", "FedProx (μ=0)": "#e377c2", "FedProx (μ>0)": "#17becf"}
STYLES = {"FedAvg": ":", "FedProx (μ=0)": "--", "FedProx (μ>0)": "-"}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs lie in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of the synthetic sets is one local step of each client."""

    def short(*arguments: Any, batching: Batching, **options: Any) -> Synthetic:
        return Synthetic(*arguments, batching=Batching(batching.size, steps=1), **options)

    monkeypatch.setattr(settings, "Synthetic", short)


def columns(figure: int, **options: Any) -> list[Any]:
    return [paper.Column(dataset, paper.Options(**options)) for dataset in paper.FIGURES[figure].columns]


def curves(figure: int, column: Any) -> Iterable[tuple[float, Any, Any]]:
    plan = paper.FIGURES[figure]
    return [(drop, look, curve) for drop in plan.drops for look, curve in plan.lines(column.dataset, drop)]


def made_up(folder: Path, rounds: int, values: Callable[[int], tuple[float, float, float]], every: int = 1) -> None:
    """A run's metrics.csv, whose dissimilarity is in rows of their own and not in every round."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *LOGGED])
        for t in range(rounds + 1):
            loss, accuracy, variance = values(t)
            writer.writerow([t, loss, accuracy, ""])
            if t % every == 0:
                writer.writerow([t, "", "", variance])


def fill(figure: int, **options: Any) -> dict[Path, float]:
    """All curves of a figure, each at a level of its own, by folder."""
    levels: dict[Path, float] = {}
    for column in columns(figure, **options):
        for _, _, curve in curves(figure, column):
            folder = column.folder(curve)
            level = levels.setdefault(folder, 1 + len(levels) / 100)
            made_up(folder, column.rounds, lambda t, level=level: (level + 1 / (t + 1), level - 1, 10 * level))
    return levels


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished curve was run again")

    monkeypatch.setattr(FederatedTrainer, "fit", fail)


# -- what is run --------------------------------------------------------------------------------------------------------
@pytest.mark.quick
def test_the_settings_are_the_paper_s() -> None:
    shown = {name: (s.lr, s.mu, s.rounds, s.stride) for name, s in paper.SETTINGS.items()}
    assert {shown.pop(name) for name in paper.SYNTHETIC} == {(0.01, 1, 200, 1)}
    assert shown == {
        "mnist": (0.03, 1, 100, 1),
        "femnist": (0.003, 1, 200, 2),
        "shakespeare": (0.8, 0.001, 40, 1),
        "sent140": (0.3, 0.01, 800, 10),
    }


def test_curves_that_are_equal_are_run_once() -> None:
    """Without stragglers FedAvg is FedProx with μ = 0; figures 1, 7 and 8 show the same runs, and so do 2, 3, 5, 11, 12."""

    def runs(*figures: int) -> set[Any]:
        return {curve for f in figures for column in columns(f) for _, _, curve in curves(f, column)}

    assert len(runs(1)) == 5 * (2 + 3 + 3)
    assert runs(1) == runs(7) == runs(8)
    assert len(runs(2)) == 8
    assert runs(2) == runs(5) < runs(11)
    assert len(runs(3, 11)) == 12
    assert len(runs(12)) == 16
    assert len(runs(9)) == 5 * (1 + 2 + 2)
    assert {curve.epochs for curve in runs(9, 10)} == {1}
    every = runs(*paper.FIGURES)
    assert len({(curve.dataset, curve.name(0)) for curve in every}) == len(every)


def test_adaptive_mu_starts_at_its_worst() -> None:
    starts = {c.dataset: curve.mu for c in columns(11) for _, _, curve in curves(11, c) if curve.method == "adaptivefedprox"}  # fmt: skip
    assert starts == {"synthetic_iid": 1, "synthetic_0_0": 0, "synthetic_0.5_0.5": 0, "synthetic_1_1": 0}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("fields", "stragglers", "sampler", "weighting"),
    [
        ({"mu": 1.0}, None, RoundSeeded(), "examples"),
        ({"mu": 1.0, "drop": 0.5}, Stragglers(0.5), RoundSeeded(), "examples"),
        ({"method": "fedavg", "drop": 0.9}, Stragglers(0.9, partial=False), RoundSeeded(), "examples"),
        ({"mu": 1.0, "sampling": "sized"}, None, SizeWeighted(), "uniform"),
        ({"method": "adaptivefedprox", "mu": 1.0}, None, RoundSeeded(), "examples"),
    ],
)
def test_how_a_curve_is_run(fields: Any, stragglers: Stragglers | None, sampler: Any, weighting: str) -> None:
    column, curve = paper.Column("sent140", paper.Options(seed=3)), paper.Curve("sent140", **fields)
    trainer, method = column.trainer(column.folder(curve), curve), curve.configured()
    assert (trainer.max_rounds, trainer.wished_clients, trainer.seed) == (800, 10, 3)
    assert (trainer.stragglers, trainer.sampler) == (stragglers, sampler)
    assert trainer.evaluate_on == ("test", "train")
    assert (method.lr, method.weighting) == (0.3, weighting)
    assert getattr(method, "mu", 0) == fields.get("mu", 0)
    assert type(method).__name__.lower() == curve.method
    (measure,) = (callback for callback in trainer.callbacks if isinstance(callback, Dissimilarity))
    assert (measure.every, measure.num_clients) == (10, None)


def test_the_synthetic_data() -> None:
    for labels in ("argmax", "sample"):
        options = paper.Options(seed=2, labels=labels)
        loaded = {name: paper.SETTINGS[name].load(options, Batching(10, epochs=20))[0] for name in paper.SYNTHETIC}
        for name, data in loaded.items():
            sampled = labels == "sample" and name in ("synthetic_0.5_0.5", "synthetic_1_1")
            assert data.name == name + "_sample" * sampled
            assert (data.seed, data.batching) == (2, Batching(10, epochs=20))
            folder = paper.Column(name, options).folder(paper.Curve(name))
            assert folder == Path("logs", "fedprox_paper", data.name, "fedprox_mu0_drop0_seed2")


@pytest.mark.skipif(
    "FEDLIGHTNING_DATA" not in os.environ, reason="set FEDLIGHTNING_DATA to the folder of the data sets"
)
def test_mnist_is_found() -> None:
    data, task = paper.SETTINGS["mnist"].load(
        paper.Options(data_dir=os.environ["FEDLIGHTNING_DATA"]), Batching(10, epochs=20)
    )
    data.setup()
    assert (data.clients.num_clients, data.batching) == (1000, Batching(10, epochs=20))
    assert task(data.preprocess(data.train.inputs[:3])).shape == (3, 10)


# -- running, and running again -----------------------------------------------------------------------------------------
def test_figure_2_from_nothing(one_step: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:  # fmt: skip
    argv = ["--figure", "2", "--rounds", "1", "--quick", "--slots", "1", "--seed", "1", "--out", "drawn"]
    files = call_program(paper.main, argv)
    assert files == [Path("drawn", f"fedprox_figure2.{kind}") for kind in ("pdf", "png")]
    assert [path.read_bytes()[:4] for path in files] == [b"%PDF", b"\x89PNG"]
    first = capsys.readouterr().out.splitlines()
    assert len(first) == 8 + 2
    for line in first[:8]:
        name = line.split(":")[0]
        folder = tmp_path / "logs" / "fedprox_paper" / name
        assert ": to round 1 in " in line
        assert "training loss" in line
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert list(folder.glob("events.out.tfevents.*"))
        assert set(paper.read(folder, "dissimilarity/variance")) == set(paper.read(folder, "train_all/loss")) == {0, 1}
    drawn = files[0].read_bytes()
    request.getfixturevalue("no_training")
    assert call_program(paper.main, argv) == files
    again = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in again[:8]] == [line.split(":")[0] for line in first[:8]]
    assert all("finished before" in line for line in again[:8])
    assert files[0].read_bytes() == drawn
    with pytest.raises(AssertionError, match="was run again"):
        call_program(paper.main, [*argv, "--rounds", "2"])


def synthetic_column(rounds: int) -> tuple[Any, Any]:
    return paper.Column("synthetic_1_1", paper.Options(seed=1, slots="1", rounds=rounds)), paper.Curve("synthetic_1_1")


def losses(folder: Path) -> list[tuple[int, float]]:
    """Of every row, so that a round that was logged twice shows."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            (int(row["step"]), float(row["train_all/loss"])) for row in csv.DictReader(file) if row["train_all/loss"]
        ]


@pytest.mark.parametrize(("stop", "killed", "left"), [(3, False, 3), (11, True, 10)])
def test_a_curve_that_was_stopped_goes_on(
    stop: int, killed: bool, left: int, one_step: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Stopped by Ctrl-C, or killed: then the last checkpoint is older than the last row."""
    column, curve = synthetic_column(12)
    column.complete([curve])
    whole = losses(column.folder(curve))
    assert [t for t, _ in whole] == list(range(13))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def interrupt(callback: Any, trainer: FederatedTrainer, round: Any) -> None:
        if trainer.round == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Dissimilarity, "on_round_start", interrupt)
        if killed:
            context.setattr(ModelCheckpoint, "on_exception", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            column.complete([curve])
    assert losses(column.folder(curve)) == whole[: stop + 1]
    capsys.readouterr()
    synthetic_column(12)[0].complete([curve])
    assert f": on from round {left} to round 12 in " in capsys.readouterr().out
    assert losses(column.folder(curve)) == whole


def test_a_curve_that_was_killed_before_its_first_checkpoint_begins_anew(one_step: None) -> None:
    column, curve = synthetic_column(2)
    made_up(column.folder(curve), 1, lambda t: (9.0, 9.0, 9.0))
    column.complete([curve])
    found = losses(column.folder(curve))
    assert [t for t, _ in found] == [0, 1, 2]
    assert 9.0 not in {value for _, value in found}


def test_more_rounds_go_on_and_fewer_are_there(one_step: None, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    for rounds, how in ((2, ": to round 2 in "), (3, ": on from round 2 to round 3 in "), (1, ": finished before")):
        column, curve = synthetic_column(rounds)
        column.complete([curve])
        assert how in capsys.readouterr().out


def test_a_curve_that_diverges_is_kept_as_it_is(
    one_step: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:  # fmt: skip
    setting = dataclasses.replace(paper.SETTINGS["synthetic_1_1"], lr=1e37)
    monkeypatch.setitem(paper.SETTINGS, "synthetic_1_1", setting)
    column, curve = synthetic_column(30)
    column.complete([curve])
    assert "must be finite" in (line := capsys.readouterr().out)
    assert ": ended after round " in line
    assert 0 < len(losses(column.folder(curve))) < 30
    request.getfixturevalue("no_training")
    column.complete([curve])
    assert "finished before" in capsys.readouterr().out


def test_a_folder_of_another_run_is_refused(one_step: None) -> None:
    column, curve = synthetic_column(1)
    column.complete([curve])
    path = column.folder(curve) / "curve.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lr": 0.5}))
    with pytest.raises(ConfigurationError, match=r"fedprox_mu0_drop0_seed1 .* has lr 0.5 instead of 0.01; move"):
        column.complete([curve])


# -- what is not there --------------------------------------------------------------------------------------------------
def test_data_that_are_not_there_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"Figure 6 .* none is left of mnist, femnist, .* `--data-dir`"):
        call_program(paper.main, ["--figure", "6", "--data-dir", "nowhere"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["mnist", "femnist", "shakespeare", "sent140"]
    assert all("left out" in line and str(tmp_path / "nowhere") in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_columns_that_are_left_out_leave_the_others(no_training: None) -> None:
    fill(1)
    for run in Path("logs", "fedprox_paper", "femnist").iterdir():
        (run / "metrics.csv").unlink()
    kept = paper.completed(paper.FIGURES[1], paper.FIGURES[1].columns, paper.Options(data_dir="nowhere"))
    assert [column.dataset for column in kept] == ["synthetic_1_1", "mnist", "shakespeare", "sent140"]
    figure = draw(paper.arranged(paper.FIGURES[1], kept))
    assert [axes.get_title() for axes in figure.axes[:4]] == ["Synthetic", "MNIST", "Shakespeare", "Sent140"]


def test_quick_has_no_real_data(no_training: None) -> None:
    fill(1)
    assert [path.name for path in call_program(paper.main, ["--figure", "1", "--quick"])] == ["fedprox_figure1_quick.pdf", "fedprox_figure1_quick.png"]  # fmt: skip
    with pytest.raises(ConfigurationError, match="leave `--quick` out"):
        call_program(paper.main, ["--figure", "6", "--quick"])


def test_without_matplotlib_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = r'^fedprox draws with matplotlib, .* run `pip install -e "\.\[figures\]"`\.$'
    with pytest.raises(ConfigurationError, match=message):
        call_program(paper.main, ["--figure", "2", "--rounds", "1"])
    assert list(tmp_path.iterdir()) == []


# -- the drawings -------------------------------------------------------------------------------------------------------
def test_figure_1_looks_like_the_paper_s() -> None:
    from matplotlib.colors import to_hex

    levels = fill(1)
    found = columns(1)
    figure = draw(paper.arranged(paper.FIGURES[1], found))
    assert tuple(figure.get_size_inches()) == pytest.approx((23, 10))
    assert len(figure.axes) == 15
    titles = ["Synthetic", "MNIST", "FEMNIST", "Shakespeare", "Sent140"]
    assert [axes.get_title() for axes in figure.axes] == titles + [""] * 10
    assert figure.axes[0].title.get_fontweight() == "bold"
    assert [axes.get_xlabel() for axes in figure.axes] == [""] * 10 + ["# Rounds"] * 5
    names = [axes.get_ylabel() for axes in figure.axes]
    assert names[::5] == [f"{percent}% stragglers\nTraining Loss" for percent in (0, 50, 90)]
    assert set(names[1:5] + names[6:10] + names[11:]) == {""}
    for place, axes in enumerate(figure.axes):
        column, drop = found[place % 5], paper.DROPS[place // 5]
        assert axes.get_xlim() == (0, column.rounds)
        assert [line.get_label() for line in axes.lines] == list(COLOURS)
        for line, (_, curve) in zip(axes.lines, paper.with_stragglers(column.dataset, drop), strict=True):
            label = line.get_label()
            assert (to_hex(line.get_color()), line.get_linestyle()) == (COLOURS[label], STYLES[label])
            assert line.get_linewidth() == 3
            assert list(line.get_xdata()) == list(range(0, column.rounds + 1, column.setting.stride))
            level = levels[column.folder(curve)]
            assert list(line.get_ydata()) == pytest.approx([level + 1 / (t + 1) for t in line.get_xdata()])
    limits = [axes.get_ylim() for axes in figure.axes]
    assert limits[1::5] == [(0.2, 1.5)] * 3
    assert limits[4::5] == [(0.3, 1.8), (0.2, 1.8), (0.2, 4.0)]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == list(COLOURS)
    assert (legend.texts[0].get_fontsize(), legend.texts[0].get_fontweight()) == (26, "bold")
    assert not legend.get_frame_on()
    assert legend._ncols == 3
    figure.draw_without_rendering()
    assert legend.texts[0].get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)


@pytest.mark.parametrize(("figure", "place", "label"), [(7, 1, "Testing Accuracy"), (8, 2, "Variance of Local Grad.")])
def test_figures_7_and_8_show_the_same_runs(figure: int, place: int, label: str) -> None:
    levels = fill(figure)
    found = columns(figure)
    drawn = draw(paper.arranged(paper.FIGURES[figure], found))
    assert drawn.axes[0].get_ylabel().endswith(label)
    level = levels[found[1].folder(paper.Curve("mnist", "fedavg", drop=0.9))]
    assert set(drawn.axes[11].lines[0].get_ydata()) == {(level - 1, 10 * level)[place - 1]}
    assert drawn.axes[1].get_ylim() != (0.2, 1.5)


@pytest.mark.parametrize(
    ("figure", "rows"),
    [
        (2, ["Training Loss", "Variance of Local Grad."]),
        (5, ["Training Loss", "Testing Accuracy", "Variance of Local Grad."]),
    ],
)
def test_figures_2_and_5_look_like_the_paper_s(figure: int, rows: list[str]) -> None:
    from matplotlib.colors import to_hex

    fill(figure)
    drawn = draw(paper.arranged(paper.FIGURES[figure], columns(figure)))
    assert tuple(drawn.get_size_inches()) == (20, 4 * len(rows))
    titles = ["Synthetic-IID", "Synthetic (0,0)", "Synthetic (0.5,0.5)", "Synthetic (1,1)"]
    assert [axes.get_title() for axes in drawn.axes] == titles + [""] * (4 * len(rows) - 4)
    assert {axes.title.get_fontsize() for axes in drawn.axes} == {22}
    assert [axes.get_ylabel() for axes in drawn.axes] == [name for row in rows for name in (row, "", "", "")]
    assert [axes.get_legend() is not None for axes in drawn.axes[:5]] == [False, False, False, True, False]
    for axes in drawn.axes:
        looks = [(line.get_label(), line.get_linestyle(), to_hex(line.get_color())) for line in axes.lines]
        assert looks == [("mu=0, E=20", "--", "#17becf"), ("mu=1, E=20", "-", "#e377c2")]
        assert {to_hex(spine.get_edgecolor()) for spine in axes.spines.values()} == {"#dddddd"}
        assert {label.get_fontsize() for label in axes.get_xticklabels()} == {17}
    assert not drawn.legends


@pytest.mark.parametrize(("figure", "panels", "lines"), [(3, 2, 3), (6, 12, 2), (9, 15, 2), (10, 15, 2), (11, 4, 3), (12, 12, 4)])  # fmt: skip
def test_the_other_figures(figure: int, panels: int, lines: int) -> None:
    fill(figure)
    drawn = draw(paper.arranged(paper.FIGURES[figure], columns(figure)))
    assert [len(axes.lines) for axes in drawn.axes] == [lines] * panels
    assert all(len(line.get_xdata()) > 1 for axes in drawn.axes for line in axes.lines)
    assert len({(line.get_linestyle(), line.get_color()) for line in drawn.axes[0].lines}) == lines
    legends = [*drawn.legends, *filter(None, (axes.get_legend() for axes in drawn.axes))]
    assert [len(legend.texts) for legend in legends] == [lines]
    drawn.draw_without_rendering()
    box = legends[0].get_window_extent()
    assert drawn.bbox.x0 <= box.x0 < box.x1 <= drawn.bbox.x1


def test_rounds_that_were_asked_for_are_drawn(no_training: None) -> None:
    fill(1)
    drawn = draw(paper.arranged(paper.FIGURES[1], columns(1, rounds=20)))
    assert {axes.get_xlim() for axes in drawn.axes} == {(0, 20)}
    assert {max(line.get_xdata()) for axes in drawn.axes for line in axes.lines} == {20}


# -- the gain -------------------------------------------------------------------------------------------------------------
def values(numbers: Iterable[float]) -> dict[int, float]:
    return dict(enumerate(numbers))


def test_a_curve_is_read_where_it_has_converged() -> None:
    loss = values([2.0, 1.0, 0.99985, 0.99978, 0.9, 0.9])  # it changes by 1.5 · 10⁻⁴, then by 0.7 · 10⁻⁴
    found = paper.reading(loss, values([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), 5)
    assert (found.round, found.why, found.accuracy) == (3, "converged", 0.4)


def test_a_curve_is_read_where_it_begins_to_diverge() -> None:
    """More than 1 above what it was ten rounds ago; one round earlier it was exactly 1, and a jump from t − 9 is none."""
    loss = values([1.0 + 0.01 * t for t in range(10)] + [2.0, 2.02, 3.0, 3.1])
    found = paper.reading(loss, values(t / 100 for t in range(14)), 13)
    assert (found.round, found.why, found.accuracy) == (11, "diverged", 0.11)
    jump = values([1.0 + 0.01 * t for t in range(9)] + [5.0])
    assert paper.reading(jump, values([0.5] * 10), 9).why == "exhausted"


def test_a_curve_is_read_at_the_end_otherwise() -> None:
    loss, accuracy = values([3.0, 2.0, 1.0, 0.5, 0.5]), values([0.1, 0.2, 0.3, 0.4, 0.5])
    assert paper.reading(loss, accuracy, 3) == paper.reading(dict(list(loss.items())[:4]), accuracy, 10)
    found = paper.reading(loss, accuracy, 3)
    assert (found.round, found.why, found.accuracy) == (3, "exhausted", 0.4)
    assert paper.reading(loss, accuracy, 10).why == "converged"


def test_a_loss_that_is_not_a_number_is_passed_over() -> None:
    loss = values([1.0, math.nan, 3.0, math.inf])
    assert paper.reading(loss, values([0.1, 0.2, 0.3, 0.4]), 3).round == 3


def test_the_gain_is_printed(no_training: None, capsys: pytest.CaptureFixture[str]) -> None:
    """FedAvg has converged in round 30, where it has 0.5; FedProx goes on to its last round and 0.7, on MNIST to 0.8."""
    for column in columns(1):
        for drop, look, curve in curves(1, column):
            end = 0.8 if column.dataset == "mnist" else 0.7
            if (drop, look.label) == (0.9, "FedAvg"):
                made_up(column.folder(curve), column.rounds, lambda t: (100 - min(t, 29), 0.5 if t == 30 else 0.1, 1.0))
            else:
                made_up(column.folder(curve), column.rounds, lambda t, end=end, T=column.rounds: (1000 - t, end * (t == T), 1.0))  # fmt: skip
    call_program(paper.main, ["--figure", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("absolute improvement")]
    head = "absolute improvement in test accuracy at 90 % stragglers: "
    assert lines[0] == f"{head}Synthetic (1,1) +20.0 points (FedProx (μ>0) 0.7000, exhausted in round 200; FedAvg 0.5000, converged in round 30)"  # fmt: skip
    assert [line.removeprefix(head).split(" (")[0] for line in lines[1:5]] == [f"{name} points" for name in ("MNIST +30.0", "FEMNIST +20.0", "Shakespeare +20.0", "Sent140 +20.0")]  # fmt: skip
    assert lines[5:] == [f"{head}average +22.0 points"]
