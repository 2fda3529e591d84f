"""The structure of the package, as ARCHITECTURE.md draws it. Source text is read, nothing of it is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from architecture import (
    PACKAGE,
    Violation,
    files_are_short,
    floors_respected,
    functions_are_short,
    job_stays_above,
    no_circles,
    no_module_state,
    nothing_imports_tests,
    one_file_prints,
    one_file_starts_processes,
    packages_say_what_they_are,
    runtimes_at_home,
)
from architecture_use import every_definition_is_used, every_file_is_used, nothing_is_there_twice

ROOT = Path(__file__).resolve().parents[1]

FLOORS = (
    (
        "errors",
        "progress",
        "clock",
        "tasks",
        "targets",
        "vocabulary",
        "version",
        "plugins",
        "system",
        "compat",
        "detections",
        "decode",
    ),
    ("data", "checkpoints"),
    ("programs",),
    ("calibration",),
    ("planning",),
    ("simulation", "lowering"),
    ("optimisation", "backends"),
    ("training",),
    ("verification",),
    ("measurement",),
    ("reporting",),
    ("inspection", "execution", "sweeps"),
    ("job", "snippets"),
    ("steps", "publish", "opening", "pipeline", "training_run", "sweep_run"),
    ("cli", "testing", "integrations", "__main__", ""),
)
"""From the ground up; a module imports its own floor or a lower one. "" is `qexport/__init__.py`, the public face."""

KNOW_THE_JOB = ("job", "publish", "opening", "pipeline", "training_run", "sweep_run", "cli", "integrations", "")
"""Where an `ExportJob` ends: everything below takes the few values that it needs."""

ONNX = ("programs/onnx", "lowering/onnx", "backends/onnxruntime")
"""ONNX is a front end and the form of three formats, too: a file becomes a program, a program becomes a graph."""

TORCH = (
    *("checkpoints", "programs", "calibration", "simulation", "optimisation"),
    *("lowering", "backends", "training", "verification", "measurement", "execution", "compat", "integrations"),
)
"""Not data, planning, detections, reporting or job: they start, and refuse, without it."""
SIMULATED = "testing"
"""A backend without a runtime: its files are simulated graphs."""


HOMES: Mapping[str, tuple[str, ...]] = {
    "torch": (*TORCH, SIMULATED),
    "torchao": ("backends/tflite", SIMULATED),
    "torchvision": ("compat",),
    "ultralytics": ("checkpoints", "programs", "data", "training", "measurement", "compat"),
    "litert_torch": ("backends/tflite",),
    "ai_edge_litert": ("backends/tflite",),
    "ai_edge_quantizer": ("backends/tflite",),
    "flatbuffers": ("backends/tflite",),
    "tensorflow": ("backends/tflite",),
    "tflite_micro": ("backends/tflite_micro",),
    "openvino": ("backends/openvino",),
    "nncf": ("backends/openvino",),
    "tensorrt": ("backends/tensorrt",),
    "onnx": (*ONNX, "backends/tensorrt"),  # TensorRT reads an ONNX graph, which its rules are checked on
    "onnx_ir": (*ONNX, "backends/tensorrt"),
    "onnxscript": ONNX,
    "onnxruntime": ONNX,
    "matplotlib": ("compat",),
    "jinja2": ("reporting/page",),
    "markupsafe": ("reporting/page",),
    "ray": ("execution/ray",),
    "rich": ("cli",),
    "typer": ("cli",),
}
"""Where a package is imported (paths below `qexport/`): its own backend's folder, and what is said beside it."""

