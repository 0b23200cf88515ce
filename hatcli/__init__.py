"""From a raw driving-perception dataset to a fixed-point model that runs."""

import os

__version__ = "0.1.0"

# onnxruntime's builds make an identifier of the device and send figures of use unless this stands
# before they are imported. Who wants that may set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
