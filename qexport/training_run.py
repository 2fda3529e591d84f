"""A training run: read → capture → calibrate → for each profile plan → optimise → train → one checkpoint.

An export of the checkpoint is a run of its own: see `qexport.pipeline`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from qexport.backends.registry import reported_packages
from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.clock import Clock
from qexport.data.dataset import fingerprint
from qexport.data.selection import has_labels
from qexport.errors import InputError
from qexport.inspection.run_folder import locked
from qexport.job.export_job import ExportJob
from qexport.job.train_job import TrainJob
from qexport.measurement.simulated import simulated_fidelity
from qexport.opening import Run, calibrated, opened, target_of
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.pass_record import PassRecord
from qexport.pipeline import request
from qexport.planning.plan import QuantPlan
from qexport.programs.build import Source
from qexport.progress import Progress, Silent, Titled
from qexport.reporting.page.training_page import write_training
from qexport.reporting.training_report import ProfileTraining, TrainingReport, save_training
from qexport.steps.build import optimised, planned_candidate
from qexport.steps.train import split, train
from qexport.system.files import make_folder
from qexport.system.launch import ALONE
from qexport.system.machine import environment
from qexport.system.signals import stop_request
from qexport.training.device import check_device
from qexport.training.images import Images
from qexport.training.labelled_images import labelled
from qexport.training.loop import Trained
from qexport.training.processes import OfFirst, candidates_from_first, everywhere, from_first, joined
from qexport.training.qat_file import Learned, LearnedProfile, Provenance, learned_profile, read_learned, save_qat
from qexport.training.recipe import Recipe
from qexport.training.record import INTERRUPTED
from qexport.training.state import Anew, FileStore, TrainingState
from qexport.version import __version__

SILENT = Silent()
RECORD, PAGE = "train.json", "train.html"


@dataclass(frozen=True)
class _Profile:
    """A profile's candidate before training, and what became of the passes."""

    formats: tuple[str, ...]
    start: Candidate
    passes: tuple[PassRecord, ...]

    @property
    def name(self) -> str:
        return self.start.plan.profile


@dataclass(frozen=True)
class _Training:
    """What the steps of a training run share."""

    job: TrainJob
    run: Run
    progress: Progress
    clock: Clock
    command: str
    earlier: tuple[LearnedProfile, ...] = ()
    notes: list[str] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


def train_of(job: TrainJob, progress: Progress = SILENT, command: str = "") -> TrainingReport:
    """Do one training run, write the checkpoint, its record and its page, and return the record.

    An interrupt while it trains ends training, and what it has come to is written.

    Args:
        job: see `make_train_job`, which checks it.
        progress: shows steps; nothing does unless given.
        command: for the record, as one string.

    Raises:
        QexportError: one of its kinds; no half-written file is left behind.
    """
    launch, clock = job.launch, Clock(progress)
    with joined(launch, launch.device(job.recipe.device)):
        run = everywhere(launch, lambda: _opened(job, clock))
        earlier = from_first(launch, lambda: _earlier(job, run.source))
        return _trained_together(_Training(job, run, progress, clock, command, earlier))


def _trained_together(training: _Training) -> TrainingReport:
    """The first process plans, keeps states, judges and writes; all of them train."""
    job, launch, clock = training.job, training.job.launch, training.clock
    with locked(job.export.folder, training.progress) if launch.first else nullcontext():
        profiles, trained = _planned(training), list[Trained]()
        with stop_request() as stopped:
            for profile in profiles:
                with clock.timed(f"train_{profile.name}"):
                    trained.append(_trained(training, profile, stopped))
                if trained[-1].record.stopped == INTERRUPTED:
                    break
        return from_first(launch, lambda: _written(training, profiles, trained))


def _opened(job: TrainJob, clock: Clock) -> Run:
    """Read model and data; refuse a device that is not here, too few images, and data without labels asked for."""
    check_device(job.launch.device(job.recipe.device))
    run = opened(job.export, clock, None)
    images = run.images
    data = images.calibration_dataset
    assert data is not None
    split(images.calibration)
    if job.recipe.labels and not has_labels(data, images.calibration):
        raise InputError(f"--labels needs labels, and the images of {data.yaml} have none", "leave out --labels")
    return run


