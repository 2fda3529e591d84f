"""Formats that other packages bring: found, run through the whole walk, and harmless where they are broken."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qexport.backends.info import Option, options_from
from qexport.backends.registry import display_name, find_backend, find_info, infos, other_formats
from qexport.errors import ConversionError, MissingExtraError, PluginError, UsageError
from qexport.job.options import make_job
from qexport.lowering.request import Lowering
from qexport.pipeline import export
from qexport.plugins import BACKENDS, lookup, names
from qexport.progress import Silent
from qexport.steps.plan import make_target
from qexport.system.machine import environment
from qexport.testing import FakeBackend, registered
from qexport.testing.registered import entry_point

DEMO = Path(__file__).resolve().parents[1] / "calibration_data"


class Refusing(FakeBackend):
    """A converter that refuses every model."""

    def lower(self, request: Lowering, path: Path) -> None:
        raise ConversionError("there is no kernel for it", "report the model")


class Elsewhere(FakeBackend):
    """Needs a package that is not here."""

    info = replace(FakeBackend.info, modules=("no_such_module",), install="no-such-package")


class Scaled(FakeBackend):
    """Has an option, and notes its value in the file."""

    info = replace(FakeBackend.info, options=(Option("level", int, 3), Option("batch", int, 1)))

    def lower(self, request: Lowering, path: Path) -> None:
        super().lower(replace(request, metadata={**request.metadata, **request.options}), path)


MADE = FakeBackend()


def options(out: Path, **more: object) -> dict[str, object]:
    model, data = str(DEMO / "shapes26.pt"), str(DEMO / "shapes" / "shapes.yaml")
    quick = {"imgsz": 64, "calib_images": 2, "no_eval": True, "no_latency": True, "effort": "none"}
    return {"model": model, "data": data, "format": "fake", "out": out, **quick, **more}


def test_a_format_of_another_package_goes_the_whole_walk(tmp_path: Path) -> None:
    with registered(FakeBackend):
        report = export(make_job(options(tmp_path, int8=True)), Silent())
    (artifact,) = report.artifacts
    assert (artifact.format, artifact.precision) == ("fake", "int8")
    assert (tmp_path / "shapes26_int8.fake").is_file()
    saved = json.loads((tmp_path / "report.json").read_text())
    entry = saved["artifacts"][0]
    assert entry["runtime"] == "PyTorch, operator by operator"
    assert entry["verification"]["tensors"] > 50
    assert entry["verification"]["unnamed"] == 0
    assert saved["environment"]["packages"]["torchao"]


def test_a_refusal_leaves_no_file_and_names_other_formats(tmp_path: Path) -> None:
    with registered(Refusing), pytest.raises(ConversionError, match="other formats may take it: --format onnx"):
        export(make_job(options(tmp_path, no_eval=True)), Silent())
    assert not list(tmp_path.glob("*.fake"))


def test_a_format_is_known_while_its_package_is_installed() -> None:
    before = names(BACKENDS)
    with registered(FakeBackend):
        assert set(names(BACKENDS)) - set(before) == {"fake"}
        assert find_info("fake") is FakeBackend.info
        assert display_name("fake") == "Fake"
        assert "fake" in other_formats("onnx", "int8")
        assert "fake" not in other_formats("onnx", "w8a16")
    assert names(BACKENDS) == before
    assert display_name("fake") == "fake"


def test_a_broken_package_is_named_in_one_line_and_breaks_no_other() -> None:
    with entry_point(BACKENDS, "bad = no_such_module:Backend", "broken-things"):
        with pytest.raises(
            PluginError, match=r"bad .*: broken-things 0 cannot be loaded \(ModuleNotFoundError"
        ) as found:
            find_backend("bad")
        assert "\n" not in str(found.value)
        assert {info.name for info in infos()} == set(names(BACKENDS)) - {"bad"}
        assert find_info("onnx").title == "ONNX"
        code = f"import sys; sys.path[:] = {sys.path!r}; from qexport.cli.app import main; main(['formats'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "bad: broken (" in done.stdout
    assert "openvino: " in done.stdout


def test_what_is_no_backend_is_refused() -> None:
    with (
        entry_point(BACKENDS, "strange = pathlib:Path", "strange-things"),
        pytest.raises(PluginError, match=r"strange in qexport\.backends: .* has no BackendInfo"),
    ):
        find_backend("strange")


def test_an_object_is_no_backend() -> None:
    with (
        entry_point(BACKENDS, "fake = test_plugins:MADE", "made-things"),
        pytest.raises(PluginError, match=r"fake in qexport\.backends: .* is no class"),
    ):
        find_backend("fake")


def test_two_packages_with_one_name_are_both_named() -> None:
    with registered(FakeBackend, "one"), registered(Refusing, "two"):
        with pytest.raises(PluginError, match=r"fake is registered in qexport\.backends by one 0 and two 0"):
            find_backend("fake")
        assert "fake" not in {info.name for info in infos()}
    with registered(FakeBackend, "one"), registered(FakeBackend, "two"):  # the same thing twice is no clash
        assert find_info("fake") is FakeBackend.info


def test_what_it_needs_is_what_it_says() -> None:
    with (
        registered(Elsewhere),
        pytest.raises(MissingExtraError, match="format fake needs no_such_module: pip install 'no-such-package'"),
    ):
        find_backend("fake")
    with registered(Elsewhere):
        assert make_target("fake").profile == Elsewhere.info.profiles["int8"]["any"]  # to plan for it needs nothing


def test_nothing_is_found_under_a_name_that_nobody_has() -> None:
    with pytest.raises(KeyError):
        lookup(BACKENDS, "nothing")


def test_the_report_has_the_versions_of_what_formats_name() -> None:
    assert "torchao" not in environment().packages
    assert set(environment(("torchao", "no-such-package")).packages) >= {"torch", "torchao", "numpy"}
    assert "no-such-package" not in environment(("no-such-package",)).packages


def test_options_are_the_backends_own() -> None:
    info = replace(FakeBackend.info, options=(Option("level", int, 3), Option("kind", str, "a", "", ("a", "b"))))
    assert options_from(info, {"opset": 18}) == {"level": 3, "kind": "a"}
    assert options_from(info, {"level": "5", "kind": "b"}) == {"level": 5, "kind": "b"}
    with pytest.raises(UsageError, match="option level cannot be high: give a value of type int"):
        options_from(info, {"level": "high"})
    with pytest.raises(UsageError, match="option kind cannot be c: give one of a, b"):
        options_from(info, {"kind": "c"})
    switch = Option("fast", bool, True)
    assert (switch.checked("false"), switch.checked("True"), switch.checked(None)) == (False, True, True)
    with pytest.raises(UsageError, match="option fast cannot be no: give a value of type bool"):
        switch.checked("no")


def test_an_option_of_another_package_comes_from_the_command_line(tmp_path: Path) -> None:
    with registered(Scaled):
        job = make_job(options(tmp_path, option="level=5"))
        export(job, Silent())
        said = FakeBackend().read(tmp_path / "shapes26_fp32.fake").metadata
        assert (said["level"], said["batch"]) == (5, 1)
        for wrong, words in {
            "level=high": "option level cannot be high: give a value of type int",
            "depth=5": "--option depth=5 is none of format fake: give level as NAME=VALUE",
            "level": "--option level is none of format fake",
            "batch=2": "--option batch=2 is none of format fake",  # it has an option of its own: --batch
        }.items():
            with pytest.raises(UsageError, match=words):
                make_job(options(tmp_path, option=wrong))
    with pytest.raises(UsageError, match="--option level=5 is none of format openvino: leave it out"):
        make_job(options(tmp_path, format="openvino", option="level=5"))


def test_a_range_estimator_of_another_package_can_be_asked_for(tmp_path: Path) -> None:
    asked = options(tmp_path, int8=True, ranges="wide", format="onnx")
    with entry_point("qexport.ranges", "wide = builtins:divmod", "wide-things"):
        assert make_job(asked).range_method == "wide"
    with pytest.raises(
        UsageError,
        match=r"^--ranges wide is out of range: give percentile, minmax, .* or auto$",
    ):
        make_job(asked)
