"""Runs the test behind each fault of docs/reliability.md and writes the results there.

    python benchmarks/reliability.py           # run them all and print the table
    python benchmarks/reliability.py --write   # ... and put it into docs/reliability.md
    python benchmarks/reliability.py --check   # run nothing: do list, tests and document agree?

Exit code 1 when a test failed, or the document names other faults or tests than this list.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: benchmarks/reliability.py -->", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Fault:
    """What can go wrong, what must happen then, and the tests that show it."""

    name: str
    wanted: str
    tests: tuple[str, ...]


WIRE = "tests/test_wire_faults.py"
DEATHS = "tests/integration/test_server_deaths.py"
RESUME = "tests/swarm/test_resume.py"
JOURNAL = "tests/test_journal.py"
INPROC = "tests/test_llama_inproc_unit.py"
SERVER = "tests/test_llama_server_backend.py"

FAULTS = (
    Fault(
        "server killed in the middle of a batch",
        "what was in flight is asked again, the rest is not touched",
        (f"{WIRE}::test_a_server_killed_in_the_middle_of_a_batch_loses_nothing",),
    ),
    Fault(
        "a managed llama-server killed during a run",
        "started again, a bounded number of times; same trace hash, nothing asked twice",
        (
            f"{DEATHS}::test_a_run_whose_server_is_killed_ends_as_if_it_had_not_been",
            f"{DEATHS}::test_a_server_that_dies_too_often_is_given_up_at_once_and_for_good",
            f"{DEATHS}::test_a_restarted_server_is_followed_to_another_port",
        ),
    ),
    Fault(
        "a user's llama-server killed during a run",
        "waited for; if it stays away the run ends and can be resumed",
        (
            f"{DEATHS}::test_a_users_server_is_waited_for_and_the_run_goes_on",
            f"{DEATHS}::test_a_users_server_that_does_not_come_back_ends_the_run_which_is_"
            "resumed_later",
        ),
    ),
    Fault(
        "a server comes back with another model",
        "refused, with what differs",
        (f"{DEATHS}::test_a_users_server_that_comes_back_with_another_model_is_refused",),
    ),
    Fault(
        "a server that stays away, `on_failure: noop`",
        "later requests fail soon, until it is back",
        (
            "tests/test_readiness.py::test_requests_fail_soon_while_a_server_is_known_to_be_gone",
            f"{WIRE}::test_a_server_that_dies_for_good_leaves_nobody_waiting",
        ),
    ),
    Fault(
        "server hangs, drips, resets, hangs up, answers half",
        "the attempt ends at its deadline, or at once, and is made again",
        (f"{WIRE}::test_each_fault_of_the_wire_has_its_outcome_on_both_sides",),
    ),
    Fault(
        "broken JSON, no choices, an error in a 200, a web page",
        "a typed error, tried again; never anything else, whatever the bytes",
        (
            f"{WIRE}::test_each_fault_of_the_wire_has_its_outcome_on_both_sides",
            f"{SERVER}::test_any_bytes_on_the_wire_are_an_answer_or_an_attempt_error",
            f"{SERVER}::test_any_body_is_an_answer_or_a_malformed_one",
        ),
    ),
    Fault(
        "a fault that does not go away",
        "attempts are used up, and no more are made",
        (f"{WIRE}::test_a_fault_that_stays_uses_up_the_attempts_and_no_more",),
    ),
    Fault(
        "server stopped (SIGSTOP) and continued",
        "attempts end at their deadline; the run goes on",
        (f"{WIRE}::test_a_stopped_server_process_is_timed_out_and_goes_on_when_it_continues",),
    ),
    Fault(
        "503 while the model loads",
        "waits on `/health`; costs no attempt and no retry budget",
        (
            f"{WIRE}::test_a_loading_server_is_waited_for_on_its_health_and_costs_no_attempt",
            "tests/test_engine_retries.py::test_a_loading_server_spends_none_of_the_retry_budget",
        ),
    ),
    Fault(
        "prompt too long",
        "permanent; names the agent, its tokens and the slot's",
        (
            f"{WIRE}::test_each_fault_of_the_wire_has_its_outcome_on_both_sides",
            "tests/integration/test_contract.py::test_a_prompt_that_is_too_long_is_the_same_error",
        ),
    ),
    Fault(
        "schema ignored by the server",
        "found here, asked again a bounded number of times, counted",
        (
            f"{WIRE}::test_a_server_that_ignores_the_schema_is_asked_again_a_bounded_number_of_times",
        ),
    ),
    Fault(
        "429 with Retry-After",
        "honoured, but no longer than the attempt's deadline",
        (
            "tests/test_engine_retries.py::test_retry_after_is_honoured",
            "tests/test_engine_retries.py::test_retry_after_is_capped_by_the_requests_deadline",
        ),
    ),
    Fault(
        "a queue much longer than the deadline",
        "no time-out in the queue, nothing asked twice",
        ("tests/test_engine.py::test_deadline_counts_from_dispatch_and_not_from_the_queue",),
    ),
    Fault(
        "10 to 20 % of the answers broken",
        "the same transcript as without",
        (f"{WIRE}::test_many_requests_through_many_faults_are_as_through_none",),
    ),
    Fault(
        "journal's n-th write fails",
        "the run ends and can be resumed, or goes on and says so once",
        (
            f"{JOURNAL}::test_a_failing_store_aborts_the_run_which_can_be_resumed",
            f"{JOURNAL}::test_a_failing_store_is_said_once_and_the_run_goes_on",
        ),
    ),
    Fault(
        "journal's disk full",
        "the run ends; what was stored is whole",
        (f"{JOURNAL}::test_a_disk_that_is_really_full_ends_the_run_and_loses_nothing",),
    ),
    Fault(
        "journal torn, cut, changed, of another version",
        "opens with what is whole, or is refused with the reason; never wrong data",
        (
            f"{JOURNAL}::test_a_torn_wal_keeps_what_is_whole",
            f"{JOURNAL}::test_a_file_cut_anywhere_is_refused_or_has_only_right_answers",
            f"{JOURNAL}::test_a_changed_answer_is_refused_and_named",
            f"{JOURNAL}::test_another_version_is_refused_and_left_alone",
            "tests/test_model_check.py::TestJournalAgainstDict::runTest",
        ),
    ),
    Fault(
        "process killed at a random point, then `--resume`",
        "same trace hash; no stored answer asked for again",
        (f"{RESUME}::test_killed_anywhere_and_resumed_is_the_uninterrupted_run",),
    ),
    Fault(
        "Ctrl-C once",
        "what is in flight is finished and kept; says how to go on",
        (
            "tests/swarm/test_interrupts.py::"
            "test_once_finishes_what_is_in_flight_and_says_how_to_go_on",
            f"{RESUME}::test_interrupted_and_resumed_is_the_uninterrupted_run",
        ),
    ),
    Fault(
        "Ctrl-C twice",
        "the run ends at once",
        ("tests/swarm/test_interrupts.py::test_twice_ends_at_once",),
    ),
    Fault(
        "cancelled at any await",
        "everything settles, all slots are free, the server sees the hang-up",
        (
            "tests/test_engine_cancellation.py::test_cancel_anywhere_leaves_all_slots_free",
            f"{WIRE}::test_a_cancelled_step_hangs_up_on_everything_in_flight",
        ),
    ),
    Fault(
        "native call of a model in this process stuck",
        "others time out; that model is not used beside the call",
        (
            f"{INPROC}::test_model_that_does_not_return_is_never_used_beside_its_call",
            f"{INPROC}::test_engine_settles_a_request_behind_a_hung_call",
        ),
    ),
    Fault(
        "model file missing, no GGUF, truncated",
        "an error before the simulation starts",
        (
            f"{INPROC}::test_paths_that_name_no_file_are_refused",
            f"{INPROC}::test_file_that_is_no_model_is_refused",
            f"{INPROC}::test_truncated_file_is_refused_wherever_it_is_cut",
        ),
    ),
    Fault(
        "wrong address, wrong model, context too small",
        "an error before the simulation starts",
        (
            f"{SERVER}::test_a_bad_address_is_a_configuration_error",
            "tests/swarm/test_fitness.py::test_wrong_model_is_refused_with_both_names",
            "tests/swarm/test_fitness.py::test_context_must_hold_prompt_growth_and_answer",
        ),
    ),
    Fault(
        "the wall clock jumps by days",
        "no decision changes",
        ("tests/test_wall_clock.py::test_a_wall_clock_that_jumps_changes_nothing",),
    ),
    Fault(
        "all of it at random, on a virtual clock",
        "each request settles once, in order, within its slots, attempts and window; what was "
        "acknowledged stays and is not asked again; same answers",
        ("tests/test_engine_simulation.py::test_invariants_hold_in_random_worlds",),
    ),
    Fault(
        "any order of calls to queue, plan and slots",
        "as plain lists would do",
        ("tests/test_model_check.py::TestLaneAgainstLists::runTest",),
    ),
)


def defined() -> set[str]:
    """Return the tests that the test files define, as pytest names them."""
    return {
        f"{path.relative_to(ROOT).as_posix()}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in _names(ast.parse(path.read_text(encoding="utf-8")))
    }


def _names(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield f"{node.targets[0].id}::runTest"


def run() -> dict[str, list[str]]:
    """Run all tests and return the outcomes of each, one per parameter."""
    tests = sorted({test for fault in FAULTS for test in fault.tests})
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-o", "timeout=600"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        outcomes: dict[str, list[str]] = {test: [] for test in tests}
        for case in cases:
            outcomes[_test_of(case, tests)].append(_outcome(case))
    return outcomes


def _test_of(case: ElementTree.Element, tests: list[str]) -> str:
    place, name = case.attrib["classname"], case.attrib["name"].split("[")[0]
    return next(
        test
        for test in tests
        if test.replace("/", ".").replace(".py::", "::").replace("::", ".") == f"{place}.{name}"
    )


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def table(outcomes: dict[str, list[str]]) -> str:
    """Return the faults as a Markdown table, with results where there are any."""
    lines = ["| fault | what must happen | test | result |", "|---|---|---|---|"]
    for fault in FAULTS:
        names = "<br>".join(f"`{test.partition('::')[2]}`" for test in fault.tests)
        found = [outcome for test in fault.tests for outcome in outcomes.get(test, [])]
        counts = {kind: found.count(kind) for kind in ("passed", "failed", "skipped")}
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        lines.append(f"| {fault.name} | {fault.wanted} | {names} | {said or 'not run'} |")
    return "\n".join(lines)


def check() -> list[str]:
    """Return what is wrong with the list and the document."""
    known = defined()
    text = DOCUMENT.read_text(encoding="utf-8")
    wrong = [f"no such test: {t}" for f in FAULTS for t in f.tests if t not in known]
    written = text.partition(BEGIN)[2].partition(END)[0]
    rows = [row.rpartition(" | ")[0] for row in table({}).splitlines()[2:]]
    missing = [row for row in rows if row not in written]
    wrong += [f"not in {DOCUMENT.name}: {row}" for row in missing]
    if written.count("\n| ") != len(FAULTS) + 1:
        wrong.append(f"{DOCUMENT.name} has rows that are not in the list")
    return wrong


def main() -> int:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    parser.add_argument("--check", action="store_true", help="run nothing")
    args = parser.parse_args()
    if args.check:
        wrong = check()
        print("\n".join(wrong) or "the list, the tests and the document agree")
        return 1 if wrong else 0
    outcomes = run()
    printed = table(outcomes)
    machine = f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}"
    printed += f"\n\nPrinted by `python benchmarks/reliability.py` on {machine}."
    print(printed)
    if args.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{printed}\n{END}{after}", encoding="utf-8")
    return 1 if any("failed" in found or not found for found in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
