"""The training loop: one for whatever is trained, with accumulation, clipping, a schedule of the
learning rate, checkpoints and resuming.

Data order, timesteps and noise are functions of (seed, step), so that a run that was killed and
resumes from its last checkpoint ends with the same weights, bit for bit, as one that was not.
Lesson 04 writes the loop out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from .base import Base
from .checkpoints import Checkpoints, refuse_other_run
from .device import autocast
from .errors import StylenbError, replacing
from .limits import Count, Natural, NonNegative, Positive, check_fields

Losses = Callable[[int], dict[str, torch.Tensor]]  # the terms of the loss of batch 0, 1, 2, ...


class TrainingStopped(StylenbError):
    """A training ended early, or could not be saved; what it learned is still in the base."""


class NotFinite(TrainingStopped):
    """A loss or a gradient was NaN or infinite."""


@dataclass(frozen=True)
class LoopSettings:
    """What every run needs to be told, whatever it trains.

    All that decides what a run comes to is in its settings: it can only be resumed with the same.
    """

    steps: Count = 400  # updates of the weights
    batch_size: Count = 8  # pictures in a batch, for the noise L2
    gradient_accumulation_steps: Count = 1  # batches for one update
    learning_rate: Positive = 1e-3
    warmup: Natural = 20  # updates until the full rate, which then falls along a cosine
    max_grad_norm: Positive = 1.0  # a longer gradient is clipped to this length
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # 8 bit: with bitsandbytes
    snr_gamma: Positive | None = None  # min-SNR weighting of the L2, 5 in its paper
    flip: bool = True  # mirror images count as pictures too
    gradient_checkpointing: bool = False  # less memory, about a third more time
    seed: int = 0

    def __post_init__(self):
        check_fields(self)

    @classmethod
    def for_base(cls, base: Base, **changes):
        """What to begin with on this base, and `changes` to it. For the pocket base that is what
        gave good pictures in minutes on two CPU cores; for SD v1.5, what is usual on 16 GB."""
        return cls(**{**cls.defaults_for(base, changes), **changes})

    @staticmethod
    def defaults_for(base: Base, changes: dict) -> dict:
        """Where this base, with these changes, wants another value than the class has."""
        return {}


@dataclass(frozen=True)
class Run:
    """Where a training keeps its work, how long it may take, and what it shows on the way; none of
    that changes what it comes to.

    folder: where checkpoints are kept, the last `keep` of those written at every `checkpoint_every`
        updates, and the result; None keeps none. A run that was cut resumes when it is started
        again with the same folder. minutes: after this time, save and stop.
    validation: photos to redraw at every `validate_every` updates; watch: is called each time with
        all of them so far, update -> pictures, to show them while the training runs.
    """

    folder: str | Path | None = None
    minutes: NonNegative | None = None
    checkpoint_every: Count = 50
    keep: Count = 2
    validation: Sequence = ()
    validate_every: Count = 100
    watch: Callable[[dict[int, list]], object] | None = None
    progress: bool = True

    def __post_init__(self):
        check_fields(self)

    def refuse_other(self, settings: LoopSettings, about: dict) -> None:
        """Raise StylenbError if the folder holds a run with other settings, or of other things."""
        refuse_other_run(self.folder, {**asdict(settings), **about})


@dataclass
class History:
    """What a run did: a row of losses for every update, and validation pictures on the way."""

    rows: list[dict] = field(default_factory=list)
    pictures: dict[int, list] = field(default_factory=dict)
    steps: int = 0  # wanted

    @property
    def finished(self) -> bool:
        return len(self.rows) >= self.steps

    @property
    def seconds(self) -> float:
        """Of training, over all restarts."""
        return sum(row["seconds"] for row in self.rows)

    def values(self, term: str) -> tuple[list[int], list[float]]:
        """The updates at which a term, such as "lpips", was taken, and its values."""
        taken = [(i, row[term]) for i, row in enumerate(self.rows) if term in row]
        return [i for i, _ in taken], [value for _, value in taken]

    def save(self, path: Path) -> None:
        text = json.dumps({"steps": self.steps, "seconds": self.seconds, "rows": self.rows})
        with replacing(path) as temporary:
            temporary.write_text(text + "\n")


# ------------------------------------------------------------------- functions of (seed, step)


def generator_at(seed: int, batch: int) -> torch.Generator:
    """The source of all that is random in one batch; on the CPU, the same on every device."""
    return torch.Generator().manual_seed(seed * 1_000_003 + batch)


def order_at(seed: int, count: int, first: int, length: int) -> torch.Tensor:
    """Which of `count` pictures stand at positions first .. first + length - 1 of the endless
    order in which every epoch shows each picture once: indices (length,)."""
    epochs = range(first // count, (first + length - 1) // count + 1)
    orders = [torch.randperm(count, generator=generator_at(seed, 500_009 + e)) for e in epochs]
    return torch.cat(orders)[first % count :][:length]


def spread_timesteps(count: int, last: int, generator: torch.Generator) -> torch.Tensor:
    """Random timesteps (count,) in 0..last-1, one from each of `count` equal slices of them.

    Over many batches they are uniform; within one they are even, so the loss varies less.
    """
    slices = torch.arange(count) + torch.rand(count, generator=generator)
    return (slices * last / count).long().clamp(max=last - 1)


def rate_at(step: int, settings: LoopSettings) -> float:
    """The learning rate of an update: a linear warm-up, then half a cosine down to zero."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


# ------------------------------------------------------------------------------------ the loop


