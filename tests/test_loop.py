"""stylenb.loop and stylenb.checkpoints on a toy: what an update is, and that nothing is lost."""

import contextlib
import json
import random
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stylenb import StylenbError, device, loop
from stylenb.loop import LoopSettings, NotFinite, Run, fit, generator_at

SETTINGS = LoopSettings(steps=6, learning_rate=0.01, warmup=2, gradient_accumulation_steps=2)


class Toy:
    """A layer that learns to give its input back: numbers of a function of the batch."""

    def __init__(self, settings=SETTINGS, calls=()):
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 8)
        self.settings, self.calls = settings, calls  # calls(batch, terms) may change the terms

    def losses_of(self, batch: int) -> dict[str, torch.Tensor]:
        x = torch.randn(4, 8, generator=generator_at(self.settings.seed, batch))
        terms = {"noise": (self.layer(x).float() - x).square().mean()}
        for call in self.calls:
            terms = call(batch, terms) or terms
        return terms

    def fit(self, weights=None, about=None, draw=None, half=False, **run):
        """Its history."""
        run, parameters = Run(**{"progress": False, **run}), dict(self.layer.named_parameters())
        return fit(
            *(parameters, self.losses_of, self.settings, weights or {}),
            *(run, about, draw, half),
        )

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.layer.parameters()])


def times(factor, at: int):
    """A call that multiplies the noise term of one batch."""
    return lambda batch, terms: {"noise": terms["noise"] * (factor if batch == at else 1)}


def of_gradient(factor, seen=None):
    """A call that multiplies the gradient which comes to a batch's loss by factor(batch)."""

    def call(batch, terms):
        def hook(gradient):
            if seen is not None:
                seen.append(gradient.item())
            return gradient * factor(batch)

        terms["noise"].register_hook(hook)

    return call


def without_seconds(history) -> list[dict]:
    return [{**row, "seconds": 0} for row in history.rows]


def checkpoints(folder: Path) -> list[int]:
    """The steps of those in the folder; raises where one is damaged."""
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    return [int(path.stem.split("-")[1]) for path in found if load_file(path)]


