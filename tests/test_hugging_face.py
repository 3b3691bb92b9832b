"""Models by name: bundles, folders of Hugging Face by their task, names at a hub that a local server stands for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import sparsecc
from sparsecc.errors import InputError
from sparsecc.options.places import default_bundle, default_reduced, default_search
from tests.test_layout import ROOT

MODEL = ROOT / "models" / "digits_resnet.onnx"


# Bundles ---------------------------------------------------------------------------------------------


def test_a_bundle_stands_wherever_a_model_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sparsecc.compile(MODEL, ratio=0.3, measure=False, output=tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    second = sparsecc.compile("first", ratio=0.3, measure=False)
    assert second.bundle == tmp_path / "first.sparsecc"
    assert second.is_proved
    assert sparsecc.inspect("first")["model"]["path"] == "model.onnx"
    assert sparsecc.compare("first", second.bundle)["outputs"]
    (tmp_path / "first" / "model.onnx").rename(tmp_path / "first" / "model.engine")
    with pytest.raises(InputError, match=r"is a bundle without model\.onnx"):
        sparsecc.compile("first", ratio=0.3)
    assert first.is_proved


def test_a_name_at_a_hub_names_the_bundle() -> None:
    assert default_bundle("hf:owner/small-bert@main") == Path("small-bert.sparsecc")
    assert default_bundle("models/net.onnx") == Path("net.sparsecc")
    assert default_bundle("hf:Qwen/Qwen2.5-0.5B@main") == Path("Qwen2.5-0.5B.sparsecc")
    assert default_search("models/Llama-3.2-1B") == Path("Llama-3.2-1B.search")
    assert default_reduced("models/Net.v1.ONNX") == Path("Net.v1.reduced.onnx")


# Folders ---------------------------------------------------------------------------------------------


def saved(kind: str, folder: Path) -> Path:
    """A tiny model of transformers with random weights, as `save_pretrained` leaves it."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "bert":
        made = transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=100, max_position_embeddings=64, num_labels=3, **small)
        )
    elif kind == "vit":
        sizes = {"image_size": 32, "patch_size": 8, "num_labels": 5}
        made = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **small))
    elif kind == "wav2vec2":
        convs = {
            "conv_dim": (16, 16),
            "conv_kernel": (10, 8),
            "conv_stride": (5, 4),
            "num_feat_extract_layers": 2,
        }
        others = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 12}
        made = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**convs, **others, **small))
    else:
        sizes = {**small, "hidden_size": 64, "num_key_value_heads": 2, "vocab_size": 64}
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(max_position_embeddings=64, **sizes))
        words = {**{f"w{i}": i for i in range(61)}, "<s>": 61, "</s>": 62, "<unk>": 63}
        tokenizers = pytest.importorskip("tokenizers")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "vit", "wav2vec2"])
def test_a_folder_is_exported_by_its_task(kind: str, tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime
    import torch
    import transformers

    folder = saved(kind, tmp_path / kind)
    made = sparsecc.compile(folder, ratio=0.3, measure=False, output=tmp_path / "out")
    assert made.is_proved
    assert made.removed > 0.2
    assert made.report["model"]["name"] == f"{kind}.onnx"
    checked = sparsecc.verify(
        tmp_path / "out", model=folder, reproduce=True
    )  # exported once more, to the same bytes
    assert checked["is_sound"], checked["checks"]
    plain = sparsecc.compile(folder, ratio=0.0, measure=False, output=tmp_path / "plain")
    session = onnxruntime.InferenceSession(str(plain.model))
    random = np.random.default_rng(0)
    shape = {"bert": (3, 9), "vit": (3, 3, 32, 32), "wav2vec2": (3, 16_000)}[kind]
    main = session.get_inputs()[0].name
    feeds: dict[str, Any] = {main: random.standard_normal(shape).astype(np.float32)}
    if kind == "bert":
        ids = random.integers(0, 100, shape)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits.numpy()
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], wanted, atol=1e-4)


