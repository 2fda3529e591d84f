"""Bodies of ONNX files as torch computes them: operators against ONNX Runtime, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_graphs import PIXELS, Graph, picture
from numpy.typing import NDArray

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

import onnxruntime

from qexport.errors import ConversionError
from qexport.programs.onnx.graph import OnnxGraph

FLOAT = onnx.TensorProto.FLOAT


def proto_of(graph: Graph, opset: int, shape: tuple[int | str, ...] = PIXELS) -> onnx.ModelProto:
    made = onnx.helper.make_graph(
        graph.nodes,
        "made",
        [onnx.helper.make_tensor_value_info("images", FLOAT, shape)],
        [onnx.helper.make_tensor_value_info(graph.x, FLOAT, None)],
        graph.constants,
    )
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)


def graph_of(graph: Graph, opset: int = 18, shape: tuple[int | str, ...] = PIXELS) -> OnnxGraph:
    """Its last node is where the body ends."""
    return OnnxGraph(ir.serde.deserialize_model(proto_of(graph, opset, shape)), {}, [graph.x])


def ran(proto: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return made


def check(graph: Graph, opset: int = 18) -> torch.fx.GraphModule:
    """Torch computes what ONNX Runtime does, on a picture that translation has not seen."""
    made = graph_of(graph, opset)
    assert made.obstacle == ""
    (ours,) = made.module(torch.from_numpy(picture()))
    np.testing.assert_allclose(ours.detach().numpy(), ran(proto_of(graph, opset), picture()), rtol=1e-4, atol=1e-5)
    assert graph.x in {node.name for node in made.module.graph.nodes}
    return made.module


def conv(graph: Graph, **attributes: Any) -> None:
    graph.add("Conv", "images", graph.weight(6, 3 // attributes.get("group", 1), 3, 3), graph.weight(6), **attributes)


def up(graph: Graph, **attributes: Any) -> None:
    groups = attributes.get("group", 1)
    weight = graph.weight(3, 6 // groups, *attributes.get("kernel_shape", [3, 3]))
    graph.add("ConvTranspose", "images", weight, graph.weight(6), **attributes)


def numbers(graph: Graph, *each: float, kind: type = np.int64) -> str:
    return graph.constant(np.array(each, kind))


def scalar(graph: Graph, number: float) -> str:
    return graph.constant(np.array(number, np.float32))


def centred(graph: Graph) -> str:
    """Pixels on both sides of zero."""
    return graph.add("Sub", "images", scalar(graph, 0.5))


def scaled(graph: Graph) -> str:
    return graph.add("Mul", centred(graph), scalar(graph, 8))


def of_scaled(name: str) -> Callable[[Graph], object]:
    return lambda graph: graph.add(name, scaled(graph))


def flat(graph: Graph, *shape: int) -> str:
    return graph.add("Reshape", "images", numbers(graph, *shape))


def parts(graph: Graph) -> None:
    outputs = ["a", "b"]
    graph.nodes.append(onnx.helper.make_node("Split", ["images", numbers(graph, 1, 2)], outputs, "split", axis=1))
    graph.add("Mul", "b", "a")


def resize(graph: Graph, by: tuple[float, ...] | None = None, to: tuple[int, ...] = (), **attributes: Any) -> None:
    scales = graph.constant(np.array([1, 1, *by], np.float32)) if by else ""
    sizes = graph.constant(np.array([1, 3, *to], np.int64)) if to else ""
    graph.add("Resize", "images", "", scales, sizes, **attributes)


def normalised(graph: Graph) -> None:
    positive = graph.constant(np.array([0.5, 1, 2], np.float32))
    graph.add("BatchNormalization", "images", graph.weight(3), graph.weight(3), graph.weight(3), positive, epsilon=0.01)


def layer_normalised(graph: Graph) -> None:
    graph.add("LayerNormalization", "images", graph.weight(16, 16), graph.weight(16, 16), axis=2, epsilon=0.01)


def masked(graph: Graph) -> None:
    mask = graph.constant(np.arange(16) % 3 == 0)
    graph.add("Where", mask, "images", scalar(graph, -2))


def from_shapes(graph: Graph) -> None:
    """Sizes are computed from the shape of what is reshaped, and a plane of numbers from it, too."""
    shape = graph.add("Shape", graph.add("Relu", "images"))
    channels = graph.add("Gather", shape, numbers(graph, 0, 1))
    sizes = graph.add("Concat", channels, numbers(graph, -1), axis=0)
    plane = graph.add("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(np.array([2.0], np.float32)))
    graph.add("Reshape", graph.add("Add", "relu0", plane), sizes)


Make = Callable[[Graph], object]

OPERATORS: dict[str, Make] = {
    "dilated": lambda g: conv(g, dilations=[2, 1], pads=[2, 1, 2, 1]),
    "strided": lambda g: conv(g, strides=[2, 1]),
    "grouped": lambda g: conv(g, group=3, pads=[1, 1, 1, 1]),
    "pads differ": lambda g: conv(g, pads=[0, 1, 2, 3], strides=[2, 2]),
    "same upper": lambda g: conv(g, auto_pad="SAME_UPPER", strides=[2, 2]),
    "same lower": lambda g: conv(g, auto_pad="SAME_LOWER", strides=[2, 2]),
    "valid": lambda g: conv(g, auto_pad="VALID"),
    "unbiased": lambda g: g.add("Conv", "images", g.weight(6, 3, 1, 1)),
    "one dimension": lambda g: g.add("Conv", flat(g, 1, 3, 256), g.weight(4, 3, 3), g.weight(4), pads=[1, 1]),
    "computed kernel": lambda g: g.add(
        "Conv", "images", g.add("Sigmoid", g.weight(4, 3, 3, 3)), g.weight(4), pads=[1] * 4
    ),
    "transposed": lambda g: up(g, strides=[2, 2], kernel_shape=[2, 2]),
    "transposed, padded": lambda g: up(g, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    "transposed, pads differ": lambda g: up(g, strides=[2, 2], pads=[0, 1, 1, 0]),
    "transposed, grouped, dilated": lambda g: up(g, group=3, dilations=[2, 2], strides=[2, 1]),
    "transposed, same": lambda g: up(g, auto_pad="SAME_UPPER", strides=[2, 2]),
    "transposed to a size": lambda g: up(g, output_shape=[32, 32], strides=[2, 2]),
    "gemm": lambda g: g.add("Gemm", flat(g, 3, 256), g.weight(5, 256), g.weight(5), transB=1),
    "gemm, unbiased": lambda g: g.add("Gemm", flat(g, 3, 256), g.weight(5, 256), transB=1),
    "gemm, plain": lambda g: g.add(
        "Gemm", flat(g, 3, 256), g.weight(3, 5), g.weight(256, 1), transA=1, alpha=2.0, beta=0.5
    ),
    "matmul": lambda g: g.add("MatMul", "images", g.weight(16, 5)),
    "matmul of images": lambda g: g.add("MatMul", "images", g.add("Transpose", "images", perm=[0, 1, 3, 2])),
    "max pool": lambda g: g.add("MaxPool", centred(g), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "max pool, pads differ": lambda g: g.add(
        "MaxPool", centred(g), kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]
    ),
    "max pool, same": lambda g: g.add("MaxPool", centred(g), kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    "max pool, ceil": lambda g: g.add("MaxPool", centred(g), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max pool, dilated": lambda g: g.add("MaxPool", centred(g), kernel_shape=[3, 3], dilations=[2, 2]),
    "average pool": lambda g: g.add("AveragePool", "images", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "average pool, zeros count": lambda g: g.add(
        "AveragePool", "images", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "average pool, pads differ": lambda g: g.add("AveragePool", "images", kernel_shape=[3, 3], pads=[0, 0, 2, 1]),
    "average pool, pads differ and count": lambda g: g.add(
        "AveragePool", "images", kernel_shape=[3, 3], pads=[0, 0, 2, 1], count_include_pad=1
    ),
    "global average": lambda g: g.add("GlobalAveragePool", "images"),
    "global maximum": lambda g: g.add("GlobalMaxPool", "images"),
    "batch normalisation": normalised,
    "instance normalisation": lambda g: g.add("InstanceNormalization", "images", g.weight(3), g.weight(3), epsilon=0.1),
    "layer normalisation": layer_normalised,
    "mean": lambda g: g.add("ReduceMean", "images", numbers(g, -1, 1), keepdims=0),
    "sum": lambda g: g.add("ReduceSum", "images", numbers(g, 2)),
    "sum of everything": lambda g: g.add("ReduceSum", "images"),
    "maximum": lambda g: g.add("ReduceMax", centred(g), numbers(g, 1)),
    "minimum": lambda g: g.add("ReduceMin", centred(g), numbers(g, 2, 3), keepdims=0),
    "add": lambda g: g.add("Add", "images", g.weight(3, 1, 1)),
    "subtract from": lambda g: g.add("Sub", scalar(g, 1), "images"),
    "divide": lambda g: g.add("Div", "images", g.add("Add", "images", scalar(g, 1))),
    "power": lambda g: g.add("Pow", "images", scalar(g, 3)),
    "greatest": lambda g: g.add("Max", "images", scalar(g, 0.3), g.weight(3, 1, 1)),
    "least": lambda g: g.add("Min", "images", scalar(g, 0.3)),
    "sum of tensors": lambda g: g.add("Sum", "images", "images", g.weight(1, 3, 1, 1)),
    **{
        name: of_scaled(name)
        for name in (
            *("Sigmoid", "Relu", "Tanh", "HardSwish", "HardSigmoid", "Mish", "Softplus", "Erf", "Exp", "Neg", "Abs"),
            *("LeakyRelu", "Elu", "Celu", "Selu", "Sin", "Cos", "Softmax", "LogSoftmax", "Reciprocal"),
            *("Floor", "Ceil", "Identity"),
        )
    },
    "Sqrt": lambda g: g.add("Sqrt", "images"),
    "Log": lambda g: g.add("Log", g.add("Add", "images", scalar(g, 0.1))),
    "leaky, steeper": lambda g: g.add("LeakyRelu", centred(g), alpha=0.3),
    "elu, other": lambda g: g.add("Elu", centred(g), alpha=0.3),
    "hard sigmoid, torch's": lambda g: g.add("HardSigmoid", scaled(g), alpha=1 / 6, beta=0.5),
    "prelu": lambda g: g.add("PRelu", centred(g), g.weight(3, 1, 1)),
    "prelu, one slope": lambda g: g.add("PRelu", centred(g), g.weight(1)),
    "clip": lambda g: g.add("Clip", scaled(g), scalar(g, -1), scalar(g, 2)),
    "clip below": lambda g: g.add("Clip", scaled(g), scalar(g, 0)),
    "clip above": lambda g: g.add("Clip", scaled(g), "", scalar(g, 1)),
    "softmax of channels": lambda g: g.add("Softmax", scaled(g), axis=1),
    "where": masked,
    "concatenation": lambda g: g.add("Concat", "images", g.weight(1, 1, 16, 16), centred(g), axis=1),
    "split": parts,
    "slice": lambda g: g.add(
        "Slice", "images", numbers(g, 1, -9), numbers(g, 2**62, -1), numbers(g, 2, -1), numbers(g, 3, 2)
    ),
    "slice backwards": lambda g: g.add(
        "Slice", "images", numbers(g, -1), numbers(g, -(2**63)), numbers(g, 3), numbers(g, -2)
    ),
    "slice of first axes": lambda g: g.add("Slice", "images", numbers(g, 0, 1), numbers(g, 1, 3)),
    "reshape": lambda g: g.add("Reshape", "images", numbers(g, 0, -1, 4, 32)),
    "flatten": lambda g: g.add("Flatten", "images", axis=2),
    "squeeze": lambda g: g.add("Squeeze", g.add("ReduceMean", "images", numbers(g, 1)), numbers(g, 1)),
    "unsqueeze": lambda g: g.add("Unsqueeze", "images", numbers(g, 2)),
    "transpose": lambda g: g.add("Transpose", "images", perm=[0, 2, 3, 1]),
    "transpose backwards": lambda g: g.add("Transpose", "images"),
    "expand": lambda g: g.add("Expand", g.add("ReduceMean", "images", numbers(g, 2)), numbers(g, 2, 1, 1, 8, 1)),
    "tile": lambda g: g.add("Tile", "images", numbers(g, 1, 2, 1, 3)),
    "gather": lambda g: g.add("Gather", "images", numbers(g, 2, -3, 2), axis=1),
    "gather one": lambda g: g.add("Gather", "images", g.constant(np.array(-1)), axis=2),
    "gather a table": lambda g: g.add("Gather", "images", g.constant(np.array([[0, 1], [15, -2]])), axis=3),
    "pad": lambda g: g.add("Pad", "images", numbers(g, 0, 1, 2, 0, 0, 0, 3, 1), scalar(g, 0.7)),
    "pad axes": lambda g: g.add("Pad", "images", numbers(g, 1, 2, 3, 4), "", numbers(g, -1, 2)),
    "pad, mirrored": lambda g: g.add("Pad", "images", numbers(g, 0, 0, 1, 2, 0, 0, 3, 4), mode="reflect"),
    "pad, edge": lambda g: g.add("Pad", "images", numbers(g, 0, 0, 1, 2, 0, 0, 3, 4), mode="edge"),
    "crop": lambda g: g.add("Pad", "images", numbers(g, 0, 0, -1, -2, 0, 0, 0, 0)),
    "space to depth": lambda g: g.add("SpaceToDepth", "images", blocksize=4),
    "depth to space": lambda g: g.add("DepthToSpace", flat(g, 1, 12, 8, 8), blocksize=2),
    "depth to space, CRD": lambda g: g.add("DepthToSpace", flat(g, 1, 12, 8, 8), blocksize=2, mode="CRD"),
    "cast": lambda g: g.add("Cast", "images", to=FLOAT),
    "sizes from shapes": from_shapes,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_computes_what_it_does_in_onnx_runtime(name: str) -> None:
    graph = Graph()
    OPERATORS[name](graph)
    check(graph)


def test_what_follows_from_shapes_is_a_constant_by_its_name() -> None:
    graph = Graph()
    from_shapes(graph)
    (plane,) = (node.output[0] for node in graph.nodes if node.op_type == "ConstantOfShape")
    held = [node for node in check(graph).graph.nodes if node.op == "get_attr"]
    assert [node.name for node in held] == [plane]


def test_an_open_batch_takes_more_images_than_one() -> None:
    graph = Graph()
    conv(graph, pads=[1] * 4)
    sizes = graph.add("Gather", graph.add("Shape", graph.x), numbers(graph, 0, 2), axis=0)
    graph.add("Reshape", "conv0", graph.add("Concat", sizes, numbers(graph, -1), axis=0))
    made, images = graph_of(graph, shape=("batch", 3, 16, 16)), picture(3, 3, 16, 16)
    (ours,) = made.module(torch.from_numpy(images))
    expected = ran(proto_of(graph, 18, ("batch", 3, 16, 16)), images)
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    graph = Graph()
    graph.add("Gelu", scaled(graph), approximate=approximate)
    check(graph, 20)


WHERE = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    where=st.sampled_from(WHERE),
    nearest=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    mode=st.sampled_from(["nearest", "linear"]),
    by=st.one_of(st.sampled_from([(2.0, 2.0), (3.0, 3.0), (0.5, 0.5), (1.5, 2.0), (4.0, 1.0)]), st.none()),
    to=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_resizing(where: str, nearest: str, mode: str, by: tuple[float, float] | None, to: tuple[int, int]) -> None:
    graph = Graph()
    resize(graph, by, () if by else to, mode=mode, coordinate_transformation_mode=where, nearest_mode=nearest)
    check(graph)


def test_doubling_is_torchs_own_operator() -> None:
    """The one that captured models have, by whichever of ONNX's rules that come to the same."""
    for where, nearest in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "floor")):
        graph = Graph()
        resize(graph, (2.0, 2.0), coordinate_transformation_mode=where, nearest_mode=nearest)
        is_own = bool(check(graph).graph.find_nodes(op="call_function", target=torch.ops.aten.upsample_nearest2d.vec))
        assert is_own is (nearest != "floor" or where == "asymmetric")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.one_of(st.tuples(*[st.integers(0, 3)] * 4), st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"])),
    group=st.sampled_from([1, 3]),
    kind=st.sampled_from(["Conv", "ConvTranspose"]),
)
def test_convolutions_of_every_kind(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, ...] | str,
    group: int,
    kind: str,
) -> None:
    graph = Graph()
    padding: dict[str, Any] = {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    if kind == "ConvTranspose":
        padding = {"pads": [0, *pads[1:]]} if not isinstance(pads, str) else {}
    shape = (6, 3 // group, *kernel) if kind == "Conv" else (3, 6 // group, *kernel)
    graph.add(
        *(kind, "images", graph.weight(*shape), graph.weight(6)),
        **{"strides": strides, "dilations": dilations, "group": group, **padding},
    )
    try:
        ran(proto_of(graph, 18), picture())
    except Exception:  # the runtime does not compute everything, and its errors share no base
        return
    check(graph)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda g: g.add("CumSum", g.x, numbers(g, 1)), r"operator CumSum of node cumsum\d has no tran"),
        (lambda g: resize(g, (2.0, 2.0), mode="cubic"), r"operator Resize of node resize\d has no .* mode = cubic"),
        (lambda g: resize(g, (0.5, 0.5), mode="linear", antialias=1), r"Resize of node resize\d .* antialias = 1"),
        (
            lambda g: g.add("Gather", g.x, g.add("ArgMax", g.x, axis=1), axis=1),
            r"operator ArgMax of node argmax0 has no",
        ),
        (
            lambda g: g.add("AveragePool", g.x, kernel_shape=[3, 3], pads=[0, 0, 2, 1], ceil_mode=1),
            r"operator AveragePool of node averagepool\d has no translation with ceil_mode = 1",
        ),
        (
            lambda g: g.add("Cast", g.add("Cast", g.x, to=onnx.TensorProto.INT32), to=FLOAT),
            r"operator Cast of node cast\d computes other numbers than float32",
        ),
        (lambda g: g.add("Relu", g.x, name="torch"), "whose name Python has another use for"),
    ],
)
def test_what_has_no_translation_is_named(make: Make, reason: str) -> None:
    graph = Graph()
    make(graph)
    made = graph_of(graph)
    with pytest.raises(ConversionError, match=reason):
        _ = made.module
    assert not made.instrumentable
    assert "\n" not in made.obstacle


def test_what_torch_computes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: an operator whose translation is wrong by a little."""
    from qexport.programs.onnx import torch_body
    from qexport.programs.onnx.torch_site import Call

    graph = Graph()
    graph.add("Sigmoid", "images")
    assert graph_of(graph).obstacle == ""
    wrong = {**torch_body.BUILDERS, "Sigmoid": lambda site: Call(torch.special.ndtr, (site.tensor(0),))}
    monkeypatch.setattr(torch_body, "BUILDERS", wrong)
    assert "torch computes sigmoid0 otherwise than ONNX Runtime, by 0." in graph_of(graph).obstacle