@contextlib.contextmanager
def full_disk(size: int = 500):
    """Inside, no file grows above `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    monkeypatch.setattr(loop, "autocast", lambda device: contextlib.nullcontext())


@pytest.fixture
def whole():
    """A toy after a run that nothing cut, and its history."""
    toy = Toy()
    return toy, toy.fit()


# --- the functions of (seed, step) ---


def test_every_epoch_shows_each_picture_once_in_an_order_of_its_own():
    order = loop.order_at(7, 10, 0, 30).tolist()
    epochs = [order[0:10], order[10:20], order[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for size in (3, 25):  # wherever a batch begins, and however many epochs it holds
        pieces = [loop.order_at(7, 10, first, size).tolist() for first in range(0, 30, size)]
        assert sum(pieces, [])[:30] == order
    assert loop.order_at(8, 10, 0, 30).tolist() != order


def test_timesteps_are_spread_over_the_schedule():
    t = loop.spread_timesteps(8, 1000, torch.Generator().manual_seed(0))
    assert [int(x) // 125 for x in t] == list(range(8))


def test_the_rate_warms_up_and_falls():
    settings = LoopSettings(steps=100, warmup=10, learning_rate=1.0)
    rates = [loop.rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(0.98, abs=0.01)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5, abs=0.1) and 0 < rates[-1] < 0.001


# --- an update ---


def test_training_lowers_the_loss():
    history = Toy(replace(SETTINGS, steps=25, learning_rate=0.05)).fit()
    at, values = history.values("noise")
    assert at == list(range(25)) and np.mean(values[-5:]) < 0.8 * np.mean(values[:5])
    assert history.finished and history.seconds > 0 and history.values("style") == ([], [])


def test_an_update_is_adamws_on_the_clipped_gradient_of_the_weighted_sum():
    """Two updates, computed once more by hand."""
    settings = replace(SETTINGS, steps=2, max_grad_norm=0.1)

    def more(batch, terms):
        return {**terms, "prior": terms["noise"].sqrt()}

    toy, mine = Toy(settings, [more]), Toy(settings, [more])
    history = toy.fit({"prior": 3.0})
    optimizer = torch.optim.AdamW(mine.layer.parameters(), weight_decay=0.0)
    for step, row in enumerate(history.rows):
        batches = [mine.losses_of(batch) for batch in (2 * step, 2 * step + 1)]
        noise, prior = (sum(terms[key] for terms in batches) / 2 for key in ("noise", "prior"))
        (noise + 3 * prior).backward()
        norm = torch.nn.utils.clip_grad_norm_(mine.layer.parameters(), 0.1)
        expected = {"noise": noise, "prior": prior, "loss": noise + 3 * prior, "gradient": norm}
        assert {key: row[key] for key in expected} == pytest.approx(
            {key: value.item() for key, value in expected.items()}, rel=1e-4
        )
        assert norm > 0.1
        optimizer.param_groups[0]["lr"] = loop.rate_at(step, settings)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(toy.weights, mine.weights, atol=1e-6)


def test_batches_are_computed_in_the_precision_of_the_hardware(monkeypatch):
    monkeypatch.undo()  # with autocast
    monkeypatch.setattr(device, "autocast_dtype", lambda device: torch.bfloat16)
    seen = []

    def look(batch, terms):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))

    toy = Toy(replace(SETTINGS, steps=1), [look])
    assert toy.fit().finished and seen == [torch.bfloat16] * 2
    assert toy.weights.dtype == torch.float32


def test_the_progress_bar_shows_smoothed_losses(capsys):
    def ten_then_nothing(batch, terms):
        return {"noise": 0 * terms["noise"] + (10 if batch == 0 else 0)}

    settings = replace(SETTINGS, steps=3, gradient_accumulation_steps=1)
    Toy(settings, [ten_then_nothing]).fit(progress=True)
    bar = capsys.readouterr().err
    assert "3/3" in bar and "noise=9.025" in bar  # 10 * 0.95 ** 2


# --- half precision: the loss is scaled up, the gradient down ---


def test_the_loss_is_scaled_up_and_the_gradient_down():
    rows = []
    for half in (True, False):
        seen = []
        toy = Toy(replace(SETTINGS, steps=1), [of_gradient(lambda batch: 1, seen)])
        rows += toy.fit(half=half).rows
        assert seen[0] > 1000 if half else seen[0] == 0.5
    assert rows[0] == pytest.approx({**rows[1], "seconds": rows[0]["seconds"]}, rel=1e-3)


def test_an_update_that_overflows_is_left_out():
    seen, before = [], Toy().weights
    settings = replace(SETTINGS, steps=3, gradient_accumulation_steps=1)
    infinite = of_gradient(lambda batch: float("inf") if batch == 0 else 1, seen)
    alone = Toy(replace(settings, steps=1), [infinite])
    assert alone.fit(half=True).finished and torch.equal(alone.weights, before)
    seen.clear()
    toy = Toy(settings, [infinite])
    history = toy.fit(half=True)
    assert history.finished and seen[1] == seen[0] / 2  # the scale is halved
    assert [np.isfinite(row["gradient"]) for row in history.rows] == [False, True, True]
    assert toy.weights.isfinite().all() and not torch.equal(toy.weights, before)


def test_it_stops_when_no_scale_helps():
    seen = []
    toy = Toy(replace(SETTINGS, steps=40), [of_gradient(lambda batch: float("nan"), seen)])
    with pytest.raises(NotFinite, match="gradient is not finite"):
        toy.fit(half=True)
    assert 2 < len(seen) < 60 and seen[-1] == 0.5 and toy.weights.isfinite().all()


# --- validation pictures ---


def test_validation_pictures_are_drawn_shown_and_kept(tmp_path):
    photos, seen = list(range(11)), []

    def draw(photos):
        colour = int(seen == []) * 50
        return [Image.new("RGB", (4, 4), (colour, photo, 0)) for photo in photos]

    how = dict(draw=draw, validation=photos, validate_every=2, folder=tmp_path)
    history = Toy().fit(watch=seen.append, **how)
    assert list(history.pictures) == [2, 4, 6]
    assert [list(pictures) for pictures in seen] == [[2], [2, 4], [2, 4, 6]]
    assert seen[-1] == history.pictures
    assert history.pictures[2][0].tobytes() != history.pictures[4][0].tobytes()
    files = sorted(p.name for p in (tmp_path / "validation").iterdir())
    assert files[:2] == ["000002-0.png", "000002-1.png"] and len(files) == 33
    (tmp_path / "validation" / "000002-1 (copy).png").write_bytes(b"not of the run")
    again = Toy().fit(**how)  # they are there again after a restart, and in their order
    assert list(again.pictures) == [2, 4, 6]
    for step, pictures in history.pictures.items():
        assert [p.tobytes() for p in pictures] == [p.tobytes() for p in again.pictures[step]]


# --- what is written, and what a full disk costs ---


def test_the_folder_holds_the_history_and_the_last_checkpoints(tmp_path):
    folder = tmp_path / "run"
    history = Toy().fit(folder=folder, checkpoint_every=1, keep=2)
    names = [f"checkpoint-00000{step}.safetensors" for step in (5, 6)]
    assert sorted(p.name for p in folder.iterdir()) == [*names, "history.json"]
    assert json.loads((folder / "history.json").read_text()) == {
        **{"steps": 6, "rows": history.rows, "seconds": history.seconds}
    }


def test_a_full_disk_loses_nothing(whole, tmp_path):
    """The checkpoint of step 4 does not fit: the run ends, and what was saved before is whole."""
    folder, disk = tmp_path / "run", contextlib.ExitStack()

    def fill(batch, terms):  # from the last batch of update 4 on, before its checkpoint
        if batch == 9:
            disk.enter_context(full_disk())
        elif batch == 10:
            disk.close()

    with disk, pytest.warns(UserWarning, match="Step 4 was not saved .*Free some disk space"):
        history = Toy(calls=[fill]).fit(folder=folder, checkpoint_every=2, keep=9)
    assert checkpoints(folder) == [0, 2, 6] and not list(folder.glob(".*"))
    for step in (2, 6):  # with each of them alone the run resumes to the same end
        alone = tmp_path / str(step)
        alone.mkdir()
        name = f"checkpoint-00000{step}.safetensors"
        (alone / name).write_bytes((folder / name).read_bytes())
        toy = Toy()
        again = toy.fit(folder=alone)
        assert again.rows[:step] == history.rows[:step]  # with their seconds: not run again
        assert without_seconds(again) == without_seconds(whole[1])
        assert torch.equal(toy.weights, whole[0].weights)


def test_the_history_file_may_fail_alone(tmp_path, recwarn):
    (tmp_path / "history.json").mkdir()  # so that it cannot be written
    assert Toy().fit(folder=tmp_path).finished
    assert checkpoints(tmp_path) == [0, 6] and not recwarn


# --- cut and resumed ---

SCRIPT = """
import os, signal, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads({threads})
from test_loop import *
from stylenb import checkpoints as module

