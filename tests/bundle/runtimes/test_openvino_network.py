"""Tests of the import of OpenVINO: it sends nothing, and its absence is named."""

import sys
from pathlib import Path

import pytest

from finetune.bundle.bundle import load_model
from finetune.bundle.runtimes.openvino_network import import_openvino
from finetune.errors import ModelError
from tests.support.helpers import run_python

_CONVERSION = """
import multiprocessing.process, os, socket, sys, threading
from pathlib import Path
os.environ.pop("CI", None)
events = []

def record(name):
    def refuse(*arguments, **options):
        events.append(name)
        raise OSError("no network in tests")
    return refuse

socket.socket.connect = record("connect")
socket.getaddrinfo = record("getaddrinfo")
multiprocessing.process.BaseProcess.start = record("process")
USES_FINETUNE = sys.argv[1] == "finetune"
if USES_FINETUNE:
    from finetune.bundle.runtimes.openvino_network import import_openvino
    openvino = import_openvino()
else:
    import openvino
import torch
openvino.convert_model(torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),)))
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(timeout=2)
print(sorted(set(events)), Path.home().joinpath("intel").exists())
"""


_SIGNAL = """
import faulthandler, gc, signal, sys
from pathlib import Path
import torch
from finetune.bundle.runtimes.openvino_network import OpenVinoNetwork, import_openvino

faulthandler.enable()  # with a stack for signal handlers
openvino, file = import_openvino(), Path(sys.argv[1])
images = openvino.opset13.parameter([-1, 3], openvino.Type.f32)
openvino.save_model(openvino.Model([openvino.opset13.relu(images)], [images]), file)
first, second = OpenVinoNetwork(file), OpenVinoNetwork(file)
assert first(torch.ones(2, 3)).equal(second(torch.ones(2, 3)))
del first
gc.collect()
del second
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.runs
def test_ctrl_c_after_networks_of_openvino_is_no_segmentation_fault(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert run_python(_SIGNAL, tmp_path / "model.xml").split() == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"), [("finetune", "[] False"), ("plain", "['process'] True")]
)
def test_import_and_conversion_send_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    pytest.importorskip("openvino_telemetry")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_python(_CONVERSION, name).strip().splitlines()[-1] == expected


def test_import_openvino_without_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"pip install 'finetune-vision\[openvino\]'"):
        import_openvino()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "No document element found"),
        (b"hello\nworld", "No document element found"),
        (b'<?xml version="1.0"?>\n<net name="Model0" vers', "Error parsing"),
        (b"<?xml version='1.0'?><html></html>", "it describes no network"),
        (b'<?xml version="1.0"?>\n<net name="M" version="11"><layers></layers></net>', ""),
    ],
)
def test_damaged_file_is_one_message_without_lines_of_other_libraries(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "model.xml").write_bytes(content)
    with pytest.raises(ModelError, match=f"cannot be read by OpenVINO: .*{reason}"):
        load_model(tmp_path)
    assert capfd.readouterr() == ("", "")
