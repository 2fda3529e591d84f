"""Building an engine, with a TensorRT that is played: what it is asked for, what is written, what is refused."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import demo_checkpoint

from qexport.backends.tensorrt import build_engine
from qexport.backends.tensorrt.backend import SCRIPT, TensorRTBackend
from qexport.backends.tensorrt.build_engine import GIB, BuildError, Options, build, read_metadata
from qexport.errors import EngineNotBuiltError
from qexport.lowering.metadata import artifact_metadata
from qexport.programs.program import Program

FAKE = Path(__file__).with_name("fake_tensorrt.py")
METADATA = {"task": "detect", "stride": 32, "names": {0: "circle", 1: "größer"}, "imgsz": [96, 96], "plan": None}
VERSIONS = ("10.9.0", "11.1.0")
NOT_BUILT = 8  # as documented in qexport/errors.py

Load = Callable[..., ModuleType]


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a fresh stand-in of a version; settings are names in it."""

    def load(version: str, **settings: Any) -> ModuleType:
        monkeypatch.setenv("FAKE_TENSORRT", version)
        spec = importlib.util.spec_from_file_location("tensorrt", FAKE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, value in settings.items():
            assert hasattr(module, name)
            setattr(module, name, value)
        return module

    return load


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """What is parsed is no concern of the stand-in."""
    path = tmp_path / "demo_int8_tensorrt.onnx"
    path.write_bytes(b"graph")
    return path


def built(trt: ModuleType, graph: Path, **options: Any) -> dict[str, Any]:
    """Build and return what TensorRT was asked for."""
    engine = graph.with_name("demo.engine")
    build(trt, graph, engine, METADATA, Options(**options))
    return asked_for(engine)


def asked_for(engine: Path) -> dict[str, Any]:
    """The stand-in's record, behind the header."""
    content = engine.read_bytes()
    record: dict[str, Any] = json.loads(content[4 + int.from_bytes(content[:4], "little") :])
    return record


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_plain_build_asks_for_nothing_special(tensorrt: Load, graph: Path) -> None:
    record = built(tensorrt("10.9.0"), graph)
    del record["installed"]
    # Bit 1 is STRONGLY_TYPED; with it no precision flag may be set.
    assert record == {"severity": 2, "network_flags": 0b10, "graph": 5, "device": ["gpu", -1]}


def test_tensorrt_11_needs_no_flag_for_strong_types(tensorrt: Load, graph: Path) -> None:
    record = built(tensorrt("11.1.0"), graph)
    assert record["network_flags"] == 0
    assert "flags" not in record


def test_a_tensorrt_11_that_still_has_the_flag_gets_it(tensorrt: Load, graph: Path) -> None:
    trt = tensorrt("11.1.0")
    trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 3
    assert built(trt, graph)["network_flags"] == 0b1000


@pytest.mark.parametrize(("gib", "size"), [(4.0, 4_294_967_296), (0.5, 536_870_912)])
def test_the_workspace_is_given_in_bytes(tensorrt: Load, graph: Path, gib: float, size: int) -> None:
    assert GIB == 1_073_741_824
    assert built(tensorrt("10.9.0"), graph, workspace=gib)["workspace"] == size


@pytest.mark.parametrize("version", VERSIONS)
def test_an_open_batch_has_a_profile(tensorrt: Load, graph: Path, version: str) -> None:
    record = built(tensorrt(version, SHAPE=(-1, 3, 64, 96)), graph, most_images=8, likely_images=4)
    assert record["profiles"] == [{"images": [[1, 3, 64, 96], [4, 3, 64, 96], [8, 3, 64, 96]]}]


def test_a_fixed_batch_has_no_profile(tensorrt: Load, graph: Path) -> None:
    assert "profiles" not in built(tensorrt("10.9.0", SHAPE=(4, 3, 64, 96)), graph, most_images=8)


def test_timings_are_kept_from_build_to_build(tensorrt: Load, graph: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timings.bin"
    assert built(tensorrt("10.9.0"), graph, timing_cache=cache)["timing_cache"] == ["", False]
    assert cache.read_bytes() == b"timed;"
    assert built(tensorrt("10.9.0"), graph, timing_cache=cache)["timing_cache"] == ["timed;", False]
    assert cache.read_bytes() == b"timed;timed;"


def test_without_a_timing_cache_none_is_set(tensorrt: Load, graph: Path, tmp_path: Path) -> None:
    assert "timing_cache" not in built(tensorrt("10.9.0"), graph)
    assert names_in(tmp_path) == {graph.name, "demo.engine"}


def test_a_dla_is_configured_on_tensorrt_10(tensorrt: Load, graph: Path) -> None:
    record = built(tensorrt("10.9.0"), graph, dla=1)
    assert record["device"] == ["dla", 1]
    assert sorted(record["flags"]) == [0, 1, 2]  # FP16, INT8 and GPU_FALLBACK
    assert record["network_flags"] == 0, "a DLA wants weak types"


def test_tensorrt_11_has_no_dla(tensorrt: Load, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^TensorRT 11 has no DLA: use 10\.x$"):
        built(tensorrt("11.1.0"), graph, dla=0)
    assert names_in(tmp_path) == {graph.name}


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0"])
def test_an_old_tensorrt_is_refused(tensorrt: Load, graph: Path, version: str) -> None:
    with pytest.raises(BuildError, match=rf"^TensorRT {version} is too old: 10 or 11 is needed$"):
        built(tensorrt(version), graph)


def test_errors_of_the_parser_are_one_line(tensorrt: Load, graph: Path, tmp_path: Path) -> None:
    errors = ("In function importNode:\n[8] no importer for Foo", "second error")
    with pytest.raises(BuildError, match=r"refused demo_int8_tensorrt\.onnx") as caught:
        built(tensorrt("10.9.0", REFUSED=errors), graph)
    for part in ("In function importNode:", "no importer for Foo", "second error"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == {graph.name}


def test_an_engine_that_does_not_come_out_leaves_the_earlier_one(tensorrt: Load, graph: Path, tmp_path: Path) -> None:
    (tmp_path / "demo.engine").write_bytes(b"earlier")
    with pytest.raises(BuildError, match=r"^no engine came out"):
        built(tensorrt("10.9.0", BUILDS=False), graph, timing_cache=tmp_path / "timings.bin")
    assert names_in(tmp_path) == {graph.name, "demo.engine"}
    assert (tmp_path / "demo.engine").read_bytes() == b"earlier"


@pytest.mark.parametrize("version", VERSIONS)
def test_ultralytics_reads_the_header(tensorrt: Load, graph: Path, tmp_path: Path, version: str) -> None:
    from ultralytics.nn.backends.base import BaseBackend

    engine = tmp_path / "demo.engine"
    engine.write_bytes(b"earlier")
    build(tensorrt(version), graph, engine, METADATA, Options())
    offset, metadata = BaseBackend.engine_header(engine)
    assert metadata == {**METADATA, "names": {"0": "circle", "1": "größer"}}
    content = engine.read_bytes()
    assert content[:4] == bytes([(offset - 4) % 256, (offset - 4) // 256, 0, 0])
    assert json.loads(content[offset:])["graph"] == 5
    assert names_in(tmp_path) == {graph.name, "demo.engine"}


def onnx_file(path: Path, metadata: dict[str, Any]) -> Path:
    """A small graph with weights, and metadata written by the package `onnx`."""
    onnx = pytest.importorskip("onnx", reason="needs the extra qexport[tensorrt]")
    weight = onnx.numpy_helper.from_array(np.arange(1000, dtype=np.float32), "weight")
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1000]) for name in ("images", "output0")]
    node = onnx.helper.make_node("Mul", ["images", "weight"], ["output0"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "small", ports[:1], ports[1:], [weight]))
    model.model_version = 2**40
    model.doc_string = "a text of its own"
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_metadata_is_read_without_the_package_onnx(demo_program: Program, tmp_path: Path) -> None:
    metadata = artifact_metadata(demo_checkpoint(), demo_program, "fp16", None)
    odd = {"empty": "", "half": 0.5, "on": True, "text": "größer = better, (no literal", "long": "x" * 300}
    assert read_metadata(onnx_file(tmp_path / "m.onnx", {**metadata, **odd})) == {**metadata, **odd}


def test_a_graph_without_metadata_has_none(tmp_path: Path) -> None:
    assert read_metadata(onnx_file(tmp_path / "m.onnx", {})) == {}


def script(folder: Path, *words: str, fake: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the script that lies in `folder`, with a Python that has the standard library and that folder only."""
    TensorRTBackend().write_script(folder)
    if fake:
        shutil.copy(FAKE, folder / "tensorrt.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [sys.executable, "-S", "build_engine.py", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_the_script_is_the_module(tmp_path: Path) -> None:
    TensorRTBackend().write_script(tmp_path)
    module = Path(build_engine.__file__)
    assert module == SCRIPT
    assert (tmp_path / "build_engine.py").read_bytes() == module.read_bytes()


def test_the_script_imports_the_standard_library_only() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"tensorrt"}


def test_the_script_builds_where_nothing_but_tensorrt_is_installed(tmp_path: Path) -> None:
    graph = onnx_file(tmp_path / "demo_int8_tensorrt.onnx", METADATA)
    options = ("--workspace", "2", "--timing-cache", "times.bin", "--most-images", "8", "--likely-images", "2")
    done = script(tmp_path, graph.name, *options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "demo_int8.engine\n", "")
    record = asked_for(tmp_path / "demo_int8.engine")
    assert record["installed"] == []
    assert (record["workspace"], record["graph"]) == (2 * 1_073_741_824, graph.stat().st_size)
    assert (tmp_path / "times.bin").read_bytes() == b"timed;"
    header = (tmp_path / "demo_int8.engine").read_bytes()[4:]
    assert json.JSONDecoder().raw_decode(header.decode())[0] == json.loads(json.dumps(METADATA))


def test_the_script_writes_where_it_is_told(tmp_path: Path) -> None:
    graph = onnx_file(tmp_path / "other.onnx", METADATA)
    done = script(tmp_path, graph.name, "-o", "here.engine", "--dla", "1")
    assert (done.returncode, done.stdout) == (0, "here.engine\n")
    assert asked_for(tmp_path / "here.engine")["device"] == ["dla", 1]


def test_the_script_does_not_overwrite_a_graph_with_another_name(tmp_path: Path) -> None:
    graph = onnx_file(tmp_path / "other.onnx", METADATA)
    before = graph.read_bytes()
    assert script(tmp_path, graph.name).returncode == 0
    assert graph.read_bytes() == before


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """The only line of a script that did not build."""
    assert (done.returncode, done.stdout) == (NOT_BUILT, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("build_engine: ")
    return line


def test_the_script_without_tensorrt_says_so(tmp_path: Path) -> None:
    graph = onnx_file(tmp_path / "demo_tensorrt.onnx", METADATA)
    assert "pip install tensorrt" in failed(script(tmp_path, graph.name, fake=False))
    assert not list(tmp_path.glob("*.engine"))


def test_the_script_without_a_graph_says_so(tmp_path: Path) -> None:
    assert "absent.onnx" in failed(script(tmp_path, "absent.onnx"))


@pytest.mark.parametrize("content", [b"hello, this is no graph\n", b"\x72\x05ab", b"\xff" * 9])
def test_the_script_given_something_else_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "demo.onnx").write_bytes(content)
    assert "ONNX" in failed(script(tmp_path, "demo.onnx"))
    assert not list(tmp_path.glob("*.engine"))


def test_the_backend_builds_with_the_tensorrt_that_is_installed(
    tensorrt: Load, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt("10.9.0", SHAPE=(-1, 3, 96, 96)))
    options = {"workspace": 1.5, "timing_cache": tmp_path / "times.bin", "most_images": 32, "likely_images": 4}
    TensorRTBackend().build(graph, tmp_path / "demo.engine", METADATA, options)
    record = asked_for(tmp_path / "demo.engine")
    assert record["workspace"] == 1_610_612_736
    assert record["profiles"] == [{"images": [[1, 3, 96, 96], [4, 3, 96, 96], [32, 3, 96, 96]]}]
    assert (tmp_path / "times.bin").is_file()


def not_built(graph: Path, **options: Any) -> str:
    """The only line of a backend that did not build."""
    with pytest.raises(EngineNotBuiltError) as caught:
        TensorRTBackend().build(graph, graph.with_name("demo.engine"), METADATA, options)
    assert caught.value.exit_code == NOT_BUILT
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_tensorrt_the_backend_says_how_to_go_on(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    line = not_built(graph)
    for part in ("demo_int8_tensorrt.onnx is ready", "build_engine.py", "--no-build"):
        assert part in line


def test_a_build_that_fails_is_an_error_of_the_engine(
    tensorrt: Load, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt("10.9.0", BUILDS=False))
    assert "did not build demo.engine: no engine came out" in not_built(graph)


def test_a_timing_cache_that_cannot_be_written_is_named(
    tensorrt: Load, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt("10.9.0"))
    assert "times.bin" in not_built(graph, timing_cache=tmp_path / "gone" / "times.bin")


ODD = {"bytes": "b'x'", "pairs": "{(1, 2): 3}", "set": "{1, 2}", "complex": "1j", "deep": "(" * 100_000}
"""Texts of a stranger's file, which Python reads as what JSON has no word for, or not at all."""


@pytest.mark.parametrize("sample", ODD)
def test_metadata_that_json_has_no_word_for_stay_texts(sample: str, tmp_path: Path) -> None:
    found = read_metadata(onnx_file(tmp_path / "m.onnx", {"author": ODD[sample]}))
    assert json.loads(json.dumps(found)) == {"author": ODD[sample]}
