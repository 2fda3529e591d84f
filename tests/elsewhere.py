"""An ONNX detector and a classifier that no Ultralytics code had a part in, for the tests of ONNX input."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

SIZE = 96
CLASSES = 3
STRIDES = (8, 16)


class Block(nn.Sequential):
    """Convolution, batch normalisation, activation."""

    def __init__(self, given: int, made: int, kernel: int = 3, stride: int = 1, activation: nn.Module | None = None):
        super().__init__(
            nn.Conv2d(given, made, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(made),
            activation or nn.SiLU(),
        )


class Detector(nn.Module):
    """Backbone, neck and decoupled heads with the decode in the graph, as YOLOX has it (Ge et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shallow = Block(12, 16), Block(16, 32, stride=2)
        self.third, self.fourth = Block(32, 32, stride=2), Block(32, 32, stride=2)
        self.neck = Block(64, 32, 1)
        self.classes = nn.ModuleList(Block(32, 32) for _ in STRIDES)
        self.places = nn.ModuleList(Block(32, 32) for _ in STRIDES)
        self.class_logits = nn.ModuleList(nn.Conv2d(32, CLASSES, 1) for _ in STRIDES)
        self.boxes = nn.ModuleList(nn.Conv2d(32, 4, 1) for _ in STRIDES)
        self.objects = nn.ModuleList(nn.Conv2d(32, 1, 1) for _ in STRIDES)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, anchors, 4 + 1 + classes): centre and size in pixels, objectness, class scores."""
        x = torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)
        third = self.third(self.shallow(self.stem(x)))
        fourth = self.fourth(third)
        third = self.neck(torch.cat((nn.functional.interpolate(fourth, scale_factor=2.0), third), 1))
        levels = []
        for index, features in enumerate((third, fourth)):
            classes, places = self.classes[index](features), self.places[index](features)
            scores = self.objects[index](places).sigmoid(), self.class_logits[index](classes).sigmoid()
            levels.append(torch.cat((self.boxes[index](places), *scores), 1).flatten(2))
        rows = torch.cat(levels, 2).permute(0, 2, 1)
        grid, stride = _grid()
        return torch.cat(((rows[..., :2] + grid) * stride, rows[..., 2:4].exp() * stride, rows[..., 4:]), -1)


def _grid() -> tuple[Tensor, Tensor]:
    cells, strides = [], []
    for stride in STRIDES:
        side = torch.arange(SIZE // stride, dtype=torch.float32)
        rows, columns = torch.meshgrid(side, side, indexing="ij")
        cells.append(torch.stack((columns, rows), 2).view(1, -1, 2))
        strides.append(torch.full((1, len(side) ** 2, 1), float(stride)))
    return torch.cat(cells, 1), torch.cat(strides, 1)


class Classifier(nn.Module):
    """What mobile classifiers have: a depthwise convolution, ReLU6, HardSwish, squeeze and excitation, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 16, stride=2, activation=nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.LeakyReLU(0.1))
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.last = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.Hardswish())
        self.answer = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, 7)."""
        x = self.deep(self.stem(x))
        weight = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu())
        x = self.last(x + x * nn.functional.hardsigmoid(weight))
        answer: Tensor = self.answer(x.mean((2, 3)))
        return answer


def settled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded weights of a size that makes outputs differ from image to image, and statistics of a few batches."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        spread = (2 / max(parameter[0].numel(), 1)) ** 0.5 if parameter.dim() > 1 else 0.1
        centre = 1.0 if name.endswith(".weight") and parameter.dim() == 1 else 0.0
        spread *= 0.04 if name.startswith("boxes") else 1.0  # what exp makes of wild sizes would hide all else
        parameter.data.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
        parameter.requires_grad_(False)
    module.train()
    for _ in range(8):
        module(torch.rand(4, 3, SIZE, SIZE, generator=generator))
    return module.eval()


def write(module: nn.Module, path: Path, names: tuple[str, str] = ("picture", "detections"), opset: int = 12) -> Path:
    """Export with the older exporter, in an operator set of its days, as most files that go round were."""
    example = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    torch.onnx.export(
        module,
        (example,),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=[names[0]],
        output_names=[names[1]],
    )
    return path


def changed(source: Path, path: Path, change: str) -> Path:
    """Spoil a file in one way."""
    proto = onnx.load(source)
    given = proto.graph.input[0]
    if change == "quantised":
        proto.graph.node.append(onnx.helper.make_node("QuantizeLinear", [given.name, "a", "b"], ["c"]))
    elif change == "two inputs":
        proto.graph.input.append(onnx.helper.make_tensor_value_info("size", onnx.TensorProto.FLOAT, [1, 2]))
    elif change == "half":
        given.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    elif change == "no image":
        del given.type.tensor_type.shape.dim[2:]
    elif change == "channels":
        given.type.tensor_type.shape.dim[1].dim_value = 6
    elif change == "weights elsewhere":
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
    elif change == "foreign":
        proto.graph.node[0].domain = "acme"
    path.write_bytes(proto.SerializeToString())
    return path
