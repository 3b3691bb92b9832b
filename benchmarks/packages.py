"""Packages of several files as optimum and onnxruntime-genai write them: what goes, and whether the files still fit.

    python benchmarks/packages.py --make FOLDER      # in an environment with optimum[onnx] and transformers
    python benchmarks/packages.py FOLDER [PACKAGE …] # in ours: each folder in FOLDER, and each PACKAGE

The models are tiny, with random weights: encoder, decoder and decoder with past of T5, Whisper and BART. Each is
compiled at `--ratio 0.3`; told are the shares of multiply-accumulates, parameters and bytes that went, how far outputs
of the files, run one after the other, are from the whole's, and what `verify --reproduce` says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROW = "{:<16} {:>7} {:>7} {:>7} {:>9} {:>10} {:>7}"


def make(folder: Path) -> None:
    """Export the models with optimum, without merging the decoders."""
    import torch
    import transformers as hf

    exporter = import_module("optimum.exporters.onnx")
    tokens: dict[str, Any] = {
        "vocab_size": 512,
        "d_model": 64,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    }
    sides: dict[str, Any] = {
        f"{side}_{key}": size for side in ("encoder", "decoder") for key, size in SIDE.items()
    }
    write, hear = "text2text-generation-with-past", "automatic-speech-recognition-with-past"
    t5 = hf.T5Config(**tokens, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    bart = hf.BartConfig(**tokens, **sides, max_position_embeddings=64)
    whisper = hf.WhisperConfig(**tokens, **sides, max_target_positions=64, bos_token_id=1, eos_token_id=2)
    for name, config, task in (("t5", t5, write), ("bart", bart, write), ("whisper", whisper, hear)):
        torch.manual_seed(0)
        model = getattr(hf, f"{type(config).__name__.removesuffix('Config')}ForConditionalGeneration")(config)
        options: dict[str, Any] = {"task": task, "opset": 17, "no_post_process": True, "do_validation": False}
        exporter.onnx_export_from_model(model.eval(), output=folder / name, **options)
        config.save_pretrained(folder / name)


SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}


def measured(package: Path) -> str:
    """One row."""
    import sparsecc
    from sparsecc import api

    with tempfile.TemporaryDirectory() as scratch:
        report = sparsecc.compile(
            package, ratio=0.3, calib="none", output=Path(scratch) / "out", measure=False
        ).report
        sound = api.verify(Path(scratch) / "out", model=package, reproduce=True)["is_sound"]
    shares = [1 - report["after"][key] / report["before"][key] for key in ("macs", "params", "bytes")]
    error = report["package"]["relative_error"]
    status = report["verification"]["status"]
    return ROW.format(
        package.name, *(f"{share:.1%}" for share in shares), f"{error:.1g}", status, "yes" if sound else "no"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--make", action="store_true", help="export the models into FOLDER")
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", type=Path, nargs="*")
    asked = parser.parse_args()
    if asked.make:
        make(asked.folder)
        return
    print(ROW.format("package", "MACs", "params", "bytes", "error", "surgery", "sound"))
    for package in (*sorted(path for path in asked.folder.iterdir() if path.is_dir()), *asked.packages):
        print(measured(package), flush=True)


if __name__ == "__main__":
    main()
