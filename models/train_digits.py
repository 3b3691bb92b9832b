"""Train the reference models on scikit-learn's digits; writes digits.npz and the ONNX files beside it.

    python models/train_digits.py [resnet] [vit] [lstm]

Needs torch and scikit-learn. Seeds are fixed; another machine or torch gives other weights of the same kind.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from digits import BATCH, DATA, SIDE, prepare
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
TESTED = 500
CALIBRATED = 200
NARROWING = 5e-4


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Thinning(nn.Module):
    """While training, silence a random share of each image's channels, up to half, so that any may go."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        dropped = torch.rand(len(x), 1, 1, 1) / 2
        return x * (torch.rand(*x.shape[:2], 1, 1) >= dropped)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which projects when the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(outputs))
        self.thinning = Thinning()

    def forward(self, x: Tensor) -> Tensor:
        x = self.thinning(x)
        inner = self.thinning(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Separable(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-excite, project 1x1; a shortcut when the shape stays."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.excite = SqueezeExcite(hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.has_shortcut = stride == 1 and inputs == outputs
        self.thinning = Thinning()

    def forward(self, x: Tensor) -> Tensor:
        x = self.thinning(x)
        inner = F.relu(self.norm1(self.expand(x)))
        inner = self.excite(self.thinning(F.relu(self.norm2(self.depthwise(inner)))))
        y = self.norm3(self.project(inner))
        output: Tensor = x + y if self.has_shortcut else y
        return output


class ResNet(nn.Sequential):
    """Residual and separable blocks, 32 to 96 channels."""

    def __init__(self) -> None:
        layers: dict[str, nn.Module] = {
            "stem": nn.Conv2d(1, 32, 3, 1, 1, bias=False),
            "norm": nn.BatchNorm2d(32),
            "relu": nn.ReLU(),
            "block1": Residual(32, 32),
            "block2": Separable(32, 96, 64, stride=2),
            "block3": Separable(64, 128, 64),
            "block4": Residual(64, 96, stride=2),
            "thinning": Thinning(),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "head": nn.Linear(96, CLASSES),
        }
        super().__init__(OrderedDict(layers))


class Attention(nn.Module):
    """Self-attention; one projection makes queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return merged


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class ViT(nn.Module):
    """16 patches of 4x4 and a class token, width 64, 4 heads, 3 layers."""

    def __init__(self, width: int = 64, heads: int = 4, hidden: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (SIDE // 4) ** 2, width))
        self.layers = nn.Sequential(*(Layer(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1)
        logits: Tensor = self.head(self.norm(self.layers(tokens + self.position))[:, 0])
        return logits


class RowLSTM(nn.Module):
    """A two-layer LSTM, 96 wide, that reads the image row by row."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        self.rows = nn.Linear(SIDE, 32)
        self.lstm = nn.LSTM(32, hidden, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        states, _ = self.lstm(F.relu(self.rows(image.squeeze(1))))
        logits: Tensor = self.head(states[:, -1])
        return logits


MODELS: dict[str, type[nn.Module]] = {"resnet": ResNet, "vit": ViT, "lstm": RowLSTM}
EPOCHS = {"resnet": 48, "vit": 150, "lstm": 120}


def split() -> tuple[np.ndarray, np.ndarray]:
    """Write digits.npz; returns the training images (1297, 8, 8) and their labels."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:TESTED], order[TESTED:]
    np.savez_compressed(
        DATA,
        test_images=images[test],
        test_labels=labels[test],
        calibration_images=images[train[:CALIBRATED]],
    )
    return images[train], labels[train]


def augment(x: Tensor) -> Tensor:
    """Each image turned by up to 12 degrees, scaled by up to 10 % and moved by up to 1.5 pixels."""
    n = len(x)
    angle = (torch.rand(n) * 2 - 1) * 0.21
    scale = 1 + (torch.rand(n) * 2 - 1) * 0.1
    shift = (torch.rand(n, 2) * 2 - 1) * 1.5 / (SIDE / 2)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


def narrowing(model: nn.Module) -> Tensor:
    """Total size of the batch norms' scales and offsets; as a penalty it empties channels nobody needs.

    After Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return sum((m.weight.abs().sum() + m.bias.abs().sum() for m in norms), torch.zeros(()))


def train(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """A trained model, in evaluation mode."""
    torch.manual_seed(0)
    model = MODELS[name]()
    steps = EPOCHS[name] * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        batch = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(augment(images[batch])), labels[batch], label_smoothing=0.05)
        (loss + NARROWING * narrowing(model)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 500 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the model as ONNX, its batch size free, without what the exporter notes about this machine."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, SIDE, SIDE),),
        dynamo=True,
        opset_version=20,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"{path.name}: the exporter gave no program")
    model_ir = program.model
    for node in model_ir.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model_ir.graph.inputs, *model_ir.graph.initializers.values()):
        value.metadata_props.clear()
    model_ir.graph.metadata_props.clear()
    model_ir.metadata_props.clear()
    ir.save(model_ir, path)


def main() -> None:
    """Train and export the models named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Train the digits models and export them to ONNX.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="resnet, vit, lstm; default: all")
    names = parser.parse_args().names or list(MODELS)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    images, labels = split()
    for name in names:
        model = train(name, torch.from_numpy(prepare(images)), torch.from_numpy(labels).long())
        export(model, DATA.with_name(f"digits_{name}.onnx"))


if __name__ == "__main__":
    main()