PUBLIC = (
    "qexport/decode/masks.py",  # masks from the raw outputs of integer-only files, on the user's device
    "qexport/simulation/fake_quant.py",  # a plan with gradients, for training loops
    "qexport/integrations",  # what users hook into the loops of other programs
    "qexport/testing",  # a backend that needs no runtime, for the tests of plug-ins
)
"""What is there for users alone."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50

RULES: Mapping[str, Callable[[Path], list[Violation]]] = {
    "floors": lambda root: floors_respected(root, FLOORS),
    "circles": no_circles,
    "runtimes": lambda root: runtimes_at_home(root, HOMES),
    "prints": lambda root: one_file_prints(root, "cli/output.py"),
    "processes": lambda root: one_file_starts_processes(root, "system/guard.py"),
    "job": lambda root: job_stays_above(root, KNOW_THE_JOB),
    "files": lambda root: files_are_short(root, MAX_FILE_LINES),
    "functions": lambda root: functions_are_short(root, MAX_FUNCTION_LINES),
    "packages": packages_say_what_they_are,
    "state": no_module_state,
    "tests": nothing_imports_tests,
    "unused files": lambda root: every_file_is_used(root, PUBLIC),
    "unused names": lambda root: every_definition_is_used(root, PUBLIC),
    "copies": nothing_is_there_twice,
}

EXCEPTIONS: Mapping[str, Mapping[str, str]] = {
    "functions": {
        "qexport/cli/app.py: export_command": "typer reads the options from the signature: one parameter for each",
        "qexport/cli/qat.py: qat_command": "as export_command",
    },
    "prints": {
        "qexport/backends/tensorrt/build_engine.py": "a script of its own, copied beside the graph to the device",
    },
    "runtimes": {
        "qexport/inspection/cross_check.py: torch": "Ultralytics' metrics, which compare two runtimes, take tensors",
    },
    "state": {
        "qexport/checkpoints/unpickle.py: _standing_for": "two pickled references to a class have to be one object",
        "qexport/compat/patches.py: _taken_out": "as _uses, of environment variables",
        "qexport/compat/patches.py: _uses": "which thread sees a replaced function: patches are process-wide by nature",
        "qexport/compat/patches.py: _values": "as _uses, of environment variables",
        "qexport/compat/torchvision.py: _kept_alive": "torch.library.Library unregisters its operators when collected",
        "qexport/plugins.py: _installed": "distributions on a path do not change while a process runs",
        "qexport/system/json_form.py: _hints": "annotations of a class do not change, and are read for every entry",
        "qexport/system/scratch.py: _begun": "what a signal has to remove, at any moment and from another thread",
        "qexport/system/scratch.py: _made": "as _begun",
        "qexport/system/scratch.py: _owned": "as _begun",
        "qexport/system/signals.py: at_end": "what a signal calls; `scratch` registers itself",
        "qexport/system/signals.py: stop_requests": "what a signal makes, which no object is handed to",
        "qexport/system/signals.py: time_limits": "as stop_requests, of what the alarm says",
        "qexport/testing/program.py: program": "captured once for all checks of the contract",
    },
    "processes": {
        "qexport/testing/contract.py": "a check of the tests of backends, not of a run",
    },
    "unused files": {},
    "unused names": {
        "qexport/compat/patches.py: PATCHES": "the list of what is changed, for readers and for its test",
    },
}
"""Rule → where it does not hold, and why. An entry that is not needed any more fails, too."""


@pytest.mark.parametrize("rule", RULES)
def test_the_package_holds(rule: str) -> None:
    excused = EXCEPTIONS.get(rule, {})
    assert [violation for violation in RULES[rule](ROOT) if violation.where not in excused] == []


@pytest.mark.parametrize("rule", EXCEPTIONS)
def test_exceptions_are_still_needed(rule: str) -> None:
    assert EXCEPTIONS[rule].keys() - {violation.where for violation in RULES[rule](ROOT)} == set()


CLEAN = {
    "pyproject.toml": '[project.scripts]\nqexport = "qexport.cli.app:main"\n',
    "Makefile": "check:\n\tpython -c 'from qexport.system.machine import advice'\n",
    "qexport/__init__.py": '"""The face."""\n\n__version__ = "1"\n',
    "qexport/cli/__init__.py": '"""Prints."""\n',
    "qexport/cli/app.py": "from qexport.cli.output import say\nfrom qexport.pipeline import export\n\n\n"
    "def main() -> None:\n    say(export())\n",
    "qexport/cli/output.py": "def say(line: object) -> None:\n    print(line)\n",
    "qexport/pipeline.py": "from qexport.job.options import ExportJob\nfrom qexport.planning.plan import plan\n\n\n"
    "def export() -> None:\n    plan(ExportJob())\n",
    "qexport/job/__init__.py": '"""Options."""\n',
    "qexport/job/options.py": "class ExportJob: ...\n",
    "qexport/planning/__init__.py": '"""Plans."""\n',
    "qexport/planning/plan.py": "from qexport import __version__\nfrom . import ranges\n\n\n"
    "def plan(job: object) -> str:\n    seen = []\n    seen.append(ranges.METHODS)\n    return __version__\n",
    "qexport/planning/ranges.py": 'MAX_DROP = 0.5\nMETHODS = {"mse": least(MAX_DROP)}\n\n\n'
    "def least(values):\n    small = [float(x) for x in values if x > 0]\n    return min(small, default=0.0)\n\n\n",
    "qexport/system/__init__.py": '"""The machine."""\n',
    "qexport/system/machine.py": "def advice() -> str:\n    return ''\n",
    "tests/test_plan.py": "from qexport.planning.plan import plan\n",
}
"""A package that breaks no rule."""


def package(root: Path, files: Mapping[str, str]) -> Path:
    """Writes `CLEAN` with more text: a file of `files` that is there already is continued."""
    for path in CLEAN.keys() | files.keys():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(CLEAN.get(path, "") + files.get(path, ""), encoding="utf-8")
    return root


@pytest.mark.parametrize("rule", RULES)
def test_a_clean_package_breaks_nothing(rule: str, tmp_path: Path) -> None:
    assert RULES[rule](package(tmp_path, {})) == []


PLAN, RANGES, MACHINE = "qexport/planning/plan.py", "qexport/planning/ranges.py", "qexport/system/machine.py"
UP = f"{PLAN} -> qexport/pipeline.py"
COPY = "def {0}({1}):\n    small = [float(x) for x in {1} if x > 0]\n    return min(small, default=0.0)\n"
PLANTED = [
    ("floors", PLAN, "from qexport.pipeline import export\n", UP),
    ("floors", PLAN, "import qexport.pipeline\n", UP),
    ("floors", PLAN, "def late() -> None:\n    from qexport import pipeline\n", UP),
    ("floors", PLAN, "if TYPE_CHECKING:\n    from qexport.pipeline import export\n", UP),
    ("floors", PLAN, "from ..pipeline import export\n", UP),
    ("floors", PLAN, 'import_module("qexport.pipeline")\n', UP),
    ("floors", PLAN, "from qexport import export\n", f"{PLAN} -> qexport/__init__.py"),
    ("floors", "qexport/helpers.py", "", "qexport/helpers.py"),
    ("circles", RANGES, "def late() -> None:\n    from .plan import plan\n", f"{PLAN} -> {RANGES} -> {PLAN}"),
    ("runtimes", PLAN, "def late() -> None:\n    import tensorrt.plugins\n", f"{PLAN}: tensorrt"),
    ("runtimes", "qexport/reporting/page.py", "from torch import nn\n", "qexport/reporting/page.py: torch"),
    ("prints", PLAN, "print(1)\n", PLAN),
    ("prints", PLAN, "sys.stdout.buffer.write(b'')\n", PLAN),
    ("prints", "qexport/cli/app.py", "Console().print('[red]')\n", "qexport/cli/app.py"),
    ("prints", "qexport/cli/app.py", "Text('\\x1b')\n", "qexport/cli/app.py"),
    ("processes", PLAN, "subprocess.run(['true'])\n", PLAN),
    ("processes", PLAN, "multiprocessing.get_context('spawn').Process()\n", PLAN),
    ("job", PLAN, "def late(job: 'ExportJob') -> None: ...\n", PLAN),
    ("job", PLAN, "from qexport.job import options\n", PLAN),
    ("files", RANGES, "# more\n" * MAX_FILE_LINES, RANGES),
    ("functions", RANGES, "def long() -> None:\n" + "    pass\n" * MAX_FUNCTION_LINES, f"{RANGES}: long"),
    ("packages", "qexport/data/__init__.py", "# no docstring\n", "qexport/data/__init__.py"),
    ("packages", "qexport/data/images.py", "", "qexport/data"),
    ("state", RANGES, "FOUND: dict[str, int] = {}\n", f"{RANGES}: FOUND"),
    ("state", RANGES, "FOUND = WeakKeyDictionary()\n", f"{RANGES}: FOUND"),
    ("state", RANGES, "def learn() -> None:\n    METHODS['mae'] = 2\n", f"{RANGES}: METHODS"),
    ("state", RANGES, "def learn() -> None:\n    METHODS.update(mae=2)\n", f"{RANGES}: METHODS"),
    ("state", RANGES, "def learn() -> None:\n    global METHODS\n", f"{RANGES}: METHODS"),
    ("state", RANGES, "@functools.lru_cache(maxsize=1)\ndef learn() -> None: ...\n", f"{RANGES}: learn"),
    ("tests", RANGES, "def late() -> None:\n    import test_plan\n", RANGES),
    ("unused files", "qexport/planning/old.py", "", "qexport/planning/old.py"),
    ("unused names", RANGES, "def old() -> None:\n    old()\n", f"{RANGES}: old"),
    ("unused names", RANGES, "class Old: ...\n", f"{RANGES}: Old"),
    ("unused names", MACHINE, "OLD = 1\n", f"{MACHINE}: OLD"),
    ("copies", MACHINE, COPY.format("same", "other"), f"{RANGES}: least = {MACHINE}: same"),
    ("copies", MACHINE, "MAX_DROP = 0.5\n", f"{RANGES}: MAX_DROP = {MACHINE}: MAX_DROP"),
]


@pytest.mark.parametrize(("rule", "path", "text", "where"), PLANTED)
def test_a_planted_violation_is_found(rule: str, path: str, text: str, where: str, tmp_path: Path) -> None:
    assert [violation.where for violation in RULES[rule](package(tmp_path, {path: text}))] == [where]


def test_every_rule_has_a_planted_violation() -> None:
    assert {planted[0] for planted in PLANTED} == RULES.keys()
    assert (ROOT / PACKAGE / "pipeline.py").is_file()


def test_tests_are_no_users(tmp_path: Path) -> None:
    files = {RANGES: "def old() -> None: ...\n", "tests/test_ranges.py": "from qexport.planning.ranges import old\n"}
    found = RULES["unused names"](package(tmp_path, files))
    assert [violation.where for violation in found] == [f"{RANGES}: old"]


def test_scripts_beside_the_package_are_users(tmp_path: Path) -> None:
    files = {RANGES: "def old() -> None: ...\n", "benchmarks/run.py": "from qexport.planning.ranges import old\n"}
    assert RULES["unused names"](package(tmp_path, files)) == []