loop.autocast = lambda device: contextlib.nullcontext()
folder, write = Path({folder!r}), module.save_file

def run(what, number):
    left = [number]
    def passed():  # by the moment at which the process is to be killed
        left[0] -= 1
        return left[0] == 0
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)
    def batch(*_):
        if what == "batch" and passed():
            kill()
    def save(tensors, path, *more):
        write(tensors, path, *more)
        if what == "save" and passed():
            os.truncate(path, path.stat().st_size // 2)
            kill()
    module.save_file = save
    Toy(calls=[batch]).fit(folder=folder, checkpoint_every=2)

for moment in {moments!r}:
    process = os.fork()  # importing once, and nothing has been computed yet
    if process == 0:
        try:
            run(*moment)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    print(checkpoints(folder)[-1])
"""


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(whole, tmp_path):
    """Between two batches, then with a checkpoint half written, then between two batches again.
    Checkpoints are two updates apart, so finished ones are redone."""
    seed = random.SystemRandom().randrange(10**6)
    print("random seed", seed)  # seen where this fails
    chance = random.Random(seed)
    moments = [
        ("batch", chance.randint(3, 8)),  # in the second, third or fourth update
        ("save", chance.randint(1, 2)),
        ("batch", chance.randint(3, 8)),
    ]
    print(moments)
    script = SCRIPT.format(
        path=[str(Path(__file__).parent), str(Path(__file__).parent.parent)],
        threads=torch.get_num_threads(),
        folder=str(tmp_path),
        moments=moments,
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = 0
    for (what, number), newest in zip(moments, map(int, done.stdout.split()), strict=True):
        lost = kept + (number - 1) // 2 - newest if what == "batch" else kept - newest
        assert newest >= kept and lost <= 2  # updates, and nothing that was there before
        kept = newest
    toy = Toy()
    history = toy.fit(folder=tmp_path, checkpoint_every=2)
    assert torch.equal(toy.weights, whole[0].weights) and not list(tmp_path.glob(".*"))
    assert without_seconds(history) == without_seconds(whole[1])


def test_a_run_that_was_stopped_by_its_time_resumes(whole, tmp_path, capsys):
    history = Toy().fit(folder=tmp_path, minutes=0)
    assert len(history.rows) == 1 and not history.finished
    assert "at step 1 of 6; run it again to resume" in capsys.readouterr().out
    toy = Toy()
    assert toy.fit(folder=tmp_path).finished and torch.equal(toy.weights, whole[0].weights)


def test_the_time_is_in_minutes(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(batch, terms):  # 50 seconds for every update
        now[0] += 25

    history = Toy(calls=[wait]).fit(minutes=2)
    assert len(history.rows) == 3 and history.seconds == 150


def test_a_finished_run_is_not_run_again(whole, tmp_path):
    first = Toy().fit(folder=tmp_path)
    toy = Toy(calls=[None])  # no batch can be computed
    assert toy.fit(folder=tmp_path).rows == first.rows
    assert torch.equal(toy.weights, whole[0].weights)


def test_a_damaged_last_checkpoint_costs_only_itself(whole, tmp_path):
    Toy().fit(folder=tmp_path, checkpoint_every=1, keep=3)
    last = sorted(tmp_path.glob("checkpoint*"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    (tmp_path / ".~checkpoint-000009.safetensors").write_bytes(b"half written")
    (tmp_path / ".~lock.notes.odt#").write_bytes(b"of something else")
    toy = Toy()
    assert toy.fit(folder=tmp_path, checkpoint_every=1, keep=3).finished
    assert torch.equal(toy.weights, whole[0].weights)
    assert [p.name for p in tmp_path.glob(".*")] == [".~lock.notes.odt#"]


def test_damaged_checkpoints_do_not_push_out_good_ones(tmp_path):
    how = dict(folder=tmp_path, checkpoint_every=1, keep=1)
    Toy().fit(**how)
    (last,) = tmp_path.glob("checkpoint*")
    last.write_bytes(last.read_bytes()[:1000])
    for _ in range(2):  # it has to start afresh, and then resumes from what it saved
        Toy().fit(**how, minutes=0)
    assert checkpoints(tmp_path) == [2]


@pytest.mark.parametrize(
    "changes, about, message",
    [
        ({"learning_rate": 0.02}, {"what": 1}, r"\(learning_rate was 0.01 and is 0.02\)"),
        ({"steps": 9, "seed": 1}, {"what": 1}, "steps was 6 and is 9; seed was 0 and is 1"),
        ({}, {"what": 2}, r"\(what was 1 and is 2\): give those again to resume it, or another"),
    ],
)
def test_other_settings_are_refused_and_named(changes, about, message, tmp_path):
    Toy().fit(about={"what": 1}, folder=tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(StylenbError, match=message):
        Toy(replace(SETTINGS, **changes)).fit(about=about, folder=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == files


# --- not a number ---


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_loss_that_is_not_finite_stops_it(value, whole, tmp_path):
    toy, how = Toy(calls=[times(value, at=9)]), dict(folder=tmp_path, checkpoint_every=3)
    with pytest.raises(NotFinite, match="loss is not finite at step 4; the weights of step 3 are "):
        toy.fit(**how)
    assert checkpoints(tmp_path)[-1] == 3
    kept = load_file(tmp_path / "checkpoint-000003.safetensors")
    assert torch.equal(toy.layer.bias, kept["weights/bias"])
    again = Toy()
    assert again.fit(**how).finished  # it can resume from there
    assert torch.equal(again.weights, whole[0].weights)


def test_a_gradient_that_is_not_finite_stops_it():
    toy, before = Toy(calls=[of_gradient(lambda batch: float("nan"))]), Toy().weights
    with pytest.raises(NotFinite, match=r"gradient is not finite at step 0; .* half .* \(0.005\)"):
        toy.fit()
    assert torch.equal(toy.weights, before)


def test_after_a_restart_the_last_checkpoint_is_the_good_one(tmp_path):
    for _ in range(2):
        good = Toy()
        good.fit(folder=tmp_path, minutes=0)  # one step
    toy = Toy(calls=[times(float("nan"), at=8)])
    with pytest.raises(NotFinite, match="at step 4; the weights of step 2 are kept.*other folder"):
        toy.fit(folder=tmp_path)
    assert torch.equal(toy.weights, good.weights)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """A weight that no loss looks at: figures are good, and the weights are not."""

    def spoil(batch, terms):
        if batch == 4:
            with torch.no_grad():
                toy.layer.bias[0] = float("nan")
        return {"noise": toy.layer.weight.square().mean()}

    toy = Toy(calls=[spoil])
    with pytest.raises(NotFinite, match="weight is not finite at step 6; the weights of step 1"):
        toy.fit(folder=tmp_path, checkpoint_every=1, keep=9)
    assert checkpoints(tmp_path) == [0, 1] and toy.weights.isfinite().all()


def test_the_last_update_is_looked_at_too(tmp_path, monkeypatch):
    class Overflowing(torch.optim.AdamW):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(float("inf"))

    monkeypatch.setattr(loop, "make_optimizer", lambda ps, _: Overflowing(ps))
    toy, before = Toy(replace(SETTINGS, steps=1)), Toy().weights
    with pytest.raises(NotFinite, match="weight is not finite at step 1; the weights of step 0"):
        toy.fit(folder=tmp_path)
    assert torch.equal(toy.weights, before) and checkpoints(tmp_path) == [0]


@pytest.mark.parametrize("what", ["checkpoint_every", "keep", "validate_every"])
def test_what_never_comes_is_refused(what):
    with pytest.raises(StylenbError, match=f"{what} is a whole number from 1 up, not 0"):
        Run(**{what: 0})
