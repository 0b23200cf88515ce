"""No command sends anything, or keeps anything in the home folder."""

import os
import subprocess
import sys

import onnx
from onnx import TensorProto, helper

WATCHED = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os._exit(99)

sys.addaudithook(refuse)
"""
IN_A_SESSION = """
import sys
from pathlib import Path
from hatcli.export.runtime import open_session
open_session(Path(sys.argv[1]), where="a file")
"""
A_NAME_IS_LOOKED_UP = "import socket; socket.getaddrinfo('localhost', 80)"


def run_watched(program, home, *arguments):
    """The exit code of a Python program that lives in a home folder of its own; 99: network."""
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
    return subprocess.run(
        [sys.executable, "-c", WATCHED + program, *arguments], env=environment, check=False
    ).returncode


def test_onnxruntime_keeps_and_sends_no_figures_of_use(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "relu.onnx")
    assert run_watched(IN_A_SESSION, home, str(tmp_path / "relu.onnx")) == 0
    assert not list(home.rglob("*"))


def test_commands_use_no_network_and_leave_nothing_at_home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for words in (["config", "list"], ["ops", "unet_small", "--shape", "1,3,64,64"]):
        program = f"from hatcli.cli import run; sys.exit(run({words!r}))"
        assert run_watched(program, home) == 0
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert run_watched(A_NAME_IS_LOOKED_UP, home) == 99
