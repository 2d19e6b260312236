"""The full report: trains, verifies, measures, plots, and writes an HTML page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.bench import families as bench_all
from benchmarks.claims import classification as classification_claims
from benchmarks.claims import classification_plots, classifying, page, plots, training
from benchmarks.claims import regression as claims
from lossops.specs import FAMILIES
from lossops.specs.elementwise import REGRESSION
from lossops.verify import machine, optional, verifier
from lossops.verify.progress import progress
from lossops.verify.tables import Table, show


def build(folder: Path, quick: bool = False) -> dict[str, Any]:
    """Writes ``index.html``, its images and ``report.json`` into a folder. Returns the data."""
    for package in ("numpy", "matplotlib", "sklearn"):
        optional(package)  # fail now rather than after minutes of work
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = machine.stamp() | {"quick": quick, "seconds": {}}
    sections = [
        _timed(part, result, folder, quick) for part in (_train, _classify, _verify, _bench, _draw)
    ]
    info = result["info"]
    gpus = "".join(f", {gpu}" for gpu in info["gpus"])
    lead = (
        f"lossops {info['lossops']} with torch {info['torch']} on {info['processor']}, "
        f"{info['cores']} cores{gpus}, {result['date']}. "
        + ("Quick mode: nothing here is a measurement. " if quick else "")
        + "Times are medians of interleaved rounds; only ratios within a table compare."
    )
    verified = result["verify"]
    failures = verifier.failures(verified)
    top = page.summary(verified, failures, result["targets"], result["claims"])
    title = "lossops: trained, verified, measured"
    (folder / "index.html").write_text(page.page(sections, title, lead, top), encoding="utf-8")
    machine.write(result, folder / "report.json")
    return result


def _timed(part, result, folder, quick) -> str:
    start = time.perf_counter()
    section = part(result, folder, quick)
    result["seconds"][part.__name__.strip("_")] = round(time.perf_counter() - start, 1)
    return section


def _section(name: str, title: str, words: str, pictures, tables: list[Table]) -> str:
    for table in tables:
        show(table)
    return page.section(name, title, words, pictures, tables)


def _train(result, folder: Path, quick: bool) -> str:
    with progress("training", len(REGRESSION) + 2) as advance:
        rows = training.train(REGRESSION, advance, *((3, 60) if quick else ()))
        convergence = training.convergence(200 if quick else 1500)
        advance("steps to converge")
        fit = training.outlier_fit(100 if quick else 800)
        advance("a fit with outliers")
    found = claims.findings(rows, convergence)
    result |= {"training": rows, "convergence": convergence, "outliers": fit, "claims": found}
    tables = claims.tables(rows, convergence)
    pictures = [
        plots.draw_training(folder / "training.png", rows, training.EVERY),
        plots.draw_outlier_fit(folder / "outliers.png", fit),
    ]
    words = (
        "A regressor is trained on real data once per loss, through the fused kernels: first with "
        "the true labels, then with a tenth of the training labels ten times too large, as by a "
        "slipped decimal point. All losses see the same splits, starting weights and wrong labels."
    )
    return _section("training", "Training on real data", words, pictures, tables)


def _classify(result, folder: Path, quick: bool) -> str:
    total = len(classifying.CONTENDERS) + len(classifying.RACERS)
    with progress("classifying", total) as advance:
        rows = classifying.train(advance=advance, **({"seeds": 2, "steps": 60} if quick else {}))
        race = classifying.race(*((100, 1) if quick else ()), advance=advance)
    found = classification_claims.findings(rows, race)
    result |= {"classification": rows, "race": race, "claims": result["claims"] + found}
    tables = classification_claims.tables(rows, race)
    tables.append(claims.table(result["claims"]))
    picture = classification_plots.draw_training(folder / "label_noise.png", rows)
    words = (
        "A classifier is trained on real data once per loss: first with the true labels, then with "
        "three tenths of the training labels wrong, and with some losses on soft labels, too. All "
        "losses see the same splits, starting weights, batches and wrong labels. What is claimed "
        "of regression and of classification losses is decided below."
    )
    return _section("classification", "Training a classifier", words, [picture], tables)


def _verify(result, folder: Path, quick: bool) -> str:
    with progress("verifying", verifier.pieces()) as advance:
        result["verify"] = verifier.verify(advance=advance)
    tables = verifier.tables(result["verify"])
    words = (
        "Each loss on each backend of this machine: values, gradients and second derivatives "
        "against a more exact truth and against torch, with proof that the backend asked for ran."
    )
    return _section("verify", "Verification", words, (), tables)


def _bench(result, folder: Path, quick: bool) -> str:
    with progress("measuring", bench_all.pieces(FAMILIES)) as advance:
        found = bench_all.bench(FAMILIES, advance, quick)
    result |= found
    rows, tables = found["bench"], bench_all.tables(found)
    pictures = plots.draw_bench(folder, rows)
    words = (
        "A fused step reads input and target once and writes the gradient once. Contenders take "
        "turns within one process, so that what else the machine does hits all of them."
    )
    return _section("bench", "Measurements", words, pictures, tables)


def _draw(result, folder: Path, quick: bool) -> str:
    with progress("drawing", 1) as advance:
        pictures = [*plots.draw_losses(folder), *classification_plots.draw_losses(folder)]
        advance("the losses")
    words = (
        "Values and derivatives by lossops' own kernels, second derivatives through autograd. "
        "A loss has the same colour in every picture."
    )
    return _section("losses", "The losses", words, pictures, ())
