"""The speed targets of the kernels on one GPU, computed from the rows of one run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

Rows = dict[tuple[str, str, int], dict[str, Any]]
"""(what, name, tokens) → a row that was timed."""
OURS = {"linear": "TTT-Linear", "mlp": "TTT-MLP", "conv": "TTT-Conv"}
LONG = 8192
CHUNKED, FLASH = "fla chunk_ttt_linear", "flash attention"


class Target(NamedTuple):
    """asked: the target in words. measured: the figures, or why there are none. reached: None if not measured."""

    asked: str
    measured: str
    reached: bool | None


def targets(cases: Iterable[dict[str, Any]], missing: str) -> list[Target]:
    """All targets for the cases of a report. missing: the reason if rows are absent."""
    rows: Rows = {
        (case["what"], row["name"], case["tokens"]): row for case in cases for row in case["rows"] if "ms" in row
    }
    linear, mlp, names = triton("linear"), triton("mlp"), [triton(family) for family in OURS]
    lengths = sorted({tokens for _, _, tokens in rows})
    beyond = [tokens for tokens in lengths if tokens >= LONG]
    both = "forward+backward"
    found = [
        _worst(
            f"TTT-Linear forward+backward at least 1.5 times faster than {CHUNKED}",
            "times faster", 1.5, _ratios(rows, (both, CHUNKED), (both, linear), lengths),
        ),
        _worst(
            "TTT-MLP forward+backward within 3 times TTT-Linear",
            "times", -3.0, _ratios(rows, (both, mlp), (both, linear), lengths),
        ),
        _worst(
            "TTT-Linear forward faster than flash attention from 8k tokens on",
            "times faster", 1.0, _ratios(rows, ("forward", FLASH), ("forward", linear), beyond),
        ),
        *(_flat(rows, what, name) for name in names for what in ("forward", both)),
        *(_step(rows, f"{name}, graph") for name in names),
        *(_share(rows, name) for name in names),
    ]  # fmt: skip
    return [target if target.reached is not None else target._replace(measured=missing) for target in found]


def triton(family: str) -> str:
    """The name of an inner model's row on Triton."""
    return f"{OURS[family]}, triton"


def _ratios(rows: Rows, slow: tuple[str, str], fast: tuple[str, str], lengths: list[int]) -> dict[int, float]:
    """Tokens → the time of `slow` divided by that of `fast`."""
    pairs = {tokens: (rows.get((*slow, tokens)), rows.get((*fast, tokens))) for tokens in lengths}
    return {tokens: a["ms"] / b["ms"] for tokens, (a, b) in pairs.items() if a and b}


def _worst(asked: str, unit: str, limit: float, ratios: dict[int, float]) -> Target:
    """Reached if all ratios are at least the limit, or for a negative limit at most its absolute value."""
    if not ratios:
        return Target(asked, "", None)
    pick = min if limit > 0 else max
    tokens = pick(ratios, key=lambda length: ratios[length])
    value = ratios[tokens]
    reached = value >= limit if limit > 0 else value <= -limit
    return Target(asked, f"{value:.2f} {unit} at {tokens:,} tokens, the worst of {len(ratios)} lengths", reached)


def _flat(rows: Rows, what: str, name: str) -> Target:
    asked = f"{name}: {what} time per token flat (±5%) from 8k to 128k"
    pace = {t: row["ms"] / t for (w, n, t), row in rows.items() if (w, n) == (what, name) and 8192 <= t <= 131072}
    if not {8192, 131072} <= {*pace}:
        return Target(asked, "", None)
    middle = (min(pace.values()) + max(pace.values())) / 2
    off = max(pace.values()) / middle - 1
    return Target(asked, f"±{100 * off:.1f}% over {len(pace)} lengths", off <= 0.05)


def _step(rows: Rows, name: str) -> Target:
    asked = f"{name}: a step at most 30 µs"
    row = next((row for (what, n, _), row in rows.items() if (what, n) == ("step", name)), None)
    return Target(asked, "", None) if row is None else Target(asked, f"{1e3 * row['ms']:.1f} µs", row["ms"] <= 0.03)


def _share(rows: Rows, name: str) -> Target:
    asked = f"{name}: forward at 16k at half of the floor or better"
    row = rows.get(("forward", name, 16384))
    if row is None:
        return Target(asked, "", None)
    return Target(asked, f"{100 * row['share']:.0f}% of the floor, which {row['bound']} bind", row["share"] >= 0.5)
