"""onnxruntime on x86."""

from hatcli.quantize import TARGETS
from hatcli.quantize.target import Target


@TARGETS.register
def ort() -> Target:
    """The kernels of onnxruntime on x86: unsigned codes with a zero point, float32 multipliers."""
    return Target(name="ort", caps_relu6=True)
