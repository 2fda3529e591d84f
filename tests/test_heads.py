"""Split heads against Ultralytics' own heads on a real image."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from conftest import captured, demo_checkpoint, demo_image, seeded
from torch import Tensor

from qexport.errors import InputError
from qexport.programs.heads import split_head
from qexport.programs.torch_decode import anchor_points

WIDE = (256, 320)


def reference(model: Any, images: Tensor, end2end: bool) -> Tensor:
    """What Ultralytics computes for `images`, with a model that nothing of ours has touched."""
    model.model[-1].end2end = end2end
    with torch.no_grad():
        predictions, _ = model(images)
    assert isinstance(predictions, Tensor)
    return predictions


def untrained(name: str) -> Any:
    """An Ultralytics model with seeded weights and running statistics that are not all zero and one."""
    return copy.deepcopy(_untrained(name))


@cache
def _untrained(name: str, seed: int = 0) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    model: Any = DetectionModel(name, nc=5, verbose=False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif key.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    # DFL's bins are a parameter, too: 0, 1, 2, … by definition.
    dfl = model.model[-1].dfl.conv.weight
    dfl.data.copy_(torch.arange(dfl.numel(), dtype=torch.float32).view_as(dfl))
    return model.float().eval().requires_grad_(False)


@pytest.mark.parametrize("imgsz", [(320, 320), WIDE], ids=["square", "wide"])
def test_the_one_to_many_head_is_ultralytics_own(imgsz: tuple[int, int]) -> None:
    images = demo_image(imgsz)
    expected = reference(demo_checkpoint().module, images, end2end=False)
    with torch.no_grad():
        actual = split_head(demo_checkpoint().module, "one2many", imgsz)(images)
    assert actual.shape == expected.shape == (1, 4 + 6, imgsz[0] * imgsz[1] * 21 // 1024)
    assert expected[:, 4:].max() > 0.5  # there is something to see in the image
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("imgsz", [(320, 320), WIDE], ids=["square", "wide"])
def test_the_end_to_end_head_is_ultralytics_own(imgsz: tuple[int, int]) -> None:
    images = demo_image(imgsz)
    expected = reference(demo_checkpoint().module, images, end2end=True)
    with torch.no_grad():
        actual = split_head(demo_checkpoint().module, "end2end", imgsz)(images)
    assert actual.shape == expected.shape == (1, 300, 6)
    confident = int((expected[0, :, 4] > 0.25).sum())
    assert confident >= 1
    torch.testing.assert_close(actual[0, :confident], expected[0, :confident], rtol=1e-4, atol=1e-3)
    # Further down scores of a thousandth may tie and swap places, but they are the same scores.
    torch.testing.assert_close(actual[..., 4], expected[..., 4], rtol=1e-3, atol=1e-5)


def test_the_end_to_end_head_keeps_a_class_and_box_of_one_anchor_together() -> None:
    """Every row, not only the confident ones: its score is that of its class at an anchor with its box."""
    images = demo_image((64, 96))
    program = split_head(demo_checkpoint().module, "end2end", (64, 96))
    with torch.no_grad():
        boxes, scores = program.raw_outputs(program.features(images))
        rows = program(images)[0]
    flat_scores = torch.cat([s[0].flatten(1) for s in scores], dim=1).sigmoid()
    centres, strides = anchor_points([8, 16, 32], (64, 96))
    distances = torch.cat([b[0].flatten(1) for b in boxes], dim=1).T
    corners = torch.cat((centres - distances[:, :2], centres + distances[:, 2:]), dim=1) * strides
    assert rows.shape == (8 * 12 + 4 * 6 + 2 * 3, 6)  # as many as there are anchors
    assert (rows[:-1, 4] >= rows[1:, 4]).all()
    for row in rows:
        anchor = int((corners - row[:4]).abs().sum(dim=1).argmin())
        torch.testing.assert_close(corners[anchor], row[:4], rtol=1e-4, atol=1e-3)
        assert float(flat_scores[int(row[5]), anchor]) == pytest.approx(float(row[4]), abs=1e-5)


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolov8n.yaml"])
def test_a_head_with_a_distance_distribution_is_ultralytics_own(name: str) -> None:
    images = demo_image((96, 128))
    expected = reference(untrained(name), images, end2end=False)
    split = split_head(untrained(name), None, (96, 128))
    with torch.no_grad():
        actual = split(images)
    assert split.decode.layout.reg_max == 16
    assert not split.decode.layout.end2end
    assert expected[:, :4].std() > 1
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-2)


def test_a_distribution_head_can_be_captured() -> None:
    program = captured(split_head(untrained("yolo11n.yaml"), None, (64, 64)), (64, 64))
    assert [program.values[name].shape for name in program.raw.boxes] == [
        (1, 64, 8, 8),
        (1, 64, 4, 4),
        (1, 64, 2, 2),
    ]
    assert [program.values[name].shape[1] for name in program.raw.scores] == [5, 5, 5]


def test_suppression_inside_keeps_what_ultralytics_keeps() -> None:
    """The same rows as its NMS with several classes for one anchor, as its validator runs it."""
    from ultralytics.utils.nms import non_max_suppression

    for index in range(2):
        images = demo_image((320, 320), index)
        plain = reference(demo_checkpoint().module, images, end2end=False)
        expected = non_max_suppression(plain, conf_thres=0.05, iou_thres=0.7, multi_label=True)[0]
        with torch.no_grad():
            rows = split_head(demo_checkpoint().module, None, (320, 320), nms=True)(images)
        assert rows.shape == (1, 300, 6)
        kept = rows[0][rows[0, :, 4] > 0.05]
        assert 1 <= len(expected) < int((plain[0, 4:] > 0.05).sum())  # there was something to suppress
        torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-3)


def test_the_end_to_end_head_and_suppression_exclude_each_other() -> None:
    with pytest.raises(InputError, match="needs no NMS"):
        split_head(demo_checkpoint().module, "end2end", (64, 64), nms=True)


def test_a_batch_of_two_is_two_images() -> None:
    split = split_head(demo_checkpoint().module, "end2end", (64, 64))
    images = torch.cat([demo_image((64, 64), index) for index in (0, 1)])
    with torch.no_grad():
        together = split(images)
        alone = torch.cat([split(images[:1]), split(images[1:])])
    assert not torch.equal(together[0], together[1])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


def test_anchor_points_by_hand() -> None:
    points, strides = anchor_points([8, 16], (16, 32))
    assert points.tolist() == [
        *([0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [3.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5], [3.5, 1.5]),
        *([0.5, 0.5], [1.5, 0.5]),
    ]
    assert strides.flatten().tolist() == [8.0] * 8 + [16.0] * 2


def test_without_a_choice_the_end_to_end_head_is_taken_where_there_is_one() -> None:
    assert split_head(demo_checkpoint().module, None, (64, 64)).decode.layout.end2end


def test_a_model_without_an_end_to_end_head_is_refused_one() -> None:
    with pytest.raises(InputError, match=r"no end-to-end head: use --head one2many"):
        split_head(untrained("yolo11n.yaml"), "end2end", (64, 64))


def test_a_model_whose_one_to_many_head_is_gone_is_refused_it() -> None:
    module = demo_checkpoint().module
    module.model[-1].end2end = True
    fused = module.fuse(verbose=False)
    with pytest.raises(InputError, match=r"removed by fusion: use --head end2end"):
        split_head(fused, "one2many", (64, 64))


def test_another_head_is_named_in_its_refusal() -> None:
    model = untrained("yolo11n.yaml")
    model.model[-1] = seeded(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(InputError, match="head Conv2d is not supported"):
        split_head(model, None, (64, 64))