def _earlier(job: TrainJob, source: Source) -> tuple[LearnedProfile, ...]:
    """See `_known`; the folder is made, and a resumption of nothing refused."""
    states = [job.export.folder / _state(name) for name in _profile_names(job.export)]
    if job.resume and not any(path.exists() for path in states):
        names = ", ".join(dict.fromkeys(path.name for path in states))
        raise InputError(f"there is no training to resume in {job.export.folder}: no {names}", "leave out --resume")
    found = _known(job, source)
    make_folder(job.export.folder)
    return found


def _profile_names(job: ExportJob) -> list[str]:
    """Of each format."""
    return [profile.name for name in job.format if (profile := target_of(job, name).profile)]


def _known(job: TrainJob, source: Source) -> tuple[LearnedProfile, ...]:
    """What an earlier run has learned, and what the model has that is trained, where it was trained before."""
    found, checkpoint = earlier_profiles(job, source.checkpoint.fingerprint), source.checkpoint
    names = {each.plan.profile for each in found}
    own = read_learned(checkpoint.learned, checkpoint.path).profiles if checkpoint.learned else ()
    return (*found, *(each for each in own if each.plan.profile not in names))


def earlier_profiles(job: TrainJob, fingerprint: str) -> tuple[LearnedProfile, ...]:
    """What an earlier run has learned of the same model and left in the folder.

    Raises:
        InputError: what is there is of another model, or no file of such a run.
    """
    if not job.file.exists():
        return ()
    learned = read_learned(load_checkpoint(job.file, job.export.trust_checkpoint).learned, job.file)
    if learned.provenance.fingerprint != fingerprint:
        what = f"{job.file} was trained from another {learned.provenance.model}"
        raise InputError(what, "give another --out, or remove it")
    return learned.profiles


def _state(profile: str) -> str:
    """Name of the file that keeps a profile's training between two epochs."""
    return f"train_{profile}.state"


def _planned(training: _Training) -> list[_Profile]:
    """What the first process has calibrated, planned and optimised; its passes are not told of in the others."""
    made = list[_Profile]()

    def starts() -> list[Candidate]:
        made.extend(_profiles(training))
        return [each.start for each in made]

    found = candidates_from_first(training.job.launch, training.run.source.program, starts)
    return made or [_Profile((), each, ()) for each in found]


def _profiles(training: _Training) -> list[_Profile]:
    """Calibrate, plan for each distinct profile of the formats, and run the passes."""
    job, run, clock = training.job.export, training.run, training.clock
    table, _ = calibrated(run)
    asked = {name: request(run, name, job.precision, table) for name in job.format}
    formats: dict[str, list[str]] = {}
    for name, each in asked.items():
        assert each.target.profile is not None
        formats.setdefault(each.target.profile.name, []).append(name)
    found = []
    for profile, names in formats.items():
        with clock.step(f"plan_{profile}", f"Planning for {profile}"):
            candidate, told = planned_candidate(run.source, asked[names[0]])
        candidate, records = optimised(candidate, asked[names[0]], training.progress, clock)
        assert candidate is not None  # of precisions that are trained
        training.notes.extend(told)
        found.append(_Profile(tuple(names), candidate, records))
    return found


def _trained(training: _Training, profile: _Profile, stopped: Callable[[], bool]) -> Trained:
    """Train for one profile, from the beginning or from where an earlier run was."""
    job, run, launch = training.job, training.run, training.job.launch
    checkpoint, plan = run.source.checkpoint, profile.start.plan
    identity = training_identity(job.recipe, checkpoint.fingerprint, fingerprint(run.images.calibration), plan)
    if launch.world > 1 and job.recipe.device != "cpu":  # the program then takes a share of a step at once
        identity["number of processes"] = str(launch.world)
    kept = FileStore(job.export.folder / _state(profile.name), identity)
    store = kept if job.resume else Anew(kept)
    training.notes.extend(_gone_on(profile.name, OfFirst(store, launch).load(), job.recipe))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True)))

        def with_labels(images: Sequence[Path], learned: bool) -> Images:
            data, source = run.images.calibration_dataset, run.source
            assert data is not None
            task, recipe = source.checkpoint.task_spec, job.recipe
            links, skip = Path(tempfile.mkdtemp(dir=scratch)) / "data", training.skipped.setdefault
            sharing, seed = launch if learned else ALONE, recipe.seed
            batch = sharing.share(min(recipe.batch, max(len(images), source.program.input.batch)))
            made = partial(labelled, on_skip=skip, needed=learned, shard=sharing.shard)
            return made(data, images, task, source.program, batch, seed, links)

        return train(
            profile.start,
            run.images.calibration,
            Titled(training.progress, f" ({profile.name})"),
            recipe=job.recipe,
            store=store,
            labelled=with_labels if job.recipe.labels else None,
            stopped=stopped,
            on_skip=training.skipped.setdefault,
            launch=launch,
        )


