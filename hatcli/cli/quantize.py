"""hat quantize: not built yet, and it says so."""

from hatcli.cli._options import ConfigFile, TargetAndOverrides
from hatcli.errors import UsageError


def main(arguments: TargetAndOverrides = None, config: ConfigFile = None) -> None:
    """Calibrate and analyse an integer model. Not built yet.

    Example, once it is: hat quantize unet --ckpt best.pth
    """
    raise UsageError(
        "hat quantize is not built yet", "so far: pack, ops, train --step float, eval, export"
    )
