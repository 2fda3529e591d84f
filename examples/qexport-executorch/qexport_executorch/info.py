"""What the format is, and what XNNPACK's delegate of ExecuTorch runs in integers."""

from __future__ import annotations

from qexport import BackendInfo, FixedScale, OwnScale, RuntimeProfile, SharedScale
from qexport.planning.arithmetic import INT32

ATTENTION = "the delegate multiplies two activations in float only"

PROFILE = RuntimeProfile(
    name="executorch",
    operations={
        **dict.fromkeys(("conv", "linear", "mul", "add", "sub", "relu"), OwnScale()),
        **dict.fromkeys(("cat", "part", "max_pool", "resize", "reshape", "transpose"), SharedScale()),
        "sigmoid": FixedScale(1 / 256, -128),
    },
    kept_float={"matmul": ATTENTION, "softmax": ATTENTION},
    clamps=frozenset({"relu"}),
    fuses_relu_at_any_zero_point=True,
    integer_bias=INT32,
)
"""ExecuTorch 1.5: executorch/backends/xnnpack/partition/config; sigmoid is XNNPACK's, by `write.INTEGER_SIGMOID`."""

INFO = BackendInfo(
    name="executorch",
    title="ExecuTorch",
    suffix="_executorch_model",
    runtime="ExecuTorch's runtime, XNNPACK delegate where it has a kernel, portable kernels elsewhere",
    precisions=frozenset({"fp32", "fp16", "int8"}),
    profiles={"int8": {"any": PROFILE}},
    modules=("executorch",),
    packages=("qexport-executorch", "executorch"),
    install="qexport-executorch",
)
