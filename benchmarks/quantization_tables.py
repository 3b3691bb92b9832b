"""The tables of docs/quantization.md, from the points that `benchmarks/quantization.py` stored."""

from __future__ import annotations

from typing import Any

Points = dict[str, dict[str, dict[str, Any]]]
TYPES = ("int8", "int8-dynamic", "int4", "fp16", "pruned", "pruned + int8")


def tables(points: Points) -> dict[str, str]:
    """Markdown by the name of its marks."""
    return {
        "measured types": types_table(points),
        "measured rounding": rounding_table(points),
        "measured patterns": patterns_table(points),
        "measured mixed": mixed_table(points),
    }


def types_table(points: Points) -> str:
    """One row per model and type, with what onnxruntime's and onnxsim's tools make beside it."""
    lines = [
        "| model | variant | score | agrees | size | speed against fp32 | int, float kernels "
        "| onnxruntime's own: score, size, speed, kernels | onnxsim's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, rows in points.items():
        first = f"{model}, {_score(rows['fp32'])}" if rows["fp32"].get("score") is not None else model
        for variant in TYPES:
            if variant not in rows:
                continue
            row, whole = rows[variant], rows["fp32"]["bytes"]
            beside = [_beside(rows.get(f"{tool} {variant}"), whole) for tool in ("onnxruntime", "onnxsim")]
            cells = _cells(row, whole)
            agreement = "" if "error" in row else f"{row['agreement']:.3f}"
            columns = [first, variant, cells[0], agreement, *cells[1:], *beside]
            lines.append(f"| {' | '.join(columns)} |")
            first = ""
    return "\n".join(lines) + "\n"


def rounding_table(points: Points) -> str:
    """Score and output error of the ways to choose ranges and to round."""
    lines = ["| model | variant | score | output error | size |", "|---|---|---|---|---|"]
    for model, rows in points.items():
        first = f"{model}, {_score(rows['fp32'])}"
        if not rows.keys() & {"int8 gptq", "int4 rtn"}:
            continue
        for variant, row in rows.items():
            ours = variant.startswith(("int8", "int4")) and variant != "int8-dynamic"
            if "error" not in row and (ours or variant == "onnxsim int4 path"):
                size = row["bytes"] / rows["fp32"]["bytes"]
                lines.append(
                    f"| {first} | {variant} | {_score(row)} | {row['relative_error']:.1e} | {size:.2f} |"
                )
                first = ""
    return "\n".join(lines) + "\n"


def patterns_table(points: Points) -> str:
    """Weight kept, layer output error and score of 2:4, method by method."""
    lines = [
        "| model | method | layers | weight kept | layer error | output error | score |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, rows in points.items():
        first = f"{model}, {_score(rows['fp32'])}"
        for variant, row in rows.items():
            if not variant.removeprefix("onnxsim ").startswith("2:4") or "error" in row:
                continue
            error = f"{row['output_error']:.1e}" if "output_error" in row else ""
            lines.append(
                f"| {first} | {variant.replace('2:4 ', '')} | {row.get('layers', '')} "
                f"| {_fixed(row.get('kept_saliency'))} | {error} "
                f"| {row['relative_error']:.1e} | {_score(row)} |"
            )
            first = ""
    return "\n".join(lines) + "\n"


def mixed_table(points: Points) -> str:
    """Score and error of types by layer at budgets of bytes, with one type for all at its own size."""
    lines = [
        "| model | budget | size | score | output error | types of the layers |",
        "|---|---|---|---|---|---|",
    ]
    for model, rows in points.items():
        whole, first = rows["fp32"]["bytes"], f"{model}, {_score(rows['fp32'])}"
        shown = {name: row for name, row in rows.items() if "forms" in row or name == "onnxsim int4 and int8"}
        alone: dict[str, Any] = next((row["uniform"] for row in shown.values() if "uniform" in row), {})
        for variant, row in shown.items():
            forms = ", ".join(f"{n} {form}" for form, n in row.get("forms", {}).items())
            budget = variant.removeprefix("mixed ")
            if timed := row.get("speedup"):
                budget += f": ran {timed['estimate']:.2f} ({timed['ci95'][0]:.2f} to {timed['ci95'][1]:.2f})"
            lines.append(
                f"| {first} | {budget} | {row['bytes'] / whole:.2f} | {_score(row)} "
                f"| {row['relative_error']:.1e} | {forms} |"
            )
            first = ""
        lines += [
            f"|  | {form} alone | {one['bytes'] / whole:.2f} |  | {one['error']:.1e} |  |"
            for form, one in alone.items()
        ]
    return "\n".join(lines) + "\n"


def _beside(row: dict[str, Any] | None, whole: int) -> str:
    return "" if row is None else ", ".join(part for part in _cells(row, whole) if part)


def _fixed(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"


def _score(row: dict[str, Any]) -> str:
    return "" if row.get("score") is None else f"{row['score']:.3f}"


def _cells(row: dict[str, Any], whole: int) -> tuple[str, str, str, str]:
    """Score, size, speed, kernels."""
    if "error" in row:
        return f"fails: {row['error']}", "", "", ""
    size = f"{row['bytes'] / whole:.2f}"
    if "speedup" not in row:
        return _score(row), size, "", ""
    ratio = row["speedup"]
    speed = f"{ratio['estimate']:.2f} ({ratio['ci95'][0]:.2f} to {ratio['ci95'][1]:.2f})"
    return _score(row), size, speed, f"{row['integer']}, {row['float']}"
