"""The report of a comparison: report.html and a text table from results.jsonl.

Of an evaluation that was interrupted it shows what is there, and says what is missing.
"""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.errors import UserError
from metaopt.evaluation import plots, results, statistics, summary
from metaopt.evaluation.compare import Row
from metaopt.evaluation.results import RESULTS, read

__all__ = ["REPORT", "RESULTS", "read", "result", "text_table", "write"]

REPORT = "report.html"

Cells = dict[summary.Problem, dict[str, summary.Cell]]  # results by problem and method

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
.good { background: #d9f0d9 } .bad { background: #f8dcdc }
.claim { border-left: 4px solid #4477aa; background: #eef3f8; padding: .6em 1em }
small { color: #666 } svg { max-width: 100%; height: auto }
"""


def write(folder: Path) -> Path:
    """Draws ``report.html`` from ``results.jsonl`` and returns its path."""
    header, rows, cells = _measured(folder)
    groups = summary.group(results.finished(header, rows))
    body = [f"<h1>{html.escape(header['title'])}</h1>", f"<p>{html.escape(_missing(header, rows))}</p>"]
    body += [_claims(header, cells), _table(header, cells), _failures(rows)]
    for problem, methods in groups.items():
        body.append(f"<h2>{html.escape(_label(problem))}</h2>")
        body.append(plots.loss_curves(_label(problem), methods, header["num_steps"]))
    body.append(f"<h2>Settings</h2><pre>{html.escape(json.dumps(header, indent=2))}</pre>")
    page = "<!doctype html><html lang='en'><meta charset='utf-8'>"
    page += f"<title>{html.escape(header['title'])}</title><style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    path = folder / REPORT
    path.write_text(page, encoding="utf-8", errors="surrogateescape")  # names of files may be in no encoding
    return path


def result(folder: Path, name: str) -> dict[str, Any]:
    """The entry of an evaluation in the manifest of a checkpoint: the claims and how they were measured.

    Args:
      folder: folder of the evaluation.
      name: name of the checkpoint.

    Raises:
      UserError: if there are no results, they are damaged, or some are missing.
    """
    header, rows, cells = _measured(folder)
    if lacking := _missing(header, rows):
        raise UserError(f"{folder} has no complete result to record: {lacking}")
    settings = {name: header[name] for name in ("num_steps", "seeds", "tuning_seeds", "draws")}
    per_task = {
        _label(problem): {
            "valid": {n: _number(c.valid[0]) for n, c in methods.items()},
            "steps_ratio": {n: _steps(c.ratios[1.0]) for n, c in methods.items()},
        }
        for problem, methods in cells.items()
    }
    return summary.claims(cells, name, header["reference"]) | settings | {"tasks": per_task}


def text_table(folder: Path) -> str:
    """The comparison as an aligned text table: final validation loss, and steps relative to the reference."""
    header, rows, cells = _measured(folder)
    names = _methods(cells)
    lines = [["task", *[f"{n} valid" for n in names], *[f"{n} steps" for n in names], "failed", "new in"]]
    for problem, methods in cells.items():
        lines.append(
            [
                _label(problem),
                *[_number(methods[n].valid[0]) if n in methods else "-" for n in names],
                *[_steps(methods[n].ratios[1.0]) if n in methods else "-" for n in names],
                ",".join(f"{n} {c.diverged}" for n, c in methods.items() if c.diverged) or "-",
                _novelty(header, problem[0]),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    note = (
        f"valid: median final validation loss of {header['seeds']} fresh seeds. steps: steps to the final loss of "
        f"{header['reference']}, over the {header['num_steps']} it took; lower is faster, miss means not reached."
    )
    return "\n".join(filter(None, [table, _missing(header, rows), note]))


def _measured(folder: Path) -> tuple[results.Header, list[Row], Cells]:
    """The header, the rows, and what is known of each problem that the reference has finished."""
    header, rows = read(folder)
    finished = results.finished(header, rows)
    return header, rows, summary.summarize(finished, header["reference"], header["num_steps"])


def _missing(header: results.Header, rows: list[Row]) -> str:
    """One line that says what is missing; "" if nothing is."""
    lacking = results.missing(header, rows)
    num_asked = len(header.get("tasks", ())) * len(header.get("methods", ()))
    return f"not finished, {len(lacking)} of {num_asked} are missing: {', '.join(lacking)}" if lacking else ""


def _methods(cells: Cells) -> list[str]:
    return list(dict.fromkeys(name for methods in cells.values() for name in methods))


def _claims(header: dict[str, Any], cells: Cells) -> str:
    paragraphs = []
    for name in header["learned"]:
        if not any(name in methods for methods in cells.values()):
            continue
        claims = summary.claims(cells, name, header["reference"])
        learned, reference = html.escape(name), html.escape(header["reference"])
        for fraction in summary.FRACTIONS:
            ratio = claims[f"steps_ratio_{fraction:.0%}"]
            low, high = ratio["interval"]
            paragraphs.append(
                f"<p><b>{learned}</b> reaches the loss that tuned {reference} has after {fraction:.0%} of "
                f"{header['num_steps']} steps in <b>{_number(ratio['median'])}</b> of its steps (median of "
                f"{claims['num_problems']} problems; 95 % interval for problems like these {_number(low)} to "
                f"{_number(high)}; a miss is infinite).</p>"
            )
        paragraphs.append(
            f"<p>Final validation loss not worse on {claims['final_valid_not_worse']} problems; "
            f"failed runs: {claims['diverged']}.</p>"
        )
    return f"<div class='claim'>{''.join(paragraphs)}</div>"


def _table(header: dict[str, Any], cells: Cells) -> str:
    names = _methods(cells)
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in ["problem", "new in", *names])
    out = [f"<h2>Final validation loss, and steps to the reference's</h2><table><tr>{heads}</tr>"]
    for problem, methods in cells.items():
        novelty = html.escape(_novelty(header, problem[0]))
        goal = methods[header["reference"]].valid[0]
        row = ""
        for name in names:
            cell = methods.get(name)
            shade = "" if name == header["reference"] or not cell else "good" if cell.valid[0] <= goal else "bad"
            row += f"<td class='{shade}'>{_cell(cell) if cell else '-'}</td>"
        out.append(f"<tr><td>{html.escape(_label(problem))}</td><td>{novelty}</td>{row}</tr>")
    out.append(
        "</table><p><small>Medians over fresh seeds with 95 % bootstrap intervals. Steps: to the final loss of the "
        "reference, over the steps it took; miss means not reached. Green: final validation loss not worse than the "
        "reference's.</small></p>"
    )
    return "".join(out)


def _cell(cell: summary.Cell) -> str:
    low, high = statistics.bootstrap(cell.ratios[1.0])
    lines = [
        f"{_number(cell.valid[0])} <small>[{_number(cell.valid[1])}, {_number(cell.valid[2])}]</small>",
        f"<small>train {_number(cell.train[0])}</small>",
        f"steps x {_steps(cell.ratios[1.0])} <small>[{_number(low)}, {_number(high)}]</small>",
    ]
    if cell.rate is not None:
        lines.append(f"<small>rate {cell.rate:g}{' (edge of the grid)' if cell.rate_at_edge else ''}</small>")
    if cell.diverged:
        lines.append(f"<small>{cell.diverged} of {cell.num_seeds} failed</small>")
    return "<br>".join(lines)


def _failures(rows: list[Row]) -> str:
    failed = [
        f"<li>{html.escape(_label((row['task'], row['draw'])) + ': ' + row['method'])}, seed {row['seed']}</li>"
        for row in rows
        if row["phase"] == "report" and row["diverged"]
    ]
    return f"<h2>Failed runs</h2>{'<ul>' + ''.join(failed) + '</ul>' if failed else '<p>None.</p>'}"


def _novelty(header: dict[str, Any], task: str) -> str:
    """The traits in which a task is held out; for each learned algorithm, unless they are the same for all."""
    new = {name: "+".join(tasks.get(task, [])) or "-" for name, tasks in header["novelty"].items()}
    if len(set(new.values())) <= 1:
        return next(iter(new.values()), "-")
    return ", ".join(f"{name}: {what}" for name, what in new.items())


def _label(problem: summary.Problem) -> str:
    return f"{problem[0]} #{problem[1]}" if problem[1] else problem[0]


def _steps(ratios: np.ndarray) -> str:
    return _number(float(statistics.median(ratios)))


def _number(value: float | None) -> str:
    return "miss" if value is None or not np.isfinite(value) else f"{value:.3g}"
