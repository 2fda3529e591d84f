"""The float program of RT-DETR: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", 2023.

Its last decoder layer's box corrections and class logits are the raw outputs, and the decode adds the corrections to
the boxes before them. Coordinates, the choice of queries and normalisation stay float: see
`qexport.programs.token_layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qexport.detections.layout import HeadLayout
from qexport.errors import InputError
from qexport.programs.heads import gathered
from qexport.programs.token_layers import (
    Added,
    Attention,
    EncoderLayer,
    Exact,
    Normalised,
    Sampled,
    Stem,
    as_maps,
    as_rows,
    perceptron,
    pointwise,
)
from qexport.programs.torch_decode import max_detections, rows_of

FAR = 100.0
"""In place of the infinite logits of cells at the border: their sigmoid is one in float32, too."""


class QueryProgram(nn.Module):
    """A whole RT-DETR.

    Input: (batch, channels, height, width) float32 in 0..1, RGB.
    Output: see `QueryDecode`.
    """

    def __init__(self, model: Any, imgsz: tuple[int, int]) -> None:
        super().__init__()
        head = model.model[-1]
        self.save, self.sources = frozenset(model.save), head.f
        shapes = _shapes(model, imgsz)
        self.body = nn.ModuleList(_at_size(layer, shapes[layer.i]) for layer in list(model.model)[:-1])
        levels = tuple(shapes[source] for source in head.f)
        self.projections = nn.ModuleList(_fused(each) for each in head.input_proj)
        self.exact_cells, self.exact_mask = Joined(), Masked(levels)
        self.encoded, self.exact_norm = pointwise(head.enc_output[0]), Normalised(head.enc_output[1])
        self.encoder_scores = pointwise(head.enc_score_head)
        self.encoder_boxes = perceptron(head.enc_bbox_head)
        self.exact_chosen = Chosen(levels, head.num_queries)
        self.exact_first = Boxes()
        count = head.decoder.eval_idx + 1
        self.layers = nn.ModuleList(
            DecoderLayer(layer, head.dec_bbox_head[number], levels)
            for number, layer in enumerate(list(head.decoder.layers)[:count])
        )
        self.position = perceptron(head.query_pos_head)
        self.scores = pointwise(head.dec_score_head[count - 1])
        layout = HeadLayout(
            strides=(int(max(model.stride)),),
            imgsz=imgsz,
            classes=int(head.nc),
            end2end=True,
            head="queries",
            max_detections=max_detections(head),
        )
        self.decode = QueryDecode(layout)

    def forward(self, images: Tensor) -> Tensor:
        """Return the decoded output."""
        features = gathered(list(self.body), self.sources, self.save, images)
        maps = [projection(each) for projection, each in zip(self.projections, features, strict=True)]
        cells = self.exact_cells(maps)
        encoded = self.exact_norm(self.encoded(self.exact_mask(cells)))
        tokens, anchors = self.exact_chosen(encoded, self.encoder_scores(encoded))
        boxes = self.exact_first(self.encoder_boxes(tokens), anchors)
        layers: list[Any] = list(self.layers)
        last = layers.pop()
        for layer in layers:
            tokens = layer(tokens, boxes, cells, self.position)
            boxes = layer.exact_refined(layer.boxes(tokens), boxes)
        tokens = last(tokens, boxes, cells, self.position)
        decoded: Tensor = self.decode(last.boxes(tokens), self.scores(tokens), boxes)
        return decoded


class DecoderLayer(nn.Module):
    """One layer of the decoder: queries look at each other, then at the image around their boxes."""

    def __init__(self, layer: Any, boxes: Any, levels: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        cross = layer.cross_attn
        self.attention = Attention(layer.self_attn)
        self.values, self.offsets = pointwise(cross.value_proj), pointwise(cross.sampling_offsets)
        self.weights, self.out = pointwise(cross.attention_weights), pointwise(cross.output_proj)
        self.first, self.second, self.act = pointwise(layer.linear1), pointwise(layer.linear2), layer.act
        self.boxes = perceptron(boxes)
        self.exact_located, self.exact_place = Added(), BoxTokens()
        self.exact_sampled = Sampled(levels, cross.n_heads, cross.n_points)
        self.exact_norm1, self.exact_norm2 = Normalised(layer.norm1), Normalised(layer.norm2)
        self.exact_norm3, self.exact_refined = Normalised(layer.norm3), Refined()

    def forward(self, tokens: Tensor, boxes: Tensor, cells: Tensor, position: nn.Module) -> Tensor:
        """Return the queries' tokens (batch, channels, queries, 1) after this layer."""
        places = position(self.exact_place(boxes))
        tokens = self.exact_norm1(tokens, self.attention(self.exact_located(tokens, places), tokens))
        located = self.exact_located(tokens, places)
        sampled = self.exact_sampled(self.values(cells), self.offsets(located), self.weights(located), boxes)
        tokens = self.exact_norm2(tokens, self.out(sampled))
        updated: Tensor = self.exact_norm3(tokens, self.second(self.act(self.first(tokens))))
        return updated


