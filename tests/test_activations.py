"""Activations that models are trained with: what each is called, planned as, and written as in a TFLite file."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyDecode, captured, lowering, seeded, statistics_of
from torch import Tensor, nn
from torch.fx import GraphModule

from qexport.backends.tflite.activations import FORMS, write_activations
from qexport.calibration.statistics import Statistics
from qexport.errors import InputError
from qexport.planning.integer_only import check_integer_only
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE, TFLITE_INTEGER, RuntimeProfile
from qexport.programs.captured_graph import module_of
from qexport.programs.program import Program

INTEGER = {
    "relu": (nn.ReLU(), "relu"),
    "relu6": (nn.ReLU6(), "relu6"),
    "between": (nn.Hardtanh(), "relu_n1_to_1"),
    "to_one": (nn.Hardtanh(0.0, 1.0), "clip"),
    "limits": (nn.Hardtanh(-2.0, 3.0), "clip_elsewhere"),
    "leaky": (nn.LeakyReLU(0.1), "leaky_relu"),
    "hardswish": (nn.Hardswish(), "hardswish"),
    "gelu": (nn.GELU(), "gelu"),
    "gelu_tanh": (nn.GELU("tanh"), "gelu"),
    "tanh": (nn.Tanh(), "tanh"),
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
}
"""Name → module, and the operation of the plan: TFLite has integer kernels for these."""
FLOAT = {
    "mish": (nn.Mish(), "mish"),
    "softplus": (nn.Softplus(beta=2.0), "softplus"),
    "elu": (nn.ELU(0.5), "elu"),
    "selu": (nn.SELU(), "selu"),
    "celu": (nn.CELU(2.0), "celu"),
    "hardsigmoid": (nn.Hardsigmoid(), "hardsigmoid"),
    "prelu": (nn.PReLU(8), "prelu"),
}
"""The same of those that TFLite has none for."""
EVERY = INTEGER | FLOAT


class Doubled(TinyDecode):
    """Computes with the raw boxes, as a real decode does: the converter then leaves it in float."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return torch.cat((boxes.flatten(2) * 2.0, scores.flatten(2).sigmoid()), dim=1)


class Active(nn.Module):
    """A layer and a projection for each of some activations, all of them summed."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Conv2d(3, 8, 3, padding=1) for name in names})
        self.acts = nn.ModuleDict({name: EVERY[name][0] for name in names})
        self.projections = nn.ModuleDict({name: nn.Conv2d(8, 8, 1) for name in names})
        self.box, self.cls = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)
        self.decode = Doubled()

    def forward(self, images: Tensor) -> Tensor:
        parts = [self.projections[n](self.acts[n](self.layers[n](images))) for n in self.layers]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        decoded: Tensor = self.decode(self.box(total), self.cls(total))
        return decoded


def active(*names: str) -> Program:
    return captured(seeded(Active(list(names))), (16, 16))


def images_of(count: int) -> Tensor:
    return torch.rand(count, 1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def observed(program: Program) -> dict[str, Statistics]:
    """What a program's values are on a few images, by PyTorch's interpreter."""
    seen: dict[str, list[np.ndarray]] = {}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                seen.setdefault(n.name, []).append(result.flatten().numpy())
            return result

    with torch.no_grad():
        for image in images_of(4):
            Watching(module_of(program)).run(image)
    arrays = {name: np.concatenate(each) for name, each in seen.items() if name in program.values}
    return {name: statistics_of(array, float(np.abs(array).max()) + 1e-3) for name, array in arrays.items()}


@cache
def every() -> tuple[Program, dict[str, Statistics]]:
    """A program with all of them, and what its values are."""
    program = active(*EVERY)
    return program, observed(program)


@pytest.mark.parametrize("name", EVERY)
def test_an_activation_has_the_name_of_its_layer(name: str) -> None:
    values = every()[0].values
    assert values[f"layers_{name}_{EVERY[name][1]}"].inputs == (f"layers_{name}_conv",)


SPELLINGS = {
    "relu6": (nn.functional.relu6, lambda x: nn.functional.hardtanh(x, 0.0, 6.0), lambda x: x.clamp(0, 6)),
    "relu": (nn.functional.relu, lambda x: x.clamp(min=0), lambda x: x.clamp_min(0)),
    "clip_elsewhere": (
        lambda x: nn.functional.hardtanh(x, -2, 4),
        lambda x: x.clamp(max=4, min=-2),
        lambda x: x.clip(-2.0, 4.0),
    ),
}


@pytest.mark.parametrize("operation", SPELLINGS)
def test_every_spelling_of_a_clamp_is_one_program(operation: str) -> None:
    class Spelled(Active):
        def __init__(self, act: object) -> None:
            super().__init__(["relu"])
            self.act = act

        def forward(self, images: Tensor) -> Tensor:
            total = self.act(self.layers["relu"](images))  # type: ignore[operator]
            decoded: Tensor = self.decode(self.box(total), self.cls(total))
            return decoded

    programs = [captured(seeded(Spelled(act)), (16, 16)) for act in SPELLINGS[operation]]
    assert len({program.fingerprint for program in programs}) == 1
    assert f"layers_relu_{operation}" in programs[0].values


@pytest.mark.parametrize("name", EVERY)
def test_what_tflite_computes_in_integers(name: str) -> None:
    program, statistics = every()
    plan = make_plan(program, statistics, TFLITE)
    layer, act = f"layers_{name}_conv", f"layers_{name}_{EVERY[name][1]}"
    assert layer in plan.integer
    assert (act in plan.integer) is (name in INTEGER)
    assert plan.is_quantised(act)  # the next layer reads it
    clamped = name in ("relu", "relu6", "between")
    assert plan.is_quantised(layer) is not clamped  # a fused kernel has no tensor between


@pytest.mark.parametrize("profile", [ONNXRUNTIME, OPENVINO, TENSORRT], ids=lambda profile: profile.name)
def test_other_runtimes_compute_the_layers_of_every_activation_in_integers(profile: RuntimeProfile) -> None:
    program, statistics = every()
    plan = make_plan(program, statistics, profile)
    layers = {value.name for value in program.values.values() if value.weight}
    assert layers - {"box_conv", *(f"layers_{name}_conv" for name in EVERY)} <= plan.integer


@pytest.mark.parametrize("name", FLOAT)
def test_integer_only_refuses_an_activation_by_name_and_layer(name: str) -> None:
    with pytest.raises(InputError) as caught:
        check_integer_only(active(name, "relu"), frozenset())
    assert f"layers_{name}_{EVERY[name][1]} has no integer kernel in TFLite: {EVERY[name][1]}" in str(caught.value)
    assert "--precision int8" in caught.value.remedy


def test_integer_only_takes_the_others() -> None:
    check_integer_only(active(*INTEGER), frozenset())


def test_integer_only_refuses_what_is_to_be_kept_float_or_torn() -> None:
    with pytest.raises(InputError, match="layers_relu_conv is to be kept float"):
        check_integer_only(active("relu"), frozenset({"layers_relu_conv"}))
    with pytest.raises(InputError, match="layers_first_tanh stays float"):
        check_integer_only(captured(seeded(Joined()), (16, 16)), frozenset())


class Joined(nn.Module):
    """A tangent hyperbolic, in -1..1, is joined with a sum that is larger: TFLite's kernels share no scale there."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Conv2d(3, 8, 3, padding=1) for name in ("first", "second")})
        self.box, self.cls = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 2, 1)
        self.decode = Doubled()

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.layers["first"](images).tanh(), self.layers["second"](images).relu()
        joined = torch.cat((first, first + second), 1)
        decoded: Tensor = self.decode(self.box(joined), self.cls(joined))
        return decoded


