"""How large the report of a big run is, and how long it takes to make and to open.

    python benchmarks/report_size.py [--requests 5000] [--slots 16] [--chromium PATH] [--json]

Makes a run of the fake backend through the real `swarm run`, then its report. With a
Chromium on the machine, or given, it also measures how long a fresh browser takes to
start, open and draw the page 5,000 pixels high, and the same for an empty page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

AGENTS = 20
STEPS = 10
PERSONAS = ("honest", "strategic", "adversarial", "open")
OPENINGS = 5


def make_run(folder: Path, requests: int, slots: int) -> Path:
    """Run a scenario of about `requests` requests and return its directory."""
    block = {"provider": "llama_cpp", "model": "m", "max_tokens": 64}
    epochs = max(1, round(requests / (AGENTS * STEPS)))
    scenario = {
        "scenario_id": "report_size",
        "agents": [
            {"type": "llm", "count": AGENTS // len(PERSONAS), "llm": {**block, "persona": name}}
            for name in PERSONAS
        ],
        "simulation": {"n_epochs": epochs, "steps_per_epoch": STEPS, "seed": 1},
    }
    config = {
        "scheduler": {"slots": slots, "max_batch": 64, "retry_base_s": 0.01, "retry_cap_s": 0.05},
        "backend": {
            "kind": "fake",
            "fake": {"slots": slots, "latency_s": 0.02, "fault_rate": 0.02},
        },
    }
    paths = [folder / "scenario.yaml", folder / "config.yaml"]
    for path, data in zip(paths, (scenario, config), strict=True):
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
    run = folder / "run"
    words = ["run", paths[0], "--quiet", "--inference-scheduler", "batch"]
    words += ["--inference-config", paths[1], "--run-dir", run]
    command = [sys.executable, "-m", "swarm_integration", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def make_report(run: Path) -> tuple[dict[str, Any], float]:
    """Make the report in a process of its own; return its numbers and the seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "swarm_integration.commands", "report", "--json", str(run)]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers: dict[str, Any] = json.loads(told.stdout)["runs"][0]
    return numbers, time.perf_counter() - began


def drawing_s(chromium: str, page: Path) -> float:
    """Return the median seconds in which a fresh browser starts, opens and draws a page."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,5000"]
    picture = f"--screenshot={page.with_suffix('.png')}"
    samples = []
    for _ in range(OPENINGS):
        began = time.perf_counter()
        command = [chromium, *options, picture, f"file://{page.resolve()}"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def opening(chromium: str, run: Path) -> dict[str, float]:
    """Return what a browser needs for the report and for an empty page."""
    empty = run / "empty.html"
    empty.write_text("<!DOCTYPE html><title>empty</title>", encoding="utf-8")
    return {
        "browser_s": round(drawing_s(chromium, run / "report.html"), 2),
        "browser_empty_s": round(drawing_s(chromium, empty), 2),
    }


def measure(requests: int, slots: int, chromium: str | None) -> dict[str, Any]:
    """Make a run and its report and measure them."""
    with tempfile.TemporaryDirectory() as name:
        run = make_run(Path(name), requests, slots)
        numbers, seconds = make_report(run)
        page = (run / "report.html").read_bytes()
        return {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "requests": numbers["requests"],
            "retries": numbers["retries"],
            "slots": slots,
            "log_bytes": (run / "inference.jsonl").stat().st_size,
            "html_bytes": len(page),
            "elements": page.count(b"</"),
            "make_s": round(seconds, 2),
            **(opening(chromium, run) if chromium else {}),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5000, help="about how many (5000)")
    parser.add_argument("--slots", type=int, default=16, help="slots of the fake backend (16)")
    parser.add_argument("--chromium", help="the browser (default: chromium on the PATH, if any)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.requests < 1 or options.slots < 1:
        parser.error("--requests and --slots must be 1 or more")
    chromium = options.chromium or shutil.which("chromium") or shutil.which("google-chrome")
    found = measure(options.requests, options.slots, chromium)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("{cores} cores, {machine}; {requests:,} requests on {slots} slots".format(**found))
    print(f"log   {found['log_bytes'] / 1000:>8,.0f} kB")
    print(f"page  {found['html_bytes'] / 1000:>8,.0f} kB, {found['elements']:,} elements")
    print(f"make  {found['make_s']:>8.2f} s, Python's start included")
    if chromium is None:
        print("open  not measured: no chromium found")
    else:
        print(f"open  {found['browser_s']:>8.2f} s in a fresh browser, its start included;")
        print(f"      {found['browser_empty_s']:>8.2f} s for an empty page (medians of {OPENINGS})")


if __name__ == "__main__":
    main()