def updates(
    parameters: list[torch.nn.Parameter],
    losses_of: Losses,
    settings: LoopSettings,
    weights: dict[str, float],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    first: int,
    before: Callable[[dict[str, float]], None],
) -> Iterator[dict[str, float]]:
    """Update the parameters, from step `first` on; after each update, its row: the terms of the
    loss, "loss" (their weighted sum) and "gradient" (the length of it).

    before(row) is called when the gradient is there and the weights have not yet moved.
    """
    batches = settings.gradient_accumulation_steps
    for step in range(first, settings.steps):
        row = {}
        for batch in range(step * batches, (step + 1) * batches):
            with autocast(parameters[0].device):
                terms = losses_of(batch)
                terms["loss"] = sum(weights.get(k, 1.0) * v for k, v in terms.items())
            scaler.scale(terms["loss"] / batches).backward()
            for key, value in terms.items():
                row[key] = row.get(key, 0.0) + value.item() / batches
        scaler.unscale_(optimizer)
        row["gradient"] = clip_grad_norm_(parameters, settings.max_grad_norm).item()
        before(row)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, settings)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        yield row


def fit(
    parameters: dict[str, torch.nn.Parameter],
    losses_of: Losses,
    settings: LoopSettings,
    weights: dict[str, float],
    run: Run | None = None,
    about: dict | None = None,
    draw: Callable[[Sequence], list] | None = None,
    half: bool = False,
) -> History:
    """Minimise the weighted sum of losses over the parameters.

    losses_of(batch): the terms of the loss of batch 0, 1, 2, ... as scalars; all that is random in
        it must be a function of `batch`. weights: of the terms, 1 where none is given.
    run: see Run. about: what else, besides settings, has to be the same for a run to be resumed.
    draw: what redraws the validation photos. half: whether weights that the gradient passes
        through are float16.

    Raises StylenbError for a folder that holds a run with other settings, and NotFinite at the
    first loss or gradient that is not finite, after putting the last good weights back. (With
    float16 it first tries smaller and smaller scales of the loss, as overflow looks the same.)
    """
    run, trained = run or Run(), list(parameters.values())
    optimizer = make_optimizer(trained, settings)
    # Gradients of half-precision weights below 6e-8 would vanish if the loss were not scaled up.
    scaler = torch.amp.GradScaler(trained[0].device.type, enabled=half)
    identity = {**asdict(settings), **(about or {})}
    checkpoints = Checkpoints(run.folder, run.keep, identity, parameters, optimizer, scaler)
    history = History(checkpoints.resume(), steps=settings.steps)
    history.pictures = checkpoints.pictures(len(history.rows))

    def check(finite: bool, what: str) -> None:
        if not finite:
            kept = checkpoints.restore()
            raise NotFinite(
                f"The {what} is not finite at step {len(history.rows)}; the weights of step {kept} "
                f"are kept. Try half the learning rate ({settings.learning_rate / 2:g}), or "
                f"smaller weights of the losses{', in another folder' * bool(run.folder)}."
            )

    def before(row: dict) -> None:
        check(math.isfinite(row["loss"]), "loss")
        # The scaler finds its scale by gradients that overflow, and leaves those updates out.
        overflow = scaler.is_enabled() and scaler.get_scale() > 1
        check(math.isfinite(row["gradient"]) or overflow, "gradient")
        if len(history.rows) % run.checkpoint_every == 0:
            checkpoints.save(history)  # these weights have just given finite figures

    first = len(history.rows)
    loop = updates(trained, losses_of, settings, weights, optimizer, scaler, first, before)
    _run_and_report(loop, history, run, checkpoints, draw)
    check(all(p.isfinite().all() for p in trained), "weight")  # no loss has seen the last update
    checkpoints.save(history)
    if not history.finished:
        print(
            f"Stopped after {run.minutes:g} min at step {len(history.rows)} of {history.steps}"
            f"{'; run it again to resume' * bool(run.folder)}."
        )
    return history


def _run_and_report(loop, history: History, run: Run, checkpoints: Checkpoints, draw) -> None:
    """Run the loop to its end, or until the time is up: a row for each update, a bar, pictures."""
    began = started = time.monotonic()
    smooth: dict[str, float] = {}
    done = len(history.rows)
    with tqdm(total=history.steps, initial=done, disable=not run.progress, desc="training") as bar:
        for step, row in enumerate(loop, done + 1):
            row["seconds"] = time.monotonic() - started
            history.rows.append({key: float(f"{value:.5g}") for key, value in row.items()})
            for key in row.keys() - {"gradient", "seconds", "loss"}:
                smooth[key] = 0.95 * smooth.get(key, row[key]) + 0.05 * row[key]
            bar.set_postfix({key: f"{smooth[key]:.3f}" for key in sorted(smooth)}, refresh=False)
            bar.update()
            if run.validation and step % run.validate_every == 0:
                history.pictures[step] = draw(run.validation)
                checkpoints.save_pictures(step, history.pictures[step])
                if run.watch is not None:
                    run.watch(dict(history.pictures))
            if run.minutes is not None and time.monotonic() - began > 60 * run.minutes:
                break
            started = time.monotonic()


def make_optimizer(parameters: list, settings: LoopSettings) -> torch.optim.Optimizer:
    """AdamW without weight decay, or its 8-bit twin, whose state takes a quarter of the memory."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=0.0)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise StylenbError(
            "optimizer 'adamw8bit' needs bitsandbytes: run `pip install bitsandbytes`, or use "
            "'adamw'."
        ) from error
    return AdamW8bit(parameters, settings.learning_rate, weight_decay=0.0)