def test_a_prescribed_scale_is_not_imposed_on_what_it_is_joined_with() -> None:
    program = captured(seeded(Joined()), (16, 16))
    statistics = observed(program)
    plan = make_plan(program, statistics, TFLITE, "minmax")
    joined, tanh = plan.tensors["program_cat"], plan.tensors["layers_first_tanh"]
    assert joined.scale[0] * 255 == pytest.approx(statistics["program_add"].maximum + 1, rel=0.3)
    assert tanh.scale == joined.scale
    assert "layers_first_tanh" not in plan.integer


@pytest.mark.parametrize("name", [name for name in FLOAT if name != "prelu"])
def test_the_forms_without_choices_are_pytorchs_functions(name: str) -> None:
    module = EVERY[name][0]
    values = torch.cat((torch.linspace(-90, 90, 2001), torch.linspace(-3, 3, 999)))
    exported = torch.export.export(module, (values,)).module(check_guards=False)
    assert isinstance(exported, GraphModule)
    assert any(node.target in FORMS for node in exported.graph.nodes)
    write_activations(exported)
    exported.recompile()
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert not any(target in FORMS or "where" in str(target) for target in targets)
    torch.testing.assert_close(exported(values), module(values), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("precision", ["int8", pytest.param("int8-full", marks=pytest.mark.slow)])
def test_files_hold_the_kernels_and_compute_the_plan(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    from qexport.backends.tflite.backend import TFLiteBackend, interpreter
    from qexport.backends.tflite.operators import read_graph
    from qexport.simulation.rewrite import simulated
    from qexport.verification.verify import check_plan

    program = every()[0] if precision == "int8" else active(*INTEGER)
    profile = TFLITE if precision == "int8" else TFLITE_INTEGER
    plan, path = make_plan(program, observed(program), profile, "minmax"), tmp_path / "active.tflite"
    TFLiteBackend().lower(lowering(program, precision, plan), path)
    operators = read_graph(path).operators
    kinds = Counter(operator.kind for operator in operators if operator.outputs[0].dtype == "INT8")
    expected = {"LEAKY_RELU": 1, "HARD_SWISH": 1, "GELU": 2, "TANH": 1, "LOGISTIC": 1}
    assert {kind: kinds[kind] for kind in expected} == expected
    fused = Counter(o.options.fusedActivationFunction for o in operators if o.kind == "CONV_2D")
    assert (fused[1], fused[2], fused[3]) == (1, 1, 1)  # RELU, RELU_N1_TO_1, RELU6
    layers = [o for o in operators if o.kind == "CONV_2D"]
    assert {o.outputs[0].dtype for o in layers} == {"INT8"}
    assert check_plan(program, plan, TFLiteBackend().read(path)) >= 2 * len(layers)
    if precision == "int8":
        loaded, image = interpreter(path, 1), images_of(1)[0]
        loaded.set_tensor(loaded.get_input_details()[0]["index"], image.numpy())
        loaded.invoke()
        actual = loaded.get_tensor(loaded.get_output_details()[0]["index"])
        with torch.no_grad():
            expected_output = simulated(program, plan)(image).numpy()
        assert np.corrcoef(actual.ravel(), expected_output.ravel())[0, 1] > 0.999
