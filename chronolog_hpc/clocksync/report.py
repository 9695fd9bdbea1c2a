"""The result of `chronolog clock` as text: '#' lines are not figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLUMNS = (
    ("rank", 6),
    ("reads", 7),
    ("offset [ns]", 22),
    ("drift [ppm]", 13),
    ("window [ns]", 13),
    ("round trip [ns]", 17),
    ("bursts", 8),
    ("clean", 7),
    ("sync [s]", 10),
    ("surprise [ns]", 15),
)


def text(result: Mapping[str, Any]) -> str:
    """Return the report: conditions, a line for each rank, the checks, and what to doubt."""
    spec = result["spec"]
    injected = spec["inject"]
    lines = [
        "# chronolog clock: all ranks synchronise, wait, and synchronise again",
        f"# ranks: {result['ranks']}, clocks: {result['clocks']}, wait: {spec['seconds']} s",
        "# injected: "
        + (
            "nothing"
            if injected is None
            else f"up to {injected['offset_ns']} ns and {injected['drift_ppm']} ppm on every rank"
        ),
        "# offset, drift and window after the first synchronisation; surprise: how far its prediction was off",
        "#" + "".join(f"{name:>{width}}" for name, width in _COLUMNS)[1:],
    ]
    lines += [_of_rank(rank) for rank in result["per_rank"]]
    lines += ["#", f"# {'figure':<34}{'median':>14}{'p99':>14}{'max':>14}  unit"]
    for label, key in (
        ("window, interpolated", "window_ns"),
        ("window, after the wait", "window_after_wait_ns"),
    ):
        lines.append(_summary(label, result[key]))
    for name, summary in (result["true_error_ns"] or {}).items():
        lines.append(_summary(f"true error, {name.replace('_', ' ')}", summary))
    if result["covered_fraction"] is not None:
        lines.append(f"{'times whose window held the truth':<36}{100 * result['covered_fraction']:>14.3f}  %")
    lines += [
        "#",
        "# independent check of random pairs: difference within its half-width, beside both windows",
    ]
    for check in result["checks"]:
        first, second = check["ranks"]
        verdict = "agree" if check["agrees"] else "DISAGREE"
        verdict += ", a pair that was measured" if check["measured"] else ""
        lines.append(
            f"ranks {first} and {second}: {check['difference_ns']:.0f} +- {check['half_ns']:.0f} ns, windows "
            f"{check['windows_ns']} ns: {verdict}"
        )
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    return "\n".join(lines)


def _of_rank(rank: Mapping[str, Any]) -> str:
    first, last = rank["knots"][0], rank["knots"][-1]
    cells = (
        rank["rank"],
        f"{rank['leader']}'s",
        first["from_rank_0_ns"],
        f"{0.0 - 1e6 * first['rate']:.3f}",
        first["half_ns"],
        first["round_trip_ns"],
        first["bursts"],
        first["clean"],
        f"{first['seconds']:.3f}",
        last["surprise_ns"],
    )
    return "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def _summary(label: str, summary: Mapping[str, float]) -> str:
    cells = "".join(
        f"{summary[name]:>14.0f}" if name in summary else f"{'':>14}" for name in ("median", "p99", "max")
    )
    return f"{label:<36}{cells}  ns"