class Joined(Exact):
    """Maps of all levels as the tokens of one, joined as rows.

    OpenVINO 2026.4 gives what is joined along the tokens a scale for each, and then computes with floats.
    """

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Each (batch, channels, height, width); the result is (batch, channels, cells of all levels, 1)."""
        return as_maps(torch.cat([as_rows(each) for each in maps], dim=1))


class Masked(Exact):
    """Zero for cells whose own box would leave the image."""

    mask: Tensor

    def __init__(self, levels: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.register_buffer("mask", _anchors(levels)[1].float()[:, None, :, None])

    def forward(self, cells: Tensor) -> Tensor:
        """(batch, channels, cells, 1) to the same."""
        return cells * self.mask


class Chosen(Exact):
    """The cells with the best class score become queries."""

    anchors: Tensor

    def __init__(self, levels: tuple[tuple[int, int], ...], queries: int) -> None:
        super().__init__()
        anchors, valid = _anchors(levels)
        self.count = min(queries, anchors.shape[1])
        self.register_buffer("anchors", torch.where(valid[..., None], (anchors / (1 - anchors)).log(), FAR))

    def forward(self, tokens: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, channels, queries, 1) and anchors (batch, queries, 4) of the chosen cells."""
        index = as_rows(logits).amax(dim=2).topk(self.count, dim=1).indices
        anchors = self.anchors[0].index_select(0, index.reshape(-1)).reshape(*index.shape, 4)
        return as_maps(rows_of(as_rows(tokens), index)), anchors


class Boxes(Exact):
    """Boxes from corrections (batch, 4, queries, 1) and logits (batch, queries, 4)."""

    def forward(self, corrections: Tensor, logits: Tensor) -> Tensor:
        """(batch, queries, 4) in 0..1."""
        return (as_rows(corrections) + logits).sigmoid()


class Refined(Exact):
    """Boxes moved by corrections."""

    def forward(self, corrections: Tensor, boxes: Tensor) -> Tensor:
        """(batch, queries, 4) in 0..1."""
        return (as_rows(corrections) + logits_of(boxes)).sigmoid()


class BoxTokens(Exact):
    """Boxes as tokens (batch, 4, queries, 1)."""

    def forward(self, boxes: Tensor) -> Tensor:
        """Channels first."""
        return as_maps(boxes)


class QueryDecode(nn.Module):
    """Turn the last layer's corrections, logits and boxes into detections, in float.

    Output: (batch, n, 6), n being the head's `max_det`: centre x, centre y, width, height in 0..1, score, class index,
    best first.
    """

    def __init__(self, layout: HeadLayout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, corrections: Tensor, logits: Tensor, boxes: Tensor) -> Tensor:
        """Decode (batch, 4, queries, 1), (batch, classes, queries, 1), (batch, queries, 4)."""
        refined = (as_rows(corrections) + logits_of(boxes)).sigmoid()
        scores = as_rows(logits).flatten(1)
        best, pair = scores.topk(min(self.layout.max_detections, scores.shape[1]), dim=1)
        row = torch.div(pair, self.layout.classes, rounding_mode="floor")
        label = (pair - row * self.layout.classes).to(boxes.dtype)
        return torch.cat((rows_of(refined, row), best.sigmoid()[..., None], label[..., None]), dim=-1)


def logits_of(boxes: Tensor, least: float = 1e-5) -> Tensor:
    """The inverse of a sigmoid, as RT-DETR bounds it."""
    bounds = torch.full((), least)
    return (torch.maximum(boxes, bounds) / torch.maximum(1 - boxes, bounds)).log()


def query_detector(model: Any, head: str | None, imgsz: tuple[int, int], nms: bool = False) -> QueryProgram:
    """Fuse an Ultralytics RT-DETR and make its program.

    Raises:
        InputError: options that it does not have, or a variant that is not supported.
    """
    if head == "one2many" or nms:
        raise InputError("RT-DETR has no one-to-many head and needs no NMS", "leave out --head one2many and --nms")
    if model.model[-1].learnt_init_query:
        raise InputError("RTDETRDecoder with learnt queries is not supported", "train it with learnt_init_query=False")
    return QueryProgram(model.fuse(verbose=False), imgsz).eval()


def _anchors(levels: Sequence[tuple[int, int]], side: float = 0.05, margin: float = 1e-2) -> tuple[Tensor, Tensor]:
    """A box for each cell (1, cells, 4) in 0..1, and whether it keeps off the border (1, cells)."""
    found = []
    for level, (height, width) in enumerate(levels):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = torch.stack((x / width, y / height), dim=-1)
        found.append(torch.cat((centre, torch.full_like(centre, side * 2.0**level)), dim=-1).reshape(-1, 4))
    anchors = torch.cat(found)[None]
    return anchors, ((anchors > margin) & (anchors < 1 - margin)).all(dim=-1)


def _shapes(model: Any, imgsz: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Height and width of what each layer gives; for AIFI those of what it reads are the same."""
    found: dict[int, tuple[int, int]] = {}

    def note(layer: Any, _given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            found[layer.i] = int(output.shape[2]), int(output.shape[3])

    hooks = [layer.register_forward_hook(note) for layer in model.model]
    channels = int(model.yaml.get("channels", 3))
    with torch.no_grad():
        model.eval()(torch.zeros(1, channels, *imgsz))
    for hook in hooks:
        hook.remove()
    return found


def _at_size(layer: Any, shape: tuple[int, int]) -> Any:
    """A layer as it is; AIFI in a form for one size, the stem without paddings."""
    if type(layer).__name__ not in ("AIFI", "HGStem"):
        return layer
    if getattr(layer, "normalize_before", False):
        raise InputError("AIFI with normalisation before attention is not supported", "use an RT-DETR of Ultralytics")
    made = Stem(layer) if type(layer).__name__ == "HGStem" else EncoderLayer(layer, shape)
    made.f, made.i = layer.f, layer.i
    return made


def _fused(projection: Any) -> nn.Conv2d:
    """A convolution and its batch normalisation in one."""
    from ultralytics.utils.torch_utils import fuse_conv_and_bn

    fused: nn.Conv2d = fuse_conv_and_bn(*projection)
    return fused
