"""What training has learned: kept in a checkpoint that Ultralytics loads, and planned from again."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO, demo_images, synthetic_statistics
from small_models import saved, small_model
from test_hostile_checkpoints import refusal
from trained import integers, kept, numbers, record, trained

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.checkpoints.identify import holds_learned
from qexport.errors import InputError, UsageError
from qexport.job.options import make_job
from qexport.job.train_job import make_train_job
from qexport.optimisation.candidate import Candidate
from qexport.planning.learned_ranges import UnlearnedError
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE, for_saturating_cpus
from qexport.programs.build import read_source
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.training.container import pack, unpack
from qexport.training.learned_candidate import learned_candidate
from qexport.training.qat_file import Learned, Provenance, learned_profile, read_learned, save_qat, to_bytes
from qexport.training.recipe import Recipe
from qexport.training_run import earlier_profiles, training_identity

MODEL = DEMO / "shapes26.pt"
HERE = Path("made_here_qat.pt")


def learned(*candidates: Candidate) -> Learned:
    profiles = tuple(learned_profile(each, record(each.plan.profile)) for each in candidates)
    return Learned(profiles, Provenance("made_here.pt", "0" * 64))


@pytest.fixture(scope="module")
def candidate(demo_program: Program) -> Candidate:
    """Trained for TFLite."""
    return trained(demo_program, make_plan(demo_program, synthetic_statistics(demo_program.values), TFLITE), TFLITE)


@pytest.fixture(scope="module")
def file(candidate: Candidate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qat") / "shapes26_qat.pt"
    kept(path, MODEL, load_checkpoint(MODEL).fingerprint, candidate)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Candidate]:
    """The same of a small model with two heads."""
    folder = tmp_path_factory.mktemp("small")
    model, path = saved(small_model(end2end=True, reg_max=1), folder / "small.pt"), folder / "small_qat.pt"
    source = read_source(model, CaptureOptions(imgsz=(64, 64)))
    plan = make_plan(source.program, synthetic_statistics(source.program.values), TFLITE)
    made = trained(source.program, plan, TFLITE)
    kept(path, model, source.checkpoint.fingerprint, made)
    return path, made


def test_what_is_kept_is_what_was_learned(file: Path, candidate: Candidate, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(file)
    found = read_learned(checkpoint.learned, file)
    (one,) = found.profiles
    assert one.plan == candidate.plan
    assert one.record == record("tflite")
    assert len(one.parameters) > 100
    for name, tensor in one.parameters.items():
        assert torch.equal(tensor, candidate.program.graph.parameter(name))
    assert found.provenance.model == "shapes26.pt"
    assert found.provenance.fingerprint == load_checkpoint(MODEL).fingerprint
    assert found.provenance.versions == {"torch": torch.__version__}
    assert holds_learned(file)
    assert not holds_learned(MODEL)
    assert not load_checkpoint(MODEL).learned
    assert not holds_learned(saved(small_model(), tmp_path / "other.pt", where="/home/user/qexport/model.yaml"))


@pytest.mark.parametrize("safe", [False, True], ids=["", "weights only"])
def test_ultralytics_loads_the_file_and_predicts_as_before(file: Path, safe: bool, monkeypatch: Any) -> None:
    from ultralytics.models import YOLO
    from ultralytics.nn import tasks

    monkeypatch.setattr(tasks, "SAFE_LOAD", safe)
    image = str(demo_images("val", 1)[0])
    models: tuple[Any, ...] = (YOLO(str(MODEL)), YOLO(str(file)))
    one, other = (model.predict(image, imgsz=64, verbose=False, device="cpu")[0] for model in models)
    assert len(other.boxes) > 0
    assert torch.equal(one.boxes.data, other.boxes.data)
    assert one.names == other.names


def test_equal_files_have_equal_bytes_and_a_file_that_changed_meanwhile_is_refused(
    candidate: Candidate, tmp_path: Path
) -> None:
    model = saved(small_model(), tmp_path / "model.pt")
    known, fingerprint = learned(candidate), load_checkpoint(model).fingerprint
    known = replace(known, provenance=replace(known.provenance, fingerprint=fingerprint))
    for name in ("one.pt", "other.pt"):
        save_qat(tmp_path / name, model, known)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()
    model.write_bytes(model.read_bytes() + b" ")
    with pytest.raises(InputError, match="has changed while it was trained"):
        save_qat(tmp_path / "never.pt", model, known)
    assert not (tmp_path / "never.pt").exists()


@pytest.mark.parametrize("head", ["OBB", "Pose", "Segment", "Classify"])
def test_checkpoints_of_every_task(head: str, tmp_path: Path) -> None:
    from ultralytics.models import YOLO

    model, path = saved(small_model(head), tmp_path / "model.pt"), tmp_path / "model_qat.pt"
    source = read_source(model, CaptureOptions(imgsz=(64, 64)))
    plan = make_plan(source.program, synthetic_statistics(source.program.values), OPENVINO)
    made = trained(source.program, plan, OPENVINO)
    kept(path, model, source.checkpoint.fingerprint, made)
    again = load_checkpoint(path)
    assert again.task == source.checkpoint.task
    found, _ = learned_candidate(read_learned(again.learned, path), source.program, OPENVINO, path)
    assert numbers(found.plan) == numbers(made.plan)
    assert integers(found) == integers(made)
    loaded: Any = YOLO(str(path)).model
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    before: Any = load_checkpoint(model).module

    def flat(outputs: Any) -> Any:
        return outputs if isinstance(outputs, torch.Tensor) else flat(outputs[0])

    with torch.no_grad():
        assert torch.equal(flat(loaded(pixels)), flat(before(pixels)))


def test_the_same_runtime_gets_the_trained_numbers_at_another_size_and_batch(small: tuple[Path, Candidate]) -> None:
    file, candidate = small
    source = read_source(file, CaptureOptions(imgsz=(64, 128), batch=2))
    found, note = learned_candidate(read_learned(source.checkpoint.learned, file), source.program, TFLITE, file)
    assert found.program.fingerprint != candidate.program.fingerprint
    assert found.reference is source.program
    assert found.plan.integer == candidate.plan.integer
    assert numbers(found.plan) == numbers(candidate.plan)
    assert integers(found) == integers(candidate)
    assert note == "weights and scales were learned in training for tflite"
    scaled = [each for each in found.plan.tensors.values() if each.rule in ("own", "shared") and not each.is_float]
    assert all(each.why.startswith("learned in training for tflite") for each in scaled)


def test_a_later_run_finds_what_was_learned_and_leaves_another_models_alone(file: Path, tmp_path: Path) -> None:
    given = {"model": str(MODEL), "data": "shapes.yaml"}
    job = make_train_job({**given, "out": file.parent})
    own = load_checkpoint(MODEL).fingerprint
    assert [each.plan.profile for each in earlier_profiles(job, own)] == ["tflite"]
    assert earlier_profiles(make_train_job({**given, "out": tmp_path}), own) == ()
    with pytest.raises(InputError, match=r"was trained from another shapes26\.pt: give another --out"):
        earlier_profiles(job, "0" * 64)


def test_a_training_may_go_on_for_longer_but_not_by_another_recipe(small: tuple[Path, Candidate]) -> None:
    recipe, plan = Recipe(epochs=3), small[1].plan
    known = training_identity(recipe, "model", "images", plan)
    assert training_identity(replace(recipe, epochs=9, patience=0), "model", "images", plan) == known
    for other in ({"seed": 1}, {"batch": 2}, {"labels": 0.5}, {"rate_weights": 0.1}):
        found = training_identity(replace(recipe, **other), "model", "images", plan)
        assert [name for name in known if found[name] != known[name]] == [
            f"--{name.replace('_', '-')}" for name in other
        ]
    assert training_identity(recipe, "model", "other images", plan) != known


def test_another_head_is_calibrated_where_nothing_was_learned_of_it(small: tuple[Path, Candidate]) -> None:
    file, candidate = small
    program = read_source(file, CaptureOptions(imgsz=(64, 64), head="one2many")).program
    known = learned(candidate)
    with pytest.raises(UnlearnedError, match=r"no range of \w+ was learned"):
        learned_candidate(known, program, TFLITE, file)
    found, note = learned_candidate(known, program, TFLITE, file, synthetic_statistics(program.values))
    shared = [name for name, each in candidate.plan.tensors.items() if name in found.plan.tensors and not each.is_float]
    own, plan = numbers(candidate.plan), numbers(found.plan)
    same = [name for name in shared if own[name] == plan[name]]
    assert len(same) > 0.9 * len(shared) > 10
    assert "scales were not learned and come from calibration" in note


@pytest.mark.parametrize("profile", [ONNXRUNTIME, OPENVINO, TENSORRT], ids=lambda profile: profile.name)
def test_another_runtime_is_planned_from_what_was_learned(profile: Any, candidate: Candidate) -> None:
    program = candidate.reference
    found, note = learned_candidate(learned(candidate), program, profile, HERE)
    assert found.plan.profile == profile.name
    assert note.startswith(
        f"no scales were learned for {profile.name}: weights and ranges were learned in training for "
    )
    both = integers(found)
    assert len(both) > 50
    assert both == {name: each for name, each in integers(candidate).items() if name in both}
    step, other = candidate.plan.tensors["model_2_cv2_mul"], found.plan.tensors["model_2_cv2_mul"]
    if not profile.symmetric_activations:
        assert other.scale == step.scale
        assert other.zero_point[0] - profile.activation.low == step.zero_point[0] + 128
    else:
        assert other.scale[0] == pytest.approx(step.scale[0] * (127 - step.zero_point[0]) / 127, rel=1e-3)


def test_the_nearest_profile_is_taken(candidate: Candidate) -> None:
    program, statistics = candidate.reference, synthetic_statistics(candidate.reference.values)
    fused = trained(program, make_plan(program, statistics, OPENVINO), OPENVINO)
    known = learned(candidate, fused)
    assert learned_candidate(known, program, TENSORRT, HERE)[1].endswith("for openvino")
    assert learned_candidate(known, program, ONNXRUNTIME, HERE)[1].endswith("for tflite")


def test_weights_that_pairs_of_products_would_saturate_by_are_widened(candidate: Candidate) -> None:
    program, statistics = candidate.reference, synthetic_statistics(candidate.reference.values)
    careful = for_saturating_cpus(OPENVINO)
    quick = trained(program, make_plan(program, statistics, OPENVINO), OPENVINO)
    exact, _ = learned_candidate(learned(quick), program, OPENVINO, HERE)
    found, _ = learned_candidate(learned(quick), program, careful, HERE)
    assert numbers(exact.plan) == numbers(quick.plan)
    weights = [name for name, each in found.plan.tensors.items() if each.axis == 0]
    assert any(found.plan.tensors[name].scale != quick.plan.tensors[name].scale for name in weights)
    values = [name for name, each in found.plan.tensors.items() if each.axis is None]
    assert all(numbers(found.plan)[name] == numbers(quick.plan)[name] for name in values)


def test_scales_of_weights_whose_bias_has_outgrown_them_are_widened(candidate: Candidate) -> None:
    given = candidate.plan.tensors["images"].scale[0] * np.array(candidate.plan.tensors["model.0.conv.weight"].scale)
    bias = torch.zeros(len(given))
    bias[3] = 3 * 2**30 * given[3]  # half of INT32's range is a bias's: three times as much
    grown = candidate.with_parameters({"model.0.conv.bias": bias})
    found, _ = learned_candidate(learned(grown), candidate.reference, TFLITE, HERE)
    old, new = (np.array(each.plan.tensors["model.0.conv.weight"].scale) for each in (candidate, found))
    assert new[3] / old[3] == pytest.approx(3)
    assert [number for number in range(len(old)) if new[number] != old[number]] == [3]


def test_values_kept_in_float_are_float_and_the_rest_stays(candidate: Candidate) -> None:
    program = candidate.reference
    found, _ = learned_candidate(learned(candidate), program, TFLITE, HERE, float_values={"model_0_conv": "as asked"})
    assert found.plan.integer == candidate.plan.integer - {"model_0_conv"}
    assert numbers(found.plan)["model_1_conv"] == numbers(candidate.plan)["model_1_conv"]


def test_what_was_learned_of_another_model_is_refused(candidate: Candidate, tiny: Program) -> None:
    with pytest.raises(InputError, match="is of another model: none of its layers is here"):
        learned_candidate(learned(candidate), tiny, TFLITE, HERE)
    known = learned(candidate)
    name = next(iter(known.profiles[0].parameters))
    wrong = replace(known.profiles[0], parameters={name: torch.zeros(7)})
    with pytest.raises(InputError, match=f"{name} has another shape"):
        learned_candidate(replace(known, profiles=(wrong,)), candidate.reference, TFLITE, HERE)


def bomb() -> bytes:
    """An archive that says that it has more than memory holds."""
    stream = io.BytesIO()
    write: Any = np.lib.format.write_array_header_1_0
    write(stream, {"descr": "<f4", "fortran_order": False, "shape": (2**50,)})
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("head.npy", stream.getvalue())
    return made.getvalue()


def pickled() -> bytes:
    """An archive with an array of objects."""
    stream = io.BytesIO()
    np.savez(stream, head=np.array([print], dtype=object))
    return stream.getvalue()


DAMAGED: Mapping[str, Callable[[bytes], bytes]] = {
    "no archive": lambda _: b"nothing",
    "cut short": lambda whole: whole[: len(whole) // 2],
    "a byte changed": lambda whole: whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:],
    "more than there is": lambda _: bomb(),
    "objects": lambda _: pickled(),
    "of a later version": lambda _: pack({"schema": 99}, {}),
    "of nothing": lambda _: pack({"schema": 1, "profiles": [], "provenance": {}}, {}),
    "no plan": lambda _: pack({"schema": 1, "profiles": [{"plan": "{}", "record": {}}], "provenance": {}}, {}),
    "profiles of another kind": lambda _: pack({"schema": 1, "profiles": 3, "provenance": {}}, {}),
    "numbers of another kind": lambda _: pack(
        {"schema": 1, "profiles": [{}], "provenance": {}}, {"0 a": np.zeros(2, np.float64)}
    ),
}


@pytest.fixture(scope="module")
def whole(candidate: Candidate) -> bytes:
    return to_bytes(learned(candidate))


@pytest.mark.parametrize("sample", DAMAGED)
def test_damaged_bytes_are_refused_in_one_line(sample: str, whole: bytes) -> None:
    with pytest.raises(InputError) as caught:
        read_learned(DAMAGED[sample](whole), HERE)
    assert "\n" not in str(caught.value)
    assert str(HERE) in str(caught.value)


@pytest.mark.parametrize("number", ["99999", "-1", "00", "", "1"])
def test_parameters_of_a_runtime_that_is_not_there(number: str, whole: bytes) -> None:
    head, arrays = unpack(whole)
    changed = pack(head, {f"{number} {name.partition(' ')[2]}": each for name, each in arrays.items()})
    with pytest.raises(InputError, match=f"parameters of a runtime '{number}'"):
        read_learned(changed, HERE)


class Called:
    """Something that a loader would call."""

    def __reduce__(self) -> Any:
        return print, ("called",)


@pytest.mark.parametrize("key", [Called(), [1], "text", torch.zeros(3)], ids=["a call", "a list", "text", "a tensor"])
def test_a_key_of_anything_but_bytes_is_refused_and_not_called(key: Any, tmp_path: Path) -> None:
    refusal(saved(small_model(), tmp_path / "hostile.pt", qexport=key))


def test_an_export_without_data_says_that_only_verification_needs_images(file: Path) -> None:
    with pytest.raises(UsageError, match="has ranges that were learned, and needs images to verify on: add --data"):
        make_job({"model": str(file), "int8": True})
