"""Data as users have it: folders for each class, .jsonl, .wav, the model's own preprocessing; and metrics by name."""

from __future__ import annotations

import json
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.data.files import feeds_from, labelled_from
from sparsecc.data.preprocessing import read_wave
from sparsecc.errors import InputError
from sparsecc.verify.detection import decoded
from sparsecc.verify.metrics import NAMED_METRICS, Labelled, metric_named
from tests.test_feeds import model_of
from tests.test_layout import ROOT

Image = pytest.importorskip("PIL.Image")

PICTURE = model_of("float[1,3,4,4] x")
SOUND = model_of("float[1,N] x")


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def sound(path: Path, samples: np.ndarray, rate: int = 8000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def configured(folder: Path, **keys: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(keys))
    return folder


# Pictures --------------------------------------------------------------------------------------------


def test_a_folder_for_each_class_is_read_in_turn_and_labelled(tmp_path: Path) -> None:
    for name, colour in (("ant", 10), ("bee", 20), ("cat", 30)):
        for number in range(2 if name != "bee" else 1):
            picture(tmp_path / name / f"{number}.png", (colour, colour, colour))
    found = [
        (int(sample["label"]), round(float(feeds["x"].max() * 255)))
        for feeds, sample in labelled_from(str(tmp_path), PICTURE)
    ]
    assert found == [(0, 10), (1, 20), (2, 30), (0, 10), (2, 30)]


def test_pictures_are_made_as_the_models_own_preprocessor_says(tmp_path: Path) -> None:
    configured(tmp_path, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.5, 1.0], rescale_factor=1 / 255)
    file = picture(tmp_path / "a.png", (255, 0, 51))
    (feeds,) = feeds_from(str(file), PICTURE, tmp_path)
    assert feeds["x"][0, :, 0, 0] == pytest.approx([2.0, -1.0, -0.3], abs=1e-6)
    (plain,) = feeds_from(str(file), PICTURE)
    assert plain["x"][0, :, 0, 0] == pytest.approx([1.0, 0.0, 0.2], abs=1e-6)


def test_the_shortest_edge_is_resized_and_the_middle_cut_out(tmp_path: Path) -> None:
    configured(tmp_path, size={"shortest_edge": 4}, do_center_crop=True, crop_size=4, resample=0)
    wide = Image.new("RGB", (12, 4), (0, 0, 0))
    wide.paste((255, 255, 255), (4, 0, 8, 4))
    wide.save(tmp_path / "wide.png")
    (feeds,) = feeds_from(str(tmp_path / "wide.png"), PICTURE, tmp_path)
    assert feeds["x"].min() == 1.0  # the white middle alone
    (squeezed,) = feeds_from(str(tmp_path / "wide.png"), PICTURE)
    assert squeezed["x"].min() < 0.1


def test_transformers_makes_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    try:
        processor = transformers.ViTImageProcessorPil(size={"height": 4, "width": 4})
    except (AttributeError, ImportError):
        processor = transformers.ViTImageProcessor(size={"height": 4, "width": 4})
    processor.save_pretrained(tmp_path)
    drawn = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(tmp_path / "a.png")
    theirs = np.asarray(processor(Image.fromarray(drawn), return_tensors="np")["pixel_values"])
    (feeds,) = feeds_from(str(tmp_path / "a.png"), PICTURE, tmp_path)
    assert np.abs(feeds["x"] - theirs).max() < 0.02


def test_a_preprocessor_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    picture(tmp_path / "a.png", (0, 0, 0))
    with pytest.raises(InputError, match="no preprocessor's configuration"):
        list(feeds_from(str(tmp_path / "a.png"), PICTURE, tmp_path))


