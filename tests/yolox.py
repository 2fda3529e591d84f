"""YOLOX with Megvii's topology (Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv 2107.08430), exported to ONNX.

YOLOX-nano is depth 0.33, width 0.25 with depthwise convolutions; tests take it narrower.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32)


class BaseConv(nn.Module):
    """Convolution, batch normalisation, SiLU."""

    def __init__(self, given: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, made, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(made, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.act(self.bn(self.conv(x)))
        return made


class DWConv(nn.Module):
    """A depthwise convolution and one of single pixels."""

    def __init__(self, given: int, made: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = BaseConv(given, given, kernel, stride, groups=given)
        self.pconv = BaseConv(given, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.pconv(self.dconv(x))
        return made


class Focus(nn.Module):
    """Every second pixel of rows and columns becomes a channel."""

    def __init__(self, made: int) -> None:
        super().__init__()
        self.conv = BaseConv(12, made, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]
        made: Tensor = self.conv(torch.cat(corners, 1))
        return made


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = BaseConv(width, width, 1), DWConv(width, width, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv2(self.conv1(x))
        return made + x if self.shortcut else made


class CSPLayer(nn.Module):
    def __init__(self, given: int, made: int, count: int, shortcut: bool = True) -> None:
        super().__init__()
        half = made // 2
        self.conv1, self.conv2 = BaseConv(given, half, 1), BaseConv(given, half, 1)
        self.conv3 = BaseConv(2 * half, made, 1)
        self.m = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), 1))
        return made


class SPPBottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = BaseConv(width, width // 2, 1), BaseConv(width * 2, width, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        made: Tensor = self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return made


class CSPDarknet(nn.Module):
    def __init__(self, base: int, depth: int) -> None:
        super().__init__()
        self.stem = Focus(base)
        self.dark2 = nn.Sequential(DWConv(base, base * 2, 3, 2), CSPLayer(base * 2, base * 2, depth))
        self.dark3 = nn.Sequential(DWConv(base * 2, base * 4, 3, 2), CSPLayer(base * 4, base * 4, depth * 3))
        self.dark4 = nn.Sequential(DWConv(base * 4, base * 8, 3, 2), CSPLayer(base * 8, base * 8, depth * 3))
        self.dark5 = nn.Sequential(
            DWConv(base * 8, base * 16, 3, 2),
            SPPBottleneck(base * 16),
            CSPLayer(base * 16, base * 16, depth, shortcut=False),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        third = self.dark3(self.dark2(self.stem(x)))
        fourth = self.dark4(third)
        return third, fourth, self.dark5(fourth)


class PAFPN(nn.Module):
    def __init__(self, base: int, depth: int) -> None:
        super().__init__()
        low, middle, high = base * 4, base * 8, base * 16
        self.backbone = CSPDarknet(base, depth)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0, self.reduce_conv1 = BaseConv(high, middle, 1), BaseConv(middle, low, 1)
        self.C3_p4 = CSPLayer(2 * middle, middle, depth, shortcut=False)
        self.C3_p3 = CSPLayer(2 * low, low, depth, shortcut=False)
        self.bu_conv2, self.bu_conv1 = DWConv(low, low, 3, 2), DWConv(middle, middle, 3, 2)
        self.C3_n3 = CSPLayer(2 * low, middle, depth, shortcut=False)
        self.C3_n4 = CSPLayer(2 * middle, high, depth, shortcut=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        third, fourth, fifth = self.backbone(x)
        top = self.lateral_conv0(fifth)
        middle = self.reduce_conv1(self.C3_p4(torch.cat((self.upsample(top), fourth), 1)))
        low = self.C3_p3(torch.cat((self.upsample(middle), third), 1))
        middle = self.C3_n3(torch.cat((self.bu_conv2(low), middle), 1))
        return low, middle, self.C3_n4(torch.cat((self.bu_conv1(middle), top), 1))


class Head(nn.Module):
    """Decoupled: boxes and objectness from one branch, classes from the other."""

    def __init__(self, base: int, classes: int) -> None:
        super().__init__()
        width = base * 4
        self.stems = nn.ModuleList(BaseConv(base * 4 * 2**level, width, 1) for level in range(3))
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(nn.Sequential(DWConv(width, width, 3), DWConv(width, width, 3)) for _ in STRIDES)
            for _ in range(2)
        )
        self.cls_preds = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in STRIDES)
        self.reg_preds = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in STRIDES)
        self.obj_preds = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in STRIDES)

    def forward(self, levels: tuple[Tensor, ...]) -> Tensor:
        rows = []
        for index, level in enumerate(levels):
            x = self.stems[index](level)
            boxes = self.reg_convs[index](x)
            scores = self.obj_preds[index](boxes).sigmoid(), self.cls_preds[index](self.cls_convs[index](x)).sigmoid()
            rows.append(torch.cat((self.reg_preds[index](boxes), *scores), 1).flatten(2))
        return torch.cat(rows, 2).permute(0, 2, 1)


class YOLOX(nn.Module):
    """(n, 3, h, w), pixels of 0 to 255 in BGR → (n, anchors, 4 + 1 + classes): boxes, objectness, class scores.

    Boxes are as their layer gives them, or decoded to centre and size in pixels.
    """

    def __init__(self, width: float = 0.25, depth: float = 0.33, classes: int = 80, decoded: bool = True) -> None:
        super().__init__()
        base, count = int(64 * width), max(round(3 * depth), 1)
        self.backbone, self.head, self.decoded = PAFPN(base, count), Head(base, classes), decoded

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.head(self.backbone(x))
        if not self.decoded:
            return rows
        grid, stride = _grid(x.shape[2], x.shape[3])
        return torch.cat(((rows[..., :2] + grid) * stride, rows[..., 2:4].exp() * stride, rows[..., 4:]), -1)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    cells, strides = [], []
    for stride in STRIDES:
        rows, columns = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        cells.append(torch.stack((columns, rows), 2).view(1, -1, 2).float())
        strides.append(torch.full((1, rows.numel(), 1), float(stride)))
    return torch.cat(cells, 1), torch.cat(strides, 1)


def settled(size: int, width: float = 0.25, classes: int = 80, decoded: bool = True, seed: int = 0) -> YOLOX:
    """Untrained, with seeded weights and the statistics of a few batches of noise; few anchors have an object."""
    generator = torch.Generator().manual_seed(seed)
    model = YOLOX(width, classes=classes, decoded=decoded)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            spread = (2 / parameter[0].numel()) ** 0.5 * (0.2 if "reg_preds" in name else 1.0)
            parameter.data.copy_(spread * torch.randn(parameter.shape, generator=generator))
        elif name.endswith("bn.weight"):
            parameter.data.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        else:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        parameter.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "obj_preds" in name and name.endswith("bias"):
            parameter.data.sub_(4)
    model.train()
    for _ in range(30):
        model(255 * torch.rand(2, 3, size, size, generator=generator))
    return model.eval()


def write(model: nn.Module, path: Path, size: int) -> Path:
    """Export as Megvii's `export_onnx.py` does: the older exporter, operator set 11, `images` and `output`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated, and sizes become constants
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, size, size),),
            path,
            dynamo=False,
            opset_version=11,
            input_names=["images"],
            output_names=["output"],
        )
    return path
