"""The report of a run: one HTML file that holds all of its pictures and asks for nothing from elsewhere."""

from __future__ import annotations

import json
import mimetypes
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldm.files import replacing
from metrics.curve.curves import (
    BANDED,
    CONFIDENCE,
    Curve,
    Row,
    decimal,
    picture_file,
    ranked,
    setting_key,
    setting_words,
)

SIMILARITY_NAMES = {
    "sim_direction": "direction",
    "sim_image": "image",
    "sim_0": "input to caption",
    "sim_1": "output to caption",
}
# Whatever a text might smuggle in, the browser runs no script and fetches nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #62676f; --paper: #fff; --card: #f4f5f7;
  --rule: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --faint: #a0a6b0; --paper: #15171a; --card: #202328; --rule: #3a3f47; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1.5rem 1rem 3rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 0.75rem; font-size: 1.25rem; }
h3 { margin: 1rem 0 0.25rem; font-size: 1rem; }
p { margin: 0.25rem 0; }
img { display: block; max-width: 100%; height: auto; }
.faint, dt, th, figcaption { color: var(--faint); }
.settings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr));
  gap: 0.6rem 1.5rem; margin: 0; }
.settings dt { font-size: 0.8rem; }
.settings dd { margin: 0; }
.drawn { background: #fff; border: 1px solid var(--rule); border-radius: 8px; padding: 0.5rem; }
.plot { max-width: 680px; }
.wide { overflow-x: auto; }
.wide img { max-width: none; width: max(100%, 900px); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 0.3rem 1.25rem 0.3rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
th { font-size: 0.85rem; font-weight: 500; }
.edits { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.edit { background: var(--card); border-radius: 8px; padding: 0.75rem; }
.edit .text { margin: 0.5rem 0; font-weight: 600; }
.edit p { font-size: 0.85rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0.5rem; }
.pair figure { margin: 0; }
.pair img { width: 100%; border-radius: 4px; }
figcaption { font-size: 0.8rem; }
"""


def write_report(
    folder: Path,
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    curves: Sequence[Curve],
    plot_png: Path,
    sheet: Path,
) -> Path:
    """Write ``report.html`` into the folder of a run.

    Args:
        folder: of the run. The best and the worst edits are those among the rows with pictures there.
        settings: of the run, all of which are shown.
        rows: all of the run's.
        curves: of these rows.
        plot_png: picture of the curves.
        sheet: picture of `metrics.curve.scale_sheet.scale_sheet`.

    Raises:
        UserError: it cannot be written.
    """
    name = str(settings["name"])
    there = {file.name for file in (folder / "pictures").glob("*.jpg")}
    best, worst = ranked(row for row in rows if {file.name for file in _pictures(folder, row)} <= there)
    plot = f'<div class="drawn plot">{_image(plot_png, "The curves of this run")}</div>'
    examples = f'<div class="drawn wide">{_image(sheet, "Samples at every scale")}</div>'
    method, clip, pixels = (escape(_plain(settings[what])) for what in ("method", "clip", "pixels"))
    parts = [
        f'<h1>{escape(name)}</h1><p class="faint">{method}, rated by CLIP: {clip}, pixels {pixels}</p>',
        _section("Direction and image similarity", plot),
        _section("Averages", "".join(map(_table, curves))),
        _section("The first samples at every scale", examples),
        _section("Greatest direction similarity", _edits(folder, best)),
        _section("Least direction similarity", _edits(folder, worst)),
        _section("Settings", _settings(settings)),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(name)}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
    )
    report = folder / "report.html"
    with replacing(report) as part:
        part.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))  # an instruction may hold lone surrogates
    return report


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}</section>\n"


def _settings(settings: Mapping[str, Any]) -> str:
    items = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd></div>"
        for name, value in settings.items()
    ]
    return f'<dl class="settings">{"".join(items)}</dl>'


def _plain(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(curve: Curve) -> str:
    """The averages of a curve, one line a scale."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in (curve.varied, *SIMILARITY_NAMES.values()))
    lines = []
    for k, scale in enumerate(curve.scales):
        cells = [f"<td>{decimal(scale)}</td>"]
        for name in SIMILARITY_NAMES:
            band = ""
            if name in BANDED:
                low, high = curve.bands[name][:, k]
                band = f' <span class="faint">{low:.4f} to {high:.4f}</span>'
            cells.append(f"<td>{curve.means[name][k]:.4f}{band}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    title = f"{curve.label}: means of {curve.samples} samples, with bands of {CONFIDENCE:.0%} confidence"
    return (
        f'<h3>{escape(title)}</h3><div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _pictures(folder: Path, row: Row) -> tuple[Path, Path]:
    """Files of an edit's input and output."""
    return picture_file(folder, row["sample"]), picture_file(folder, row["sample"], setting_key(row))


def _edits(folder: Path, rows: Sequence[Row]) -> str:
    if not rows:
        return '<p class="faint">No pictures were kept.</p>'
    return f'<div class="edits">{"".join(_edit(folder, row) for row in rows)}</div>'


def _edit(folder: Path, row: Row) -> str:
    """An edit with its pictures, instruction and similarities."""
    figures = [
        f"<figure>{_image(file, title)}<figcaption>{title}</figcaption></figure>"
        for file, title in zip(_pictures(folder, row), ("input", "output"), strict=True)
    ]
    similarities = " · ".join(f"{title} {row[name]:.3f}" for name, title in SIMILARITY_NAMES.items())
    about = f"sample {row['sample']} ({row['name']}), {', '.join(setting_words(row))}"
    return (
        f'<article class="edit"><div class="pair">{"".join(figures)}</div>'
        f'<p class="text" dir="auto">{escape(row["edit"])}</p>'
        f'<p>{similarities}</p><p class="faint">{escape(about)}</p></article>'
    )


def _image(file: Path, title: str) -> str:
    """A picture as a part of the page."""
    kind, _ = mimetypes.guess_type(file.name)
    return f'<img src="data:{kind};base64,{b64encode(file.read_bytes()).decode()}" alt="{escape(title)}">'
