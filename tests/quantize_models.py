"""Small models with every structure that quantization and patterns treat differently."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

CHANNELS, CLASSES, WIDTH, TOKENS, HEADS = 32, 10, 64, 16, 4


def _weights(model: ir.Model, sizes: dict[str, tuple[int, ...]], seed: int = 0) -> ir.Model:
    rng = np.random.default_rng(seed)
    inputs = [value for value in model.graph.inputs if value.name not in sizes]
    by_name = {value.name: value for value in model.graph.inputs}
    for name, size in sizes.items():
        fan_in = int(np.prod(size[1:])) if len(size) > 2 else size[0]
        array = (
            rng.standard_normal(size) / np.sqrt(fan_in) if len(size) > 1 else 0.1 * rng.standard_normal(size)
        )
        if name.endswith(("__scale", "__var")):
            array = rng.uniform(0.5, 1.5, size)
        value = by_name[name]
        value.const_value = ir.tensor(array.astype(np.float32), name=name)
    for value in list(model.graph.inputs):
        if value not in inputs:
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    return model


def _declare(sizes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"float[{','.join(map(str, size))}] {name}" for name, size in sizes.items())


def weighted(text: str, sizes: dict[str, tuple[int, ...]]) -> ir.Model:
    """A graph in ONNX text at opset 19; WEIGHTS among its inputs stands for random constants of these sizes."""
    header = '<ir_version: 9, opset_import: ["" : 19]>'
    return _weights(ir.from_onnx_text(f"{header} {text.replace('WEIGHTS', _declare(sizes))}"), sizes)


def convolutions(*, batch_norm: bool = False, kernel: int = 3, group: int = 1, bias: bool = True) -> ir.Model:
    """Four convolutions: a stem, a residual block with Relu and Clip, a strided one; then a Gemm."""
    c = CHANNELS
    sizes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (c, 3, 3, 3), "conv1.bias": (c,),
        "conv2.weight": (c, c // group, kernel, kernel), "conv2.bias": (c,),
        "conv3.weight": (c, c, 3, 3), "conv3.bias": (c,),
        "conv4.weight": (c, c, 1, 1), "conv4.bias": (c,),
        "fc.weight": (CLASSES, c), "fc.bias": (CLASSES,),
    }  # fmt: skip
    norm1 = norm2 = ""
    first, second = "a", "b"
    if batch_norm:
        for i in (1, 2):
            sizes |= {f"bn{i}.{part}": (c,) for part in ("scale", "shift", "mean", "var")}
        norm1 = "an = BatchNormalization(a, bn1.scale, bn1.shift, bn1.mean, bn1.var)"
        norm2 = "bn = BatchNormalization(b, bn2.scale, bn2.shift, bn2.mean, bn2.var)"
        first, second = "an", "bn"
    if not bias:
        del sizes["conv2.bias"]
    conv2_inputs = "ar, conv2.weight, conv2.bias" if bias else "ar, conv2.weight"
    pad = kernel - 1
    pads = f"{pad // 2},{pad // 2},{pad - pad // 2},{pad - pad // 2}"
    text = f"""<ir_version: 10, opset_import: ["" : 18]>
    net (float[n,3,16,16] image, {_declare(sizes)}) => (float[n,{CLASSES}] logits) {{
        zero = Constant<value = float {{0.0}}>()
        six = Constant<value = float {{6.0}}>()
        a = Conv<pads = [1,1,1,1]>(image, conv1.weight, conv1.bias)
        {norm1}
        ar = Relu({first})
        b = Conv<pads = [{pads}], group = {group}>({conv2_inputs})
        {norm2}
        br = Clip({second}, zero, six)
        d = Conv<pads = [1,1,1,1]>(br, conv3.weight, conv3.bias)
        s = Add(d, ar)
        sr = Relu(s)
        e = Conv<strides = [2,2]>(sr, conv4.weight, conv4.bias)
        er = Relu(e)
        p = GlobalAveragePool(er)
        f = Flatten(p)
        logits = Gemm<transB = 1>(f, fc.weight, fc.bias)
    }}"""
    model = _weights(ir.from_onnx_text(_quoted(text)), {_safe(k): v for k, v in sizes.items()})
    return _renamed(model)


def transformer() -> ir.Model:
    """One encoder block: attention with four projections, and a Gelu network of two."""
    w = WIDTH
    sizes: dict[str, tuple[int, ...]] = {}
    for name in ("query", "key", "value", "out"):
        sizes |= {f"{name}.weight": (w, w), f"{name}.bias": (w,)}
    sizes |= {"up.weight": (w, 4 * w), "up.bias": (4 * w,), "down.weight": (4 * w, w), "down.bias": (w,)}
    sizes |= {"norm1.scale": (w,), "norm1.shift": (w,), "norm2.scale": (w,), "norm2.shift": (w,)}
    heads = f"int64[4] {{0, {TOKENS}, {HEADS}, {w // HEADS}}}"
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    net (float[n,{TOKENS},{w}] tokens, {_declare(sizes)}) => (float[n,{TOKENS},{w}] hidden) {{
        split = Constant<value = {heads}>()
        merge = Constant<value = int64[3] {{0, {TOKENS}, {w}}}>()
        scale = Constant<value = float {{0.25}}>()
        x = LayerNormalization(tokens, norm1.scale, norm1.shift)
        qm = MatMul(x, query.weight)
        q = Add(qm, query.bias)
        km = MatMul(x, key.weight)
        k = Add(km, key.bias)
        vm = MatMul(x, value.weight)
        v = Add(vm, value.bias)
        qs = Reshape(q, split)
        ks = Reshape(k, split)
        vs = Reshape(v, split)
        qt = Transpose<perm = [0,2,1,3]>(qs)
        kt = Transpose<perm = [0,2,3,1]>(ks)
        vt = Transpose<perm = [0,2,1,3]>(vs)
        dots = MatMul(qt, kt)
        scaled = Mul(dots, scale)
        shares = Softmax(scaled)
        mixed = MatMul(shares, vt)
        back = Transpose<perm = [0,2,1,3]>(mixed)
        joined = Reshape(back, merge)
        om = MatMul(joined, out.weight)
        o = Add(om, out.bias)
        r = Add(o, tokens)
        y = LayerNormalization(r, norm2.scale, norm2.shift)
        um = MatMul(y, up.weight)
        u = Add(um, up.bias)
        g = Gelu(u)
        dm = MatMul(g, down.weight)
        d = Add(dm, down.bias)
        hidden = Add(d, r)
    }}"""
    model = _weights(ir.from_onnx_text(_quoted(text)), {_safe(k): v for k, v in sizes.items()})
    return _renamed(model)


def feeds_for(model: ir.Model, batch: int = 4, seed: int = 1) -> dict[str, np.ndarray]:
    """Random inputs of the model's shapes."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        size = [side if isinstance(side, int) else batch for side in value.shape]
        feeds[value.name or ""] = rng.standard_normal(size).astype(np.float32)
    return feeds


def _safe(name: str) -> str:
    """ONNX text has no dots in names."""
    return name.replace(".", "__")


def _quoted(text: str) -> str:
    for suffix in ("weight", "bias", "scale", "shift", "mean", "var"):
        text = text.replace(f".{suffix}", f"__{suffix}")
    return text


def _renamed(model: ir.Model) -> ir.Model:
    for value in list(model.graph.initializers.values()):
        value.name = (value.name or "").replace("__", ".")
    for node in model.graph:
        weight = next(
            (v.name for v in node.inputs if v is not None and (v.name or "").endswith(".weight")), None
        )
        node.name = f"{node.op_type}_{weight or node.outputs[0].name}"
    return model
