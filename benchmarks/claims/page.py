"""The report as one HTML page, with its images in the same folder."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from lossops.verify.tables import Table, to_html

Picture = tuple[str, str]  # file, caption

_CSS = """
:root { color-scheme: light dark; --line: #8884; --shade: #8881; --good: #00996f; --bad: #d94f10; }
body { margin: 0 auto; padding: 3rem 1.5rem; max-width: 68rem;
       font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
h2 { margin-top: 3.5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
a { color: inherit; text-decoration: none; }
.lead, .note, figcaption, th, .card span { opacity: .7; }
.note, .card span { font-size: .88rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; }
.card { background: var(--shade); border-radius: 8px; padding: 1rem 1.2rem; }
.card b { display: block; font-size: 1.7rem; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
figure { margin: 1.8rem 0; } .table figcaption { font-weight: 600; opacity: 1; }
figure img { width: 100%; background: #fff; border-radius: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th, td { padding: .32rem .7rem; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def page(sections: Iterable[str], title: str, lead: str, summary: str) -> str:
    """The complete document."""
    sections = list(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        f"{summary}\n{''.join(sections)}</body>\n</html>\n"
    )


def section(
    name: str, title: str, words: str, pictures: Iterable[Picture], tables: Iterable[Table]
) -> str:
    figures = "\n".join(_figure(*picture) for picture in pictures)
    drawn = "\n".join(map(to_html, tables))
    return (
        f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n<p>{html.escape(words)}</p>\n'
        f"{figures}\n{drawn}\n</section>\n"
    )


def _figure(file: str, caption: str) -> str:
    text = html.escape(caption)
    return f'<figure><img src="{file}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def summary(
    verified: dict[str, Any],
    failures: list[str],
    outcomes: list[dict[str, Any]],
    findings: list[dict[str, Any]],
) -> str:
    """The summary: verdicts, and the reasons for all failures."""
    checked = [*verified["numbers"], *verified["checks"]]
    drawn = "".join(
        f'<a class="card" href="#{anchor}"><b class="{"good" if all(good) else "bad"}">{sum(good)} '
        f"/ {len(good)}</b><span>{words}</span></a>"
        for words, anchor, good in (
            ("verifications passed", "verify", [row["passed"] for row in checked]),
            ("targets met", "bench", [outcome["met"] for outcome in outcomes]),
            ("claims confirmed", "classification", [row["confirmed"] for row in findings]),
        )
    )
    return f'<div class="cards">{drawn}</div>\n{_shortfalls(failures, outcomes, findings)}'


def _shortfalls(failures, outcomes, findings) -> str:
    items = [f"<b>Fails:</b> {html.escape(failure)}" for failure in failures]
    for outcome in (o for o in outcomes if not o["met"]):
        items.append(
            f"<b>Target missed:</b> {html.escape(outcome['target'])} on {outcome['device']}, goal "
            f"{outcome['goal']}: {html.escape('; '.join(outcome['missed']))}. "
            f"{html.escape(outcome['reason'])}"
        )
    for finding in (f for f in findings if not f["confirmed"]):
        items.append(
            f"<b>Claim not confirmed:</b> {html.escape(finding['claim'])}: "
            f"{html.escape(finding['measured'])}"
        )
    if not items:
        return '<p class="good">Nothing fell short.</p>'
    listed = "\n".join(f"<li>{item}</li>" for item in items)
    return f'<h3>What fell short</h3>\n<ul class="reasons">\n{listed}\n</ul>'