# Sound -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["<i2", "<i4"])
def test_sound_is_read_as_numbers_of_one(kind: str, tmp_path: Path) -> None:
    top = 2 ** (8 * np.dtype(kind).itemsize - 1)
    file = sound(tmp_path / "a.wav", np.array([0, top // 2, -top, 0], kind), channels=2)
    samples, rate = read_wave(file)
    assert (samples.tolist(), rate) == ([0.25, -0.5], 8000)


def test_sound_comes_at_the_models_rate_and_length(tmp_path: Path) -> None:
    file = sound(tmp_path / "a.wav", (np.sin(np.arange(800) / 9) * 2**14).astype("<i2"))
    configured(tmp_path, sampling_rate=16000, do_normalize=True)
    (feeds,) = feeds_from(str(file), SOUND, tmp_path)
    assert feeds["x"].shape == (1, 1600)
    assert feeds["x"].std() == pytest.approx(1, abs=1e-3)
    (fixed,) = feeds_from(str(file), model_of("float[1,1000] x"))
    assert fixed["x"].shape == (1, 1000)
    assert not fixed["x"][0, 800:].any()


# Records ---------------------------------------------------------------------------------------------


def test_a_line_of_json_is_a_sample(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "a.png", (255, 255, 255))
    sound(tmp_path / "a.wav", np.zeros(5, "<i2"))
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"image": "p/a.png", "label": 3}\n\n')
    ((feeds, sample),) = labelled_from(str(lines), PICTURE)
    assert (feeds["x"].min(), sample["label"]) == (1.0, 3)
    lines.write_text('{"audio": "a.wav", "text": "no word"}\n')
    ((feeds, sample),) = labelled_from(str(lines), SOUND)
    assert (feeds["x"].shape, sample["text"]) == ((1, 5), "no word")
    lines.write_text('{"x": [1, 2], "target": 1}\n{"x": [[3, 4]], "y": 0}\n')
    found = [(feeds["x"].tolist(), sample["label"]) for feeds, sample in labelled_from(str(lines), SOUND)]
    assert found == [([[1, 2]], 1), ([[3, 4]], 0)]
    for text, told in (
        ("{", "data.jsonl:1: no JSON"),
        ("[1]", "data.jsonl:1: no object"),
        ("{}", "no values for"),
    ):
        lines.write_text(text)
        with pytest.raises(InputError, match=told):
            list(feeds_from(str(lines), SOUND))


def test_a_line_of_json_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    picture(folder / "a.png", (255, 255, 255))
    picture(tmp_path / "own.png", (0, 0, 0))
    (folder / "link.png").symlink_to(tmp_path / "own.png")
    lines = folder / "data.jsonl"
    lines.write_text(json.dumps({"image": str(folder / "a.png")}))
    assert len(list(feeds_from(str(lines), PICTURE))) == 1
    for outside in ("../own.png", str(tmp_path / "own.png"), "link.png", "../none.png"):
        lines.write_text(json.dumps({"image": outside}))
        with pytest.raises(InputError, match=r"data\.jsonl:1: .* lies outside its folder"):
            list(feeds_from(str(lines), PICTURE))


def test_labels_are_cut_with_their_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(6, dtype=np.float32).reshape(3, 2), labels=[5, 6, 7])
    found = [
        (feeds["x"].tolist(), int(sample["label"][0]))
        for feeds, sample in labelled_from(str(tmp_path / "a.npz"), model_of("float[B,2] x"))
    ]
    assert found == [([[0, 1]], 5), ([[2, 3]], 6), ([[4, 5]], 7)]


# Metrics ---------------------------------------------------------------------------------------------


def scored(name: str, spec: Path, model: ir.Model, run: Any, beside: Path | None = None) -> float:
    return metric_named(name, Labelled(str(spec), model, beside or spec.parent))(run)


def test_top1_is_the_share_of_right_answers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(4, dtype=np.float32), label=[0, 1, 2, 0])
    model = model_of("float[B,4] x")
    assert scored("top1", tmp_path / "a.npz", model, lambda feeds: {"y": feeds["x"]}) == 0.75
    np.savez(tmp_path / "b.npz", x=np.eye(4, dtype=np.float32))
    with pytest.raises(InputError, match="a sample without a label"):
        scored("top1", tmp_path / "b.npz", model, lambda feeds: {"y": feeds["x"]})


def test_iou_leaves_out_what_is_not_judged(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", (0, 0, 0))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.array([[0, 1], [1, 255]], np.uint8)).save(tmp_path / "masks" / "a.png")
    scores = np.zeros((1, 2, 4, 4), np.float32)
    scores[0, 1, :2, 2:] = scores[0, 1, 2:, 2:] = 1  # the right half, of which a quarter is not judged
    found = scored("miou", tmp_path, PICTURE, lambda feeds: {"y": scores}, tmp_path)
    assert found == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_word_errors_are_counted_by_their_library(tmp_path: Path) -> None:
    pytest.importorskip("jiwer")
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "a": 2, "b": 3}))
    sound(tmp_path / "a.wav", np.zeros(5, "<i2"))
    (tmp_path / "d.jsonl").write_text('{"audio": "a.wav", "text": "ab b"}\n')
    letters = np.eye(4)[None, [2, 2, 0, 3, 1, 1, 3, 0, 3]]  # aa_b||b_b: ab bb
    assert scored("wer", tmp_path / "d.jsonl", SOUND, lambda feeds: {"y": letters}) == 0.5


def test_perplexity_is_of_the_next_token(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=np.array([[1, 2, 3]]))
    model = model_of("int64[1,N] input_ids", "y = Identity (input_ids)", "int64[1,N] y")
    even = np.zeros((1, 3, 8), np.float32)
    assert scored("perplexity", tmp_path / "a.npz", model, lambda feeds: {"y": even}) == pytest.approx(1 / 8)


