"""The report as one HTML page, with its images in the same folder."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from lossops.verify.tables import Table, to_html

Picture = tuple[str, str]  # file, caption

_CSS = """
:root { --ink: #222; --quiet: #667; --line: #e3e3e8; --accent: #0072b2; --good: #00795a;
        --bad: #b93a00; --paper: #fff; --shade: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --quiet: #a0a3ad; --line: #34363d;
        --accent: #56b4e9; --good: #3ccf9f; --bad: #ff8a57; --paper: #17181c; --shade: #202227; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 68rem; color: var(--ink);
       background: var(--paper); font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 .6rem; padding-top: .8rem;
     border-top: 1px solid var(--line); }
p { max-width: 46rem; }
.lead, .note, figcaption { color: var(--quiet); }
.note { font-size: .87rem; margin: .5rem 0 0; }
nav a { margin-right: 1.1rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem;
         margin: 1.8rem 0; }
.card { background: var(--shade); border-radius: 8px; padding: 1rem 1.2rem; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; font-weight: 650; }
.card span { color: var(--quiet); font-size: .9rem; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
figure { margin: 1.8rem 0; }
figure.table figcaption { font-weight: 600; color: var(--ink); margin-bottom: .5rem; }
figure img { width: 100%; height: auto; border-radius: 8px; background: #fff;
             border: 1px solid var(--line); padding: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th, td { padding: .32rem .7rem; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 500; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:hover { background: var(--shade); }
ul.reasons { padding-left: 1.2rem; } ul.reasons li { margin: .35rem 0; max-width: 50rem; }
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
    cards = (
        (sum(row["passed"] for row in checked), len(checked), "verifications passed", "verify"),
        (sum(o["met"] for o in outcomes), len(outcomes), "targets met", "bench"),
        (
            sum(f["confirmed"] for f in findings),
            len(findings),
            "claims confirmed",
            "classification",
        ),
    )
    drawn = "".join(
        f'<a class="card" href="#{anchor}"><b class="{"good" if n == of else "bad"}">{n} / {of}</b>'
        f"<span>{words}</span></a>"
        for n, of, words, anchor in cards
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
