"""ONNX operators that compute element by element, or sum up axes, as torch calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qexport.programs.onnx.torch_functions import greatest, hard_sigmoid, least, prelu, total
from qexport.programs.onnx.torch_site import Builder, Call, Site, UntranslatableError

aten = torch.ops.aten

Target = Callable[..., Any]

UNARY: Mapping[str, Target] = {
    "Sigmoid": aten.sigmoid.default,
    "Relu": aten.relu.default,
    "Tanh": aten.tanh.default,
    "HardSwish": aten.hardswish.default,
    "Mish": aten.mish.default,
    "Softplus": aten.softplus.default,
    "Erf": aten.erf.default,
    "Exp": aten.exp.default,
    "Log": aten.log.default,
    "Sqrt": aten.sqrt.default,
    "Reciprocal": aten.reciprocal.default,
    "Neg": aten.neg.default,
    "Abs": aten.abs.default,
    "Sin": aten.sin.default,
    "Cos": aten.cos.default,
    "Floor": aten.floor.default,
    "Ceil": aten.ceil.default,
}

BINARY: Mapping[str, Target] = {
    "Add": aten.add.Tensor,
    "Sub": aten.sub.Tensor,
    "Mul": aten.mul.Tensor,
    "Div": aten.div.Tensor,
    "Pow": aten.pow.Tensor_Tensor,
}

MANY: Mapping[str, Target] = {"Max": greatest, "Min": least, "Sum": total}

REDUCTIONS: Mapping[str, Target] = {
    "ReduceMean": aten.mean.dim,
    "ReduceSum": aten.sum.dim_IntList,
    "ReduceMax": aten.amax.default,
    "ReduceMin": aten.amin.default,
}


def _unary(target: Target) -> Builder:
    return lambda site: Call(target, (site.tensor(0),))


def _binary(target: Target) -> Builder:
    return lambda site: Call(target, (site.tensor(0), site.tensor(1)))


def _many(target: Target) -> Builder:
    return lambda site: Call(target, tuple(site.tensor(index) for index in range(len(site.node.input))))


def _with_number(target: Target, name: str, default: float) -> Builder:
    return lambda site: Call(target, (site.tensor(0), site.attribute(name, default)))


def _reduction(target: Target) -> Builder:
    def build(site: Site) -> Call:
        axes = site.integers(1) or site.attribute("axes")
        if axes is None and site.attribute("noop_with_empty_axes", 0):
            raise UntranslatableError("has no translation without axes")
        every = list(range(len(site.shape())))
        return Call(target, (site.tensor(0), list(axes or every), bool(site.attribute("keepdims", 1))))

    return build


def _selu(site: Site) -> Call:
    if site.attribute("alpha") is not None or site.attribute("gamma") is not None:
        raise UntranslatableError("has no translation with an alpha or gamma of its own")
    return Call(aten.selu.default, (site.tensor(0),))


def _gelu(site: Site) -> Call:
    return Call(aten.gelu.default, (site.tensor(0),), {"approximate": site.attribute("approximate", "none")})


def _hard_sigmoid(site: Site) -> Call:
    alpha, beta = site.attribute("alpha", 0.2), site.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return Call(aten.hardsigmoid.default, (site.tensor(0),))
    return Call(hard_sigmoid, (site.tensor(0), alpha, beta))


def _clip(site: Site) -> Call:
    low, high = (None if array is None else float(array) for array in (site.constant(1), site.constant(2)))
    if low is None or high is None:
        return Call(aten.clamp.default, (site.tensor(0), low, high))
    return Call(aten.hardtanh.default, (site.tensor(0), low, high))


def _softmax(target: Target) -> Builder:
    return lambda site: Call(target, (site.tensor(0), site.attribute("axis", -1)))


def _where(site: Site) -> Call:
    return Call(aten.where.self, (site.tensor(0), site.tensor(1), site.tensor(2)))


ELEMENTS: Mapping[str, Builder] = {
    **{name: _unary(target) for name, target in UNARY.items()},
    **{name: _binary(target) for name, target in BINARY.items()},
    **{name: _many(target) for name, target in MANY.items()},
    **{name: _reduction(target) for name, target in REDUCTIONS.items()},
    "LeakyRelu": _with_number(aten.leaky_relu.default, "alpha", 0.01),
    "Elu": _with_number(aten.elu.default, "alpha", 1.0),
    "Celu": _with_number(aten.celu.default, "alpha", 1.0),
    "Selu": _selu,
    "PRelu": _binary(prelu),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "Softmax": _softmax(aten.softmax.int),
    "LogSoftmax": _softmax(aten.log_softmax.int),
    "Where": _where,
}
