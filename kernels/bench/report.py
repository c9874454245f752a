"""Writes the results of a run as a Markdown table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from targets import Target

Report = dict[str, Any]
"""What the .json holds; `run.py` says what is in it."""
TITLES = {
    "forward": "Forward",
    "forward+backward": "Forward and backward, with the gradients of all inputs and weights",
    "step": "A step: one token (TTT-Conv: one frame of 256), the state going round",
}


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def save(report: Report, out: Path) -> None:
    """out with the ending .json, and with .md."""
    write(out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    write(out.with_suffix(".md"), markdown(report))


def markdown(report: Report) -> str:
    """The whole document."""
    parts = [header(report)]
    if report["targets"]:
        parts.append(goals(report))
    for what, title in TITLES.items():
        cases = [case for case in report["cases"] if case["what"] == what]
        if cases:
            parts.append(f"## {title}\n\n{table(cases)}")
    return "\n".join(parts)


def header(report: Report) -> str:
    """The command, the device, the date, the versions, and the meaning of the figures."""
    sets, versions = report["settings"], ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    ceilings = report["ceilings"]
    how = (
        " Caches are emptied before each call."
        if report["cuda"]
        else " Time is processor time with one thread, else wall time."
    )
    lines = [
        "# TTT kernels compared with other packages",
        "",
        f"`{report['command']}`, {report['date']}, {report['device']}, {versions}.",
        "",
        f"{sets['rows']} rows × {sets['heads']} heads of 64 (a step: {sets['step_rows']} × {sets['step_heads']}), "
        f"{sets['dtype']} streams, float32 state, mini-batches of 16 tokens, TTT-Conv frames of 16 × 16 tokens, the "
        "layers' default update.",
        "",
        "Cells: milliseconds, the median of rounds that call every row once in a new order; then the floor divided by "
        "this time, if there is a floor, and the peak memory of a call beyond its inputs, if the device reports it."
        f"{how} The floor is the larger of two times: the necessary bytes divided by the copy bandwidth, and the "
        "necessary operations divided by the matrix rate. Both are measured in this run: "
        f"{ceilings['copy_gb_s']:,.0f} GB/s, {ceilings['matrix_tflop_s']:,.2f} Tflop/s. "
        "LSTM includes its projections, the others do not; TTT of fla has one rate for each chunk, and no forgetting "
        "or norm.",
        "",
    ]
    for name, value in report["differences"].items():
        lines.append(f"{name} on Triton differs from the reference in float32 by {value:.1e} of the largest value.")
    if report["unfinished"]:
        lines += ["", f"**Not finished**: {report['unfinished']} of the line-ups are missing."]
    return "\n".join(lines).rstrip() + "\n"


def goals(report: Report) -> str:
    """For each target the measured figures, and whether it is reached."""
    found = [Target(**target) for target in report["targets"]]
    if all(target.reached is None for target in found):
        return f"## Targets\n\nNone of the {len(found)} targets was measured: {found[0].measured}.\n"
    lines = ["## Targets", ""]
    for target in found:
        mark = {True: "reached", False: "**missed**", None: "not measured"}[target.reached]
        lines.append(f"- {target.asked}: {mark}, {target.measured}")
    return "\n".join(lines) + "\n"


def table(cases: Sequence[dict[str, Any]]) -> str:
    """A table with a row for each contestant and a column for each number of tokens; reasons are footnotes."""
    names = list(dict.fromkeys(row["name"] for case in cases for row in case["rows"]))
    reasons: dict[str, int] = {}
    columns = ["a step" if case["what"] == "step" else f"{case['tokens']:,} tokens" for case in cases]
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name in names:
        found = [next((row for row in case["rows"] if row["name"] == name), None) for case in cases]
        lines.append(f"| {name} | " + " | ".join(_cell(row, reasons) for row in found) + " |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items())]).rstrip() + "\n"


def _cell(row: dict[str, Any] | None, reasons: dict[str, int]) -> str:
    if row is None:
        return ""
    if "reason" in row:
        return f"– ({reasons.setdefault(row['reason'], len(reasons) + 1)})"
    parts = [digits(row["ms"])]
    if row.get("share") is not None:
        parts.append(f"{100 * row['share']:.2g}%")
    if row.get("memory_mb") is not None:
        parts.append(f"{digits(row['memory_mb'])} MB")
    return ", ".join(parts)


def digits(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:,.{max(0, 3 - len(str(int(value))))}f}" if value >= 1 else f"{value:.3f}"
