"""`hf:`: folders of the Hugging Face Hub, local or downloaded; what is said of their licence and images."""

import http.server
import json
import threading

import pytest
from ml_collections import ConfigDict

from ssljax.convert import hub

GREY = ConfigDict({"mean": (0.0,), "std": (1.0,)})
FILES = {
    "config.json": json.dumps({"pretrained_cfg": {"mean": [0.5], "std": [1.0], "license": "bsd"}}).encode(),
    "model.safetensors": b"weights",
    "README.md": b"---\nlicense: apache-2.0\ntags:\n- timm\n---\nlicense: none of these\n",
}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The Hub with one network, and what was asked of it."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            owner, _, file = self.path.partition("/resolve/main/")
            found = FILES.get(file) if owner == "/timm/small" else None
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield asked
    server.shutdown()
    server.server_close()


def test_a_network_of_the_hub_is_downloaded_once_and_its_licence_said(served, tmp_path, capsys):
    file, said = hub.weights_of("hf:timm/small", GREY)
    assert file == str(tmp_path / ".cache/ssljax/hub/timm/small/model.safetensors")
    assert (tmp_path / ".cache/ssljax/hub/timm/small/model.safetensors").read_bytes() == b"weights"
    assert said[0] == "licence: apache-2.0"
    assert said[1].endswith("normalised otherwise: add --config.augment.mean='(0.5,)'")
    assert len(served) == 3 and capsys.readouterr().out.count("downloading http://127.0.0.1") == 3
    assert hub.weights_of("hf:timm/small", GREY) == (file, said) and len(served) == 3


def test_what_the_hub_does_not_have_or_no_network_says_how_to_fetch_by_hand(served, monkeypatch):
    with pytest.raises(ValueError, match=r"config.json answers 404 Not Found. Fetch config.json and model"):
        hub.weights_of("hf:timm/nothing", GREY)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ValueError, match=r"cannot be downloaded \(.*refused.*timm/x/tree/main.*--from=hf:DIR"
    ):
        hub.weights_of("hf:timm/x", GREY)


def test_a_local_folder_and_a_plain_file(tmp_path):
    assert hub.weights_of("a.safetensors", GREY) == ("a.safetensors", [])
    with pytest.raises(ValueError, match="there is no such folder, and it is no OWNER/NAME"):
        hub.weights_of(f"hf:{tmp_path}/nowhere", GREY)
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        hub.weights_of(f"hf:{tmp_path}", GREY)
    (tmp_path / "model.safetensors").write_bytes(b"")
    file, (said,) = hub.weights_of(f"hf:{tmp_path}", GREY)
    assert file == str(tmp_path / "model.safetensors") and said.startswith("licence: not stated")
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    assert hub.weights_of(f"hf:{tmp_path}", GREY)[1][0] == "licence: bsd"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n")
    assert hub.weights_of(f"hf:{tmp_path}", GREY)[1][0] == "licence: mine"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        hub.weights_of(f"hf:{tmp_path}", GREY)