@pytest.mark.slow
def test_a_decoder_is_exported_with_its_caches(tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install 'sparsecc[language]'")
    made = sparsecc.compile(
        saved("llama", tmp_path / "llama"), ratio=0.2, measure=False, output=tmp_path / "out"
    )
    assert made.is_proved
    generator = genai.Generator(loaded := genai.Model(str(tmp_path / "out")), genai.GeneratorParams(loaded))
    generator.append_tokens([61, 3, 4])
    generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 4


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"architectures": ["Custom"], "auto_map": {"AutoModel": "mine.Custom"}},
            "names 'Custom', which transformers",
        ),
        ({}, "names no architecture: add it"),
        ({"architectures": ["os"]}, "has no class for"),
    ],
)
def test_a_folder_runs_nothing_of_its_own(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    with pytest.raises(InputError, match=r"has no \.safetensors"):
        sparsecc.inspect(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match=told):
        sparsecc.inspect(folder)
    assert not (tmp_path / "sprung").exists()


def test_what_a_folder_lacks_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    program = """import sys
from sparsecc.errors import InputError
from sparsecc.tasks.hugging_face import export_folder
try:
    export_folder({"folder": sys.argv[1]}, lambda event: None)
except InputError:
    print({"torch", "transformers"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"


# The hub ---------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["Nothing"]}',
    "model.safetensors": (2).to_bytes(8, "little") + b"{}",
    "mine.py": b"raise SystemExit(3)",
    "pytorch_model.bin": b"\x80\x04.",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as its client asks for one public model."""

    asked: ClassVar[list[str]]

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _answer(self, body: bytes, head: bool, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def _get(self, head: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/tiny/net/tree/"):
            rows = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in FILES.items()]
            self._answer(json.dumps(rows).encode(), head, Content_Type="application/json")
        elif path.startswith("/api/models/tiny/net"):
            listed = [{"rfilename": name} for name in FILES]
            about = {
                "id": "tiny/net",
                "sha": COMMIT,
                "siblings": listed,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            self._answer(json.dumps(about).encode(), head, Content_Type="application/json")
        elif path.startswith("/tiny/net/resolve/") and (name := path.rsplit("/", 1)[1]) in FILES:
            digest = hashlib.sha256(FILES[name]).hexdigest()
            self._answer(FILES[name], head, ETag=f'"{digest}"', X_Repo_Commit=COMMIT)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        self._get(head=False)

    def do_HEAD(self) -> None:
        self._get(head=True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """(environment in which the hub is here, what it was asked)."""
    pytest.importorskip("huggingface_hub", reason="pip install 'sparsecc[huggingface]'")

    class Here(Hub):
        asked: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Here)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    own = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_XET": "1",
    }
    yield {**os.environ, **own}, Here.asked
    server.shutdown()
    thread.join()
    server.server_close()


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparsecc", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_name_at_the_hub_is_fetched_and_kept(hub: tuple[dict[str, str], list[str]], tmp_path: Path) -> None:
    environment, asked = hub
    done = run(environment, "inspect", "hf:tiny/net")
    assert (
        "names 'Nothing', which transformers has no class for" in done.stderr
    )  # it came as far as its export
    assert done.returncode == 2
    kept = {path.name for path in (tmp_path / "hf").rglob("snapshots/*/*")}
    assert kept == {"config.json", "model.safetensors"}
    sparsecc.compile(MODEL, ratio=0.2, measure=False, output=tmp_path / "out")
    verified = run(environment, "verify", str(tmp_path / "out"), "--model", "hf:tiny/net")
    assert "names 'Nothing', which transformers has no class for" in verified.stderr
    asked.clear()
    run(environment, "inspect", "hf:tiny/net@main")
    assert not [path for path in asked if "resolve" in path and "model.safetensors" in path]


def test_what_the_hub_does_not_have_is_one_line(hub: tuple[dict[str, str], list[str]]) -> None:
    environment, _ = hub
    done = run(environment, "compile", "hf:tiny/other", "--ratio", "0.3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "hf:tiny/other" in done.stderr
    done = run({**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}, "inspect", "hf:tiny/net")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert "give a folder on disk" in done.stderr
