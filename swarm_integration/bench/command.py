"""`swarm-inference bench workload`: records, serves in turns, and says what came out."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scheduler.errors import SchedulerError
from scheduler.gguf_file import file_sha256, read_gguf_header
from swarm_integration.bench.document import Place
from swarm_integration.bench.models import preset_model
from swarm_integration.bench.options import STDOUT, WorkloadOptions, check, command_of, cpus
from swarm_integration.bench.results import OURS, RATES_OF, WAYS, Case, ratios, rows
from swarm_integration.bench.tables import (
    Table,
    markdown,
    rates_table,
    ratio_table,
    show,
    speed_table,
)
from swarm_integration.bench.turns import Part, Turn, measured_of, served_of, take
from swarm_integration.bench.whole_runs import WholeRuns, time_whole_runs, whole_table
from swarm_integration.bench.workload import Workload, record
from swarm_integration.compat import swarm_version
from swarm_integration.schemas import PromptLayout

MODELS = Path("models")


def bench_workload(options: WorkloadOptions) -> int:
    """Measure what the options ask for; return the exit code.

    Raises:
        ConfigError: An option can't be used; nothing has been started.
        SchedulerError: A way failed.
    """
    check(options)
    model = options.model or preset_model(options.preset, MODELS)
    threads = options.threads or cpus()
    with TemporaryDirectory(prefix="bench-") as name:
        bench = _Bench(options, model.absolute(), threads, Path(name))
        bench.measure()
    tables = bench.tables()
    if options.json == STDOUT:
        print(json.dumps(bench.facts()))
    else:
        print(bench.machine)
        show(tables, sys.stdout)
    if options.markdown is not None:
        text = f"`{command_of(options)}`, {bench.machine}.\n\n{markdown(tables)}"
        Place.of(options.markdown).put(text)
    return 0


class _Bench:
    """One measurement, from the recorded prompts to its tables.

    Args:
        options: What is measured.
        model: The GGUF file.
        threads: CPU threads.
        folder: For logs and results of the turns.
    """

    def __init__(self, options: WorkloadOptions, model: Path, threads: int, folder: Path) -> None:
        self._options = options
        self._model = model
        self._threads = threads
        self._folder = folder
        self._cases: list[Case] = []
        self._files: dict[int, Path] = {}
        self._whole: WholeRuns | None = None
        self._turns = 0
        header = read_gguf_header(model)
        self._model_facts = {
            "file": model.name,
            "sha256": file_sha256(model),
            "bytes": header.bytes,
            "quantization": header.quantization,
        }
        self.machine = (
            f"{cpus()} {platform.machine()} CPUs, {threads} threads; {model.name} "
            f"({header.quantization}, {header.bytes / 1e6:.0f} MB); "
            + ("one round" if options.rounds == 1 else f"medians of {options.rounds} rounds")
        )

    def measure(self) -> None:
        """Record the workloads and give every way its turns."""
        for agents in self._options.agents:
            for layout in self._options.layouts:
                self._record(agents, layout)  # type: ignore[arg-type]  # one of argparse's choices
        for number in range(1, self._options.rounds + 1):
            for index, case in enumerate(self._cases):
                self._round(number, index, case)
            if self._options.json not in (None, STDOUT):
                self._save(Path(str(self._options.json)))
        if self._options.whole_runs:
            self._whole = time_whole_runs(
                self._options, self._model, self._threads, self._folder, self._tell
            )
            if self._options.json not in (None, STDOUT):
                self._save(Path(str(self._options.json)))

    def tables(self) -> list[Table]:
        """Return what is shown."""
        tables = []
        for agents in self._options.agents:
            cases = [case for case in self._cases if case.agents == agents]
            for case in cases:
                tables.append(speed_table(case, rows(case)))
                if case.measured:
                    tables.append(rates_table(case))
            compared = ratios(cases)
            if compared:
                tables.append(ratio_table(agents, compared))
        if self._whole is not None:
            tables.append(whole_table(self._whole))
        return tables

    def facts(self) -> dict[str, Any]:
        """Return all numbers, as JSON data."""
        cases = [
            {**asdict(case), "rows": [asdict(row) for row in rows(case)]} for case in self._cases
        ]
        agents = dict.fromkeys(case.agents for case in self._cases)
        return {
            "format": 1,
            "command": command_of(self._options),
            "machine": {"cpus": cpus(), "machine": platform.machine(), "system": platform.system()},
            "versions": {
                "python": platform.python_version(),
                "swarm": swarm_version(),
                "swarm-inference-scheduler": version("swarm-inference-scheduler"),
            },
            "model": self._model_facts,
            "threads": self._threads,
            "rounds": self._options.rounds,
            "ways": dict(WAYS),
            "cases": cases,
            "ratios": [
                {"agents": count, **asdict(ratio)}
                for count in agents
                for ratio in ratios([case for case in self._cases if case.agents == count])
            ],
            "whole_runs": None if self._whole is None else asdict(self._whole),
        }

    def _record(self, agents: int, layout: PromptLayout) -> None:
        options = self._options
        workload = record(agents, options.steps, layout, self._folder)
        if options.requests is not None:
            workload = workload.first(options.requests)
        if options.output_tokens is not None:
            workload = workload.with_output_tokens(options.output_tokens)
        path = self._folder / f"workload-{agents}-{layout}.json"
        workload.save(path)
        self._files[len(self._cases)] = path
        self._cases.append(_case(workload))
        self._tell(f"recorded {agents} agents, {layout}: {len(workload.questions)} requests")

    def _round(self, number: int, index: int, case: Case) -> None:
        where = f"round {number} of {self._options.rounds}, {case.agents} agents, {case.layout}"
        ways = [way for way in self._options.ways if way in OURS or case.layout == "upstream"]
        for way in ways:
            served = served_of(self._take(way, index, case))  # type: ignore[arg-type]  # a letter
            if served.output_tokens != case.output_tokens:
                raise SchedulerError(
                    f"way {way} wrote {served.output_tokens} tokens and not {case.output_tokens}, "
                    "so its time can't be compared; is the context too small for the prompts?"
                )
            case.served.setdefault(way, []).append(served)
            speed = 60 * served.requests / served.seconds
            self._tell(f"{where}: ({way}) {served.seconds:.1f} s, {speed:.1f} requests/min")
        for part in dict.fromkeys(RATES_OF[way] for way in ways if way in OURS):
            measured = measured_of(self._take(part, index, case))  # type: ignore[arg-type]  # one
            case.measured.setdefault(part, []).append(measured)
            shown = ", ".join(
                f"({way}) {one.seconds:.1f} s" for way, one in measured.oracles.items()
            )
            self._tell(f"{where}: oracle {shown}")

    def _take(self, part: Part, index: int, case: Case) -> dict[str, Any]:
        self._turns += 1
        slots: Any = self._options.slots or "auto"
        if part == "rates-inproc" and case.served.get("g"):
            slots = case.served["g"][-1].slots
        folder = self._folder / f"turn-{self._turns}"
        return take(
            Turn(part, str(self._files[index]), str(self._model), self._threads, slots, str(folder))
        )

    def _save(self, path: Path) -> None:
        path.write_text(json.dumps(self.facts(), indent=1) + "\n", encoding="utf-8")

    def _tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _case(workload: Workload) -> Case:
    return Case(
        agents=workload.agents,
        steps=workload.steps,
        layout=workload.layout,
        sha256=workload.sha256,
        rounds=tuple((one[0].kind, len(one)) for one in workload.rounds),
        output_tokens=sum(question.output_tokens for question in workload.questions),
        context=workload.context,
    )
