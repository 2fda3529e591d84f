"""The training loop: epochs of Adam, each judged on images that are held out from training."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.lone_threads import WORKERS, lone_threads
from qexport.progress import Progress
from qexport.system.launch import ALONE, Launch
from qexport.training.images import Batch, Images, pieces
from qexport.training.judge import Judge
from qexport.training.losses import loss
from qexport.training.processes import from_first, mean
from qexport.training.recipe import Recipe
from qexport.training.record import INTERRUPTED, EpochRecord, Judged, TrainingRecord
from qexport.training.state import Store, TrainingState, require_fitting
from qexport.training.student import Student

BETAS = (0.9, 0.99)
"""Of Adam: few steps, so that the second moment has to forget sooner than by default."""
MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE, BEST = "average/", "best/"


@dataclass(frozen=True)
class Trained:
    """What became of a candidate.

    Attributes:
        candidate: the best of all epochs, or what came in where none was better.
        record: how it went.
    """

    candidate: Candidate
    record: TrainingRecord


def train(
    candidate: Candidate,
    images: Images,
    judge: Judge,
    recipe: Recipe,
    store: Store | None,
    progress: Progress,
    launch: Launch = ALONE,
) -> Trained:
    """Train; the same images, recipe and device give the same result, whether it went on from a state or not.

    An interrupt (Ctrl-C) ends it with the best of the epochs that were whole. Processes that train together begin, and
    learn, the same, up to how floats are summed what one process learns from all their images; the first one judges.

    Args:
        images: to train on, none of them held out; of several processes each has as many in a step.
        judge: judges every epoch, by images that are not trained on; its `labelled` is the loss that `recipe.labels` is
            the share of.
        store: keeps the state after each epoch, and has that of an earlier run to go on from.
        launch: the processes, within `joined`.

    Raises:
        InputError: batches do not fit the program, or labels are wanted and there are none.
        OtherProcessError: another process has ended.
    """
    course = _Course(candidate, images, judge, recipe, launch)
    known = store.load() if store else None
    if known is not None:
        course.restore(known)
    on_cpu = course.student.device == "cpu"
    repeatable: AbstractContextManager[object] = nullcontext()
    if not on_cpu:
        repeatable = torch.backends.cudnn.flags(benchmark=False, deterministic=True)
    stopped = ""
    try:
        with lone_threads(WORKERS if on_cpu else 1) as pool, repeatable:
            course.begin(pool)
            while not (stopped := course.ended):
                course.epoch(pool, progress)
                if store and not course.diverged:
                    store.save(course.state())
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    return course.result(stopped)


class _Course:
    """A training between its first step and its last."""

    def __init__(self, candidate: Candidate, images: Images, judge: Judge, recipe: Recipe, launch: Launch) -> None:
        if recipe.labels and judge.labelled is None:
            raise InputError("there is no loss for labels here", "train without labels")
        self.images, self.judge, self.recipe, self.launch = images, judge, recipe, launch
        self.student = Student(candidate, recipe)
        self.learned = self.student.parameters
        self.optimiser = torch.optim.Adam(
            [{"params": list(each.values()), "lr": 0.0} for each in self.student.groups.values()], betas=BETAS
        )
        self.average = {name: each.detach().clone() for name, each in self.learned.items()}
        self.best: dict[str, Tensor] = {}
        self.epochs: tuple[EpochRecord, ...] = ()
        self.step, self.diverged = 0, ""
        self.start: Judged | None = None

    @property
    def best_epoch(self) -> EpochRecord | None:
        """The epoch of the least cost, the earliest of several; None where none is better than the start."""
        better = [each for each in self.epochs if self.start and each.judged.cost < self.start.cost]
        return min(better, key=lambda each: each.judged.cost, default=None)

    @property
    def ended(self) -> str:
        """Why there is no further epoch, "" where there is one."""
        if self.diverged:
            return self.diverged
        if len(self.epochs) >= self.recipe.epochs:
            return "all epochs"
        best = self.best_epoch.number if self.best_epoch else 0
        late = 0 < self.recipe.patience <= len(self.epochs) - best
        return f"no better for {self.recipe.patience} epochs" if late else ""

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Judge what came in, unless an earlier run has."""
        if self.start is None:
            self.start = self._judged(self.student.candidate, pool)

    def epoch(self, pool: ThreadPoolExecutor, progress: Progress) -> None:
        """Train an epoch and judge it; one whose loss was no number does not count."""
        number, started, losses = len(self.epochs) + 1, time.perf_counter(), []
        with progress.step(f"Training, epoch {number} of {self.recipe.epochs}", len(self.images) + 1) as advance:
            for batch in self.images.epoch(number):
                losses.append(self._learn(batch, pool))
                advance()
            judged = self._judged(self._averaged(), pool)
            numbers = torch.stack(losses).isfinite().tolist()
            if not (all(numbers) and math.isfinite(judged.cost)):
                self.diverged = _diverged(number, numbers)
                return
            done = EpochRecord(
                number=number,
                loss=float(torch.stack(losses).mean()),
                distance=judged.distance,
                labelled=judged.labelled,
                rates=self._rates(self.step - 1),
                seconds=round(time.perf_counter() - started, 2),
            )
            self.epochs = (*self.epochs, done)
            advance(self._told(done))
        if self.best_epoch is done:
            self.best = {name: each.cpu().clone() for name, each in self.average.items()}

    def _told(self, last: EpochRecord) -> str:
        """An epoch's figures beside those before training, and how long all others are going to take."""
        left = sum(each.seconds for each in self.epochs) / last.number * (self.recipe.epochs - last.number)
        assert self.start
        told = f"loss {last.loss:.3f}, distance {self.start.distance:.3f} → {last.distance:.3f}"
        if last.labelled is not None:
            told += f", by labels {self.start.labelled:.3f} → {last.labelled:.3f}"
        return f"{told}, {_words(left)} left"

    def _learn(self, batch: Batch, pool: ThreadPoolExecutor) -> Tensor:
        """Go a step, and return the batch's loss."""
        learned, count = list(self.learned.values()), len(batch.pixels)
        parts = list(pieces(batch, self._piece(count)))
        found = list(pool.map(self._slopes, parts))
        shares = [len(each.pixels) / count for each in parts]
        summed = (_weighted(each, shares) for each in zip(*((lost, *slopes) for lost, slopes in found), strict=True))
        lost, *slopes = mean(self.launch, list(summed))
        for parameter, slope in zip(learned, slopes, strict=True):
            parameter.grad = slope
        self._adjust()
        self.optimiser.step()
        self.student.learner.bound()
        self.step += 1
        kept = min(self.recipe.averaging, self.step / (self.step + 9))  # the first steps are far from all others
        for name, average in self.average.items():
            average.lerp_(self.learned[name].detach(), 1 - kept)
        return lost.clone()  # it is a part of all slopes, which are not kept

    def _piece(self, count: int) -> int:
        """How many images of a batch the program takes at once; each worker has a share of them."""
        wanted = self.student.candidate.program.input
        if wanted.dynamic:
            return -(-count // (WORKERS if self.student.device == "cpu" else 1))
        if count % wanted.batch:
            remedy = f"train with a multiple of {wanted.batch}"
            raise InputError(f"a batch has {count} images, and the program takes {wanted.batch} at once", remedy)
        return wanted.batch

    def _slopes(self, piece: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        lost = loss(self.student, piece, self.recipe.labels, self.judge.labelled)
        return lost.detach(), torch.autograd.grad(lost, list(self.learned.values()), materialize_grads=True)

    def _adjust(self) -> None:
        """Clip gradients, dampen oscillations, and set the rates of this step."""
        for group in self.student.groups.values():
            if self.recipe.clip and group:
                torch.nn.utils.clip_grad_norm_(group.values(), self.recipe.clip)
        if self.recipe.damping:
            self.student.dampen(self.recipe.damping * (1 - _falling(self._progress(self.step))))
        groups: Any = self.optimiser.param_groups
        for group, rate in zip(groups, self._rates(self.step).values(), strict=True):
            group["lr"] = rate

    def _progress(self, step: int) -> float:
        return step / max(1, self.recipe.epochs * len(self.images))

    def _rates(self, step: int) -> Mapping[str, float]:
        recipe, done = self.recipe, self._progress(step)
        share = min(1.0, (done + self._progress(1)) / recipe.warmup) if done < recipe.warmup else 1.0
        share *= _falling(max(0.0, (done - recipe.warmup) / (1 - recipe.warmup)) if recipe.warmup < 1 else 0.0)
        scales = 0.0 if done >= 1 - recipe.frozen_scales else recipe.rate_scales
        rates = {"weights": recipe.rate_weights, "biases": recipe.rate_biases, "scales": scales}
        return {name: share * rate for name, rate in rates.items()}

    def _averaged(self) -> Candidate:
        """The student with the averages of what it has learned; it goes on with its own."""
        own = self.student.state()
        self.student.load(self.average)
        try:
            return self.student.result()
        finally:
            self.student.load(own)

    def _judged(self, candidate: Candidate, pool: ThreadPoolExecutor) -> Judged:
        return from_first(self.launch, lambda: pool.submit(self.judge.judged, candidate, self.student.device).result())

    def state(self) -> TrainingState:
        """All that the next epoch depends on, between two epochs."""
        held = self.student.state()
        held |= {AVERAGE + name: each.cpu().clone() for name, each in self.average.items()}
        held |= {BEST + name: each for name, each in self.best.items()}
        for name, parameter in self.learned.items():
            held |= {f"{moment}/{name}": self.optimiser.state[parameter][moment].cpu().clone() for moment in MOMENTS}
        return TrainingState(len(self.epochs), self.step, held, self._record("under way"))

    def restore(self, state: TrainingState) -> None:
        """Go on from there.

        Raises:
            InputError: this training cannot have left it.
        """
        self.step, record = state.step, state.record
        if record:
            self.start, self.epochs = Judged(record.start, record.start_labelled), record.epochs
        places = ("", AVERAGE, *(f"{each}/" for each in MOMENTS), *([BEST] if self.best_epoch else []))
        own = self.student.state()
        expected = {place + name: each for place in places for name, each in own.items()}
        require_fitting(state, expected, len(self.images))
        self.student.load(state.tensors)
        for name, parameter in self.learned.items():
            self.average[name].copy_(state.tensors[AVERAGE + name])
            if BEST + name in state.tensors:
                self.best[name] = state.tensors[BEST + name]
            moments = {each: state.tensors[f"{each}/{name}"].to(parameter.device).clone() for each in MOMENTS}
            self.optimiser.state[parameter] = {"step": torch.tensor(float(state.step)), **moments}

    def result(self, stopped: str) -> Trained:
        """The best of what there is."""
        if not self.best_epoch:
            return Trained(self.student.candidate, self._record(stopped))
        self.student.load(self.best)
        return Trained(self.student.result(), self._record(stopped))

    def _record(self, stopped: str) -> TrainingRecord:
        return TrainingRecord(
            profile=self.student.candidate.plan.profile,
            epochs=self.epochs,
            start=self.start.distance if self.start else math.nan,
            start_labelled=self.start.labelled if self.start else None,
            best=self.best_epoch.number if self.best_epoch else 0,
            stopped=stopped,
            images=len(self.images) * self.recipe.batch,
            held_out=sum(map(len, self.judge.held_out.inputs)),
            recipe=self.recipe,
            device=_described(self.student.device),
            seconds=round(sum(each.seconds for each in self.epochs), 2),
            processes=self.launch.world,
        )


def _weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of tensors of one shape, each with its weight."""
    return torch.stack([each * weight for each, weight in zip(values, weights, strict=True)]).sum(dim=0)


def _diverged(epoch: int, finite: list[bool]) -> str:
    """Where numbers ended: in which step of an epoch the loss, or behind all steps what judges it."""
    what = f"the loss of step {finite.index(False) + 1} of {len(finite)}" if not all(finite) else "what judges it"
    return f"in epoch {epoch} {what} was no number: smaller rates may help"


def _falling(done: float) -> float:
    """From 1 to 0 by a cosine."""
    return (1 + math.cos(math.pi * min(1.0, done))) / 2


def _words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _described(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
