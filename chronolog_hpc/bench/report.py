"""A result as text for people and as JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from chronolog_hpc.bench.fields import COMPARISON_FIELDS, FIELDS, RANK_FIELDS, Field, look_up
from chronolog_hpc.bench.spec import SpecError

SCHEMA = "chronolog-bench/1"


def text(result: Mapping[str, Any]) -> str:
    """Return the report: '#' lines that say under which conditions, then a line for each figure."""
    lines = ["# chronolog bench: all ranks log, flush, replay together, and verify what they replayed"]
    for block in ("spec", "env", "clock"):
        lines += [f"# {block}.{name}: {_shown(value)}" for name, value in result[block].items()]
    lines += [
        "#",
        f"# {'figure':<26}{'value':>18}  unit",
        *(_line(f, look_up(result, f.key)) for f in FIELDS),
    ]
    lines += ["#", f"# {'of each rank':<26}{'smallest':>18}{'largest':>18}  unit"]
    lines += [
        line for figure in RANK_FIELDS if (line := _spread_over_ranks(figure, result["write"]["per_rank"]))
    ]
    if "baseline" in result:
        compared = result["baseline"]
        lines += [
            "#",
            "# {rounds} rounds of {events} events per rank, log_events in batches of {batch}".format_map(
                compared
            ),
            f"# {'compared':<26}{'median':>18}{'smallest':>18}{'largest':>18}  unit",
            *(_line(f, *compared[f.key].values()) for f in COMPARISON_FIELDS),
        ]
    lines += ["#", _verdict(result)]
    return "\n".join(lines)


def _line(figure: Field, *values: float) -> str:
    cells = "".join(f"{figure.text(value):>18}" for value in values)
    note = f"  ({figure.note})" if figure.note else ""
    return f"{figure.label:<28}{cells}  {figure.unit}{note}"


def _spread_over_ranks(figure: Field, per_rank: list[dict[str, Any]]) -> str | None:
    entries = [entry for entry in per_rank if entry[figure.key] is not None]
    if not entries:
        return None
    low, high = (choose(entries, key=lambda entry: entry[figure.key]) for choose in (min, max))
    where = f", rank {low['rank']} and rank {high['rank']}" if len(per_rank) > 1 else ""
    note = f"{figure.note}{where}".removeprefix(", ")
    cells = f"{figure.text(low[figure.key]):>18}{figure.text(high[figure.key]):>18}"
    return f"{figure.label:<28}{cells}  {figure.unit}" + (f"  ({note})" if note else "")


def _verdict(result: Mapping[str, Any]) -> str:
    verified = result["verified"]
    if good(verified):
        return f"verified: all {verified['expected']} events are replayed exactly as they were logged"
    found = ", ".join(f"{verified[name]} {name.replace('_', ' ')}" for name in verified)
    return f"VERIFICATION FAILED: {found}"


def good(verified: Mapping[str, int]) -> bool:
    """Whether a block `verified` says that all is well."""
    wrong = sum(verified[name] for name in ("missing", "duplicated", "out_of_order", "corrupted"))
    return not wrong and verified["expected"] == verified["replayed"]


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        shown = ", ".join(map(str, value[:8])) or "none"
        return shown if len(value) <= 8 else f"{shown}, ... ({len(value)} in all)"
    if isinstance(value, dict):
        return ", ".join(f"{name}={entry}" for name, entry in value.items()) or "none"
    shown = "none" if value is None else str(value)
    return shown if shown.isprintable() else repr(shown)  # a file name may have line breaks


def check_json_path(path: str) -> None:
    """Make sure that results can be written to `path` later, and leave nothing there.

    Raises:
        SpecError: it is there already, or cannot be made.
    """
    if os.path.lexists(path):
        raise SpecError(
            f"--json {path} is there already, and results are never overwritten: choose another name"
        )
    if path == "-":
        raise SpecError(
            "--json - is no file, and the report goes to standard output: give a name for the results"
        )
    try:
        with open(path, "x", encoding="utf-8"):
            pass
        os.unlink(path)
    except OSError as error:
        raise SpecError(
            f"--json {path} cannot be written: {error.strerror}: choose a name in a directory that is there"
        ) from error


def write_json(path: str, result: Mapping[str, Any]) -> None:
    """Write the results into a new file.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    # A file name that is no Unicode has lone surrogates, which JSON and backslashreplace write alike.
    with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
        try:
            json.dump(result, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
        except BaseException:
            os.unlink(path)  # half a result is none
            raise
