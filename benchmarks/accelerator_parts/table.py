"""The record as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_GIB = 2**30
_HEADINGS = (
    "part", "outcome", "rows x tokens", "ms a step", "tokens/s", "MFU", "peak GiB", "predicted GiB",
    "compile s", "part s",
)  # fmt: skip


def _number(value: Any, form: str, factor: float = 1.0) -> str:
    return "" if value is None else format(value * factor, form)


def _outcome(part: Mapping[str, Any]) -> str:
    if part.get("fits") is False:
        return "does not fit"
    if part["status"] == "done" and part.get("finite") is False:
        return "done, NOT FINITE"
    return str(part["status"])


def _row(name: str, part: Mapping[str, Any]) -> str:
    shape = f"{part['rows']} x {part['length']:,}" if "rows" in part and "length" in part else ""
    remat = part.get("remat", "none")
    if shape and remat != "none":
        shape += f", remat {remat}"
    cells = (
        name, _outcome(part), shape,
        _number(part.get("step_seconds"), ",.1f", 1e3),
        _number(part.get("tokens_per_second"), ",.0f"),
        _number(part.get("mfu"), ".1%"),
        _number(part.get("measured", {}).get("peak"), ".2f", 1 / _GIB),
        _number(part.get("predicted", {}).get("peak"), ".2f", 1 / _GIB),
        _number(part.get("compile_seconds"), ".0f"),
        _number(part.get("seconds"), ".0f"),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _ratio(value: Mapping[str, float]) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"


def _of_kernel(kernel: str, of: Mapping[str, Any], tolerance: float) -> str:
    if "errors" not in of:
        return f"{kernel}: {_first_line(of['error'])}"
    seconds = _number(of.get("seconds"), ",.2f", 1e3)
    return (
        f"{kernel}: {'right' if of['right'] else 'WRONG'}, worst error {max(of['errors'].values()):.4f} "
        f"(at most {tolerance:.4f}), {seconds} ms forward and back; it calls "
        f"{', '.join(of['kernels']) or 'no library'}"
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def _remarks(part: Mapping[str, Any]) -> Iterator[str]:
    """What has no column."""
    for key in ("why", "error"):
        if key in part:
            yield f"{part['status']}: {_first_line(part[key])}"
    if "matrix_flops_per_second" in part:
        share = "" if part["of_peak"] is None else f", {part['of_peak']:.0%} of the chip's peak"
        side, rate = part["matrix_side"], part["matrix_flops_per_second"] / 1e12
        yield (
            f"products of {side:,} x {side:,} in bfloat16 {rate:,.2f} TFLOP/s{share}; copies "
            f"{part['bytes_per_second'] / 1e9:,.0f} GB/s, read and written"
        )
    for kernel, of in part.get("of_kernels", {}).items():
        yield _of_kernel(kernel, of, part["tolerance"])
    if "worst" in part:
        of, most = part["worst"], part["tolerance"]
        yield f"worst error of a gradient {of['error']:.4f} (at most {most:.4f}), of {of['path']}"
    for mesh, of in part.get("of_meshes", {}).items():
        yield f"{mesh}: differs by {of['error']:.1e} (at most {part['tolerance']:.0e})"
    if "speedup" in part:
        times = _ratio(part["speedup"])
        yield f"{part['runs']} runs in one program are {times} times as fast as one after the other"
    if "of_merged" in part:
        count = part["adapters"]
        yield (
            f"a pool of {count} has {_ratio(part['of_merged'])} of the speed of one merged model, and "
            f"{_ratio(part['of_eight_in_turn'])} of that of {count} merged ones in turn"
        )
    for refused in part.get("refused", []):
        shape = (
            f"{refused['rows']} rows, remat {refused['remat']}, attention {refused['attention']}"
        )
        yield f"{shape}: {_first_line(refused['why'])}"
    if part.get("anchor") and "tokens_per_second" in part:
        yield f"others: {part['anchor']}"


def _title(content: Mapping[str, Any]) -> str:
    device = content["device"] or {}
    versions = device.get("versions", {})
    named = [f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax") if name in versions]
    facts = [
        f"{device.get('count', '?')} x {device.get('kind', 'unknown device')}", *named, content["date"],
        f"size {content['size']}", f"commit {content['commit'] or 'unknown'}",
        content["ended"] or "still running",
    ]  # fmt: skip
    return ", ".join(facts)


def table(content: Mapping[str, Any]) -> str:
    """Markdown: what was measured on what, a row for each part, and what has no column below."""
    parts = content["parts"]
    lines = [
        _title(content), "", f"| {' | '.join(_HEADINGS)} |", "|---" * len(_HEADINGS) + "|",
        *(_row(name, part) for name, part in parts.items()), "",
        *(f"- {name}: {remark}" for name, part in parts.items() for remark in _remarks(part)),
    ]  # fmt: skip
    return "\n".join(lines)