def training_identity(recipe: Recipe, model: str, images: str, plan: QuantPlan) -> dict[str, str]:
    """All that a training depends on, but for when it ends: what was trained may be trained on.

    Args:
        model, images: their fingerprints.
        plan: of the program that is trained.
    """
    options = {f"--{name.replace('_', '-')}": str(value) for name, value in asdict(recipe).items()}
    del options["--epochs"], options["--patience"]
    parts = {"model": model, "choice of images": images, "optimised network": plan.program, "plan": plan.fingerprint}
    return parts | options


def _gone_on(profile: str, state: TrainingState | None, recipe: Recipe) -> tuple[str, ...]:
    """A note where a training goes on that was begun as one of another length, by which rates fall."""
    begun = state.record.recipe.epochs if state and state.record else recipe.epochs
    if state is None or begun == recipe.epochs:
        return ()
    return (
        f"{profile}: went on behind epoch {state.epoch} of a training of {begun}: rates did not fall as in one run",
    )


def _written(training: _Training, profiles: Sequence[_Profile], trained: Sequence[Trained]) -> TrainingReport:
    """Write the checkpoint, the record and the page; states stay for those that are to train on.

    What an earlier run has left stays where nothing was learned.
    """
    job, run, clock = training.job, training.run, training.clock
    ended = trained[-1].record.stopped == INTERRUPTED
    if job.file.exists() and ended and not any(each.record.epochs for each in trained):
        return _report(training, profiles, trained)
    checkpoint = run.source.checkpoint
    packages = environment(reported_packages()).packages
    known = {each.plan.profile for each in training.earlier}
    made = [each for each in trained if each.record.epochs or each.record.profile not in known]
    names = {each.record.profile for each in made}
    others = tuple(each for each in training.earlier if each.plan.profile not in names)
    training.notes.extend(f"{each.plan.profile} is kept as an earlier run has learned it" for each in others)
    learned = Learned(
        (*(learned_profile(each.candidate, each.record) for each in made), *others),
        Provenance(checkpoint.path.name, checkpoint.fingerprint, str(job.export.data), training.command, packages),
    )
    with clock.step("write", f"Writing {job.file.name}"):
        save_qat(job.file, checkpoint.path, learned, job.export.trust_checkpoint)
    report = _report(training, profiles, trained)
    save_training(report, job.export.folder / RECORD)
    write_training(report, job.export.folder / PAGE)
    return report


def _report(training: _Training, profiles: Sequence[_Profile], trained: Sequence[Trained]) -> TrainingReport:
    job, run = training.job, training.run
    checkpoint = run.source.checkpoint
    skipped = {each.path: each.reason for each in run.images.left_out} | training.skipped
    left_out = (f"left out {path.name}: {why}" for path, why in skipped.items())
    return TrainingReport(
        model=checkpoint.path.name,
        sha256=checkpoint.fingerprint,
        file=job.file,
        command=training.command,
        version=__version__,
        data=str(job.export.data),
        precision=job.export.precision,
        imgsz=run.source.program.input.imgsz,
        profiles=_scored(training, profiles, trained),
        seconds=training.clock.seconds,
        notes=(*run.images.notes, *training.notes, *left_out),
        interrupted=trained[-1].record.stopped == INTERRUPTED,
    )


def _scored(
    training: _Training, profiles: Sequence[_Profile], trained: Sequence[Trained]
) -> tuple[ProfileTraining, ...]:
    """The records, with fidelity before and after where there are images to evaluate on."""
    pairs, run = list(zip(profiles, trained, strict=False)), training.run
    found: Mapping[int, float | None] = {}
    if run.images.evaluation_data and trained[-1].record.stopped != INTERRUPTED:
        candidates = [each for profile, made in pairs for each in (profile.start, made.candidate)]
        with training.clock.timed("evaluate"):
            scores = simulated_fidelity(candidates, run.source.checkpoint.task, run.images, training.progress)
        found = dict(enumerate(scores))
    return tuple(
        ProfileTraining(profile.formats, made.record, profile.passes, found.get(2 * place), found.get(2 * place + 1))
        for place, (profile, made) in enumerate(pairs)
    )