def coco(folder: Path) -> Path:
    picture(folder / "images" / "a.png", (0, 0, 0), (80, 40))
    boxes: list[dict[str, Any]] = [
        {"id": 1, "category_id": 7, "bbox": [20, 10, 40, 20]},
        {"id": 2, "category_id": 9, "bbox": [0, 0, 8, 8]},
    ]
    about = {"image_id": 1, "iscrowd": 0}
    file = folder / "coco.json"
    file.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 40}],
                "annotations": [{**b, **about, "area": b["bbox"][2] * b["bbox"][3]} for b in boxes],
                "categories": [{"id": 7, "name": "ant"}, {"id": 9, "name": "bee"}],
            }
        )
    )
    return file


def forms() -> dict[str, Mapping[str, np.ndarray]]:
    """The first box found (in the input's 4 x 4 pixels: 1,1 to 3,3), the second not, as detectors say it."""
    yolo = np.zeros((1, 6, 9), np.float32)
    yolo[0, :, 3] = [2, 2, 2, 2, 0.9, 0.1]
    yolo[0, :, 4] = [2, 2, 2, 1.9, 0.8, 0.1]  # almost the same: suppressed
    detr = np.full((1, 5, 3), -9, np.float32)
    detr[0, :, 2], detr[0, 0] = 9, [9, 0, -9]
    centres = np.zeros((1, 5, 4), np.float32)
    centres[0, 0] = [0.5, 0.5, 0.5, 0.5]
    return {
        "yolo": {"output0": yolo},
        "detr": {"logits": detr, "pred_boxes": centres},
        "torchvision": {
            "boxes": np.array([[1, 1, 3, 3]], np.float32),
            "labels": np.array([0]),
            "scores": np.array([0.9], np.float32),
        },
    }


@pytest.mark.parametrize("form", ["yolo", "detr", "torchvision"])
def test_detections_of_every_form_are_judged_as_coco_does(form: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    boxes, scores, classes, _ = decoded(forms()[form], (4, 4))
    assert boxes.tolist() == [[1, 1, 3, 3]]
    assert (classes.tolist(), scores[0] > 0.8) == ([0], True)
    assert scored("map", coco(tmp_path), PICTURE, lambda feeds: forms()[form]) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["../a.png", "images/../../a.png", "ABSOLUTE", "a\0.png"])
def test_annotations_name_no_picture_outside_of_their_folder(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    picture(tmp_path / "a.png", (0, 0, 0), (80, 40))
    file = coco(tmp_path / "data")
    truth = json.loads(file.read_text())
    truth["images"][0]["file_name"] = name.replace("ABSOLUTE", str(tmp_path / "a.png"))
    file.write_text(json.dumps(truth))
    with pytest.raises(InputError, match="leads out of its folder"):
        scored("map", file, PICTURE, lambda feeds: forms()["yolo"])


def test_pictures_may_lie_behind_a_link_of_the_users(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    file = coco(tmp_path / "data")
    (tmp_path / "data" / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere")
    assert scored("map", file, PICTURE, lambda feeds: forms()["yolo"]) == pytest.approx(0.5)


def test_what_no_metric_knows_is_told() -> None:
    with pytest.raises(InputError, match="detections of this form"):
        decoded({"y": np.zeros((3, 2))}, (4, 4))


def test_a_compile_scores_by_name_inside_the_sandbox(tmp_path: Path) -> None:
    with np.load(ROOT / "models" / "digits.npz") as data:
        small, labels = data["test_images"][:40], data["test_labels"][:40]
    large = small.repeat(2, axis=1).repeat(2, axis=2)[:, None].astype(np.float32) / 8 - 1
    np.savez(tmp_path / "test.npz", image=large, labels=labels)
    told: list[dict[str, Any]] = []
    made = sparsecc.compile(
        ROOT / "models" / "digits_resnet.onnx",
        ratio=0.2,
        evaluate="Top1",
        labels=tmp_path / "test.npz",
        measure=False,
        output=tmp_path / "out",
        on_event=told.append,
    )
    assert made.report["accuracy"]["metric"] == "top-1"
    assert made.accuracy is not None
    assert made.accuracy[0] > 0.9
    assert not any("outside the sandbox" in event.get("note", "") for event in told)
    with pytest.raises(InputError, match="needs labelled samples: give them with --labels"):
        sparsecc.compile("m.onnx", evaluate="map")


def test_the_table_of_options_names_the_metrics() -> None:
    from sparsecc.options.table import SCORES

    assert tuple(NAMED_METRICS) == SCORES
