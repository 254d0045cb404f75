"""The options of the subcommands of `swarm-inference`, and what their `--help` says.

Words alone, so that `--help` is quick: what the subcommands do is in `commands`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from swarm_integration.certify_options import add_certify_options
from swarm_integration.help_texts import add_command

DEFAULT_PORT = 8080
DEFAULT_CONTEXT = 4096


def demo_options(commands: Any) -> argparse.ArgumentParser:
    """Add `demo`."""
    demo = add_command(
        commands,
        "demo",
        "one batched SWARM run on a small model, from nothing",
        "Writes a small model with random weights to models/demo.gguf, starts a real llama-server "
        "with it, runs 12 LLM agents through it and prints what happened. It needs no download "
        "and no API key. What the model says means nothing.",
        {
            "swarm-inference demo": "the whole demo",
            "swarm-inference demo --slots 2 --run-dir runs/two": "two requests at once",
        },
    )
    demo.add_argument("--slots", type=int, default=4, help="slots of the server (default: 4)")
    demo.add_argument("--seed", type=int, default=42, help="seed of the run (default: 42)")
    demo.add_argument("--run-dir", type=Path, metavar="DIR", help="where the run writes")
    return demo


def serve_options(commands: Any) -> argparse.ArgumentParser:
    """Add `serve`."""
    serve = add_command(
        commands,
        "serve",
        "start a llama-server on 127.0.0.1 for several runs",
        "Starts a llama-server with the settings that suit many agents, says where it is, and "
        "runs until Ctrl-C. It uses llama-server from PATH, or the one in the Python package "
        "xllamacpp.",
        {
            "swarm-inference serve --model models/demo.gguf": "4 slots of 4096 tokens, port 8080",
            "swarm-inference serve --model models/demo.gguf --slots 8 --context-per-slot 8192": (
                "more requests at once, and longer prompts"
            ),
            "swarm-inference serve --model models/demo.gguf --profile invariant": (
                "answers that do not depend on what else is asked at the time"
            ),
        },
    )
    serve.add_argument("--model", type=Path, required=True, metavar="FILE", help="GGUF file")
    serve.add_argument("--slots", type=int, default=4, help="requests at once (default: 4)")
    serve.add_argument(
        "--context-per-slot",
        type=int,
        default=DEFAULT_CONTEXT,
        metavar="N",
        help=f"tokens of prompt and answer that a slot holds (default: {DEFAULT_CONTEXT})",
    )
    serve.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"0 picks a free one (default: {DEFAULT_PORT})",
    )
    serve.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: one per physical core, of more than 4 one less)",
    )
    serve.add_argument(
        "--n-gpu-layers", type=int, default=0, metavar="N", help="layers on the GPU (default: 0)"
    )
    serve.add_argument(
        "--profile",
        choices=["fast", "invariant"],
        default="fast",
        help="invariant: an answer does not depend on what shares its batch; needs quantized "
        "weights and reads prompts more slowly (default: fast)",
    )
    serve.add_argument("--alias", metavar="NAME", help="the model name that the server reports")
    serve.add_argument(
        "--server", metavar="PATH", help="the llama-server program to use, or xllamacpp"
    )
    serve.add_argument(
        "--log",
        type=Path,
        default=Path("runs/server.log"),
        metavar="FILE",
        help="what the server says (default: runs/server.log)",
    )
    return serve


def make_model_options(commands: Any) -> argparse.ArgumentParser:
    """Add `make-model`."""
    model = add_command(
        commands,
        "make-model",
        "write a small GGUF model with random weights",
        "Writes a model that every llama.cpp can load, for trying things out and for measuring "
        "speed. Its answers mean nothing. The same preset and seed give the same file.",
        {
            "swarm-inference make-model": "models/demo.gguf, 5.7 MB",
            "swarm-inference make-model --preset bench": "models/bench.gguf, 135 MB",
        },
    )
    model.add_argument(
        "--preset",
        choices=["demo", "bench", "bench-1b"],
        default="demo",
        help="demo: 5 million parameters; bench: 126 million; bench-1b: 1.1 billion "
        "(default: demo)",
    )
    model.add_argument("--output", type=Path, metavar="FILE", help="default: models/PRESET.gguf")
    model.add_argument("--seed", type=int, help="seed of the weights (default: demo 5, others 0)")
    return model


def replay_options(commands: Any) -> argparse.ArgumentParser:
    """Add `replay`."""
    replay = add_command(
        commands,
        "replay",
        "run a run again from its journal, without a model, and compare",
        "Every answer of a run is in its directory. This runs the simulation again with those "
        "answers and compares transcript and metrics, byte by byte.",
        {"swarm-inference replay runs/try": "the run that wrote runs/try"},
    )
    replay.add_argument("run_dir", type=Path, metavar="DIR", help="the run's directory")
    replay.add_argument(
        "--trust-scenario",
        action="store_true",
        help="replay a scenario that starts programs or calls servers of its own too",
    )
    replay.add_argument(
        "--journal", type=Path, metavar="FILE", help="its journal, where it was moved elsewhere"
    )
    return replay


def doctor_options(commands: Any) -> argparse.ArgumentParser:
    """Add `doctor`."""
    doctor = add_command(
        commands,
        "doctor",
        "check the installation, the machine, a server, a model, a scenario",
        "Looks at all that a run needs and prints a line for each: ok, warning or error, and what "
        "mends it. It changes nothing unless --fix is given, starts no simulation and sends no "
        "prompt. Exit code 0 without errors, 1 with.",
        {
            "swarm-inference doctor": "this installation and this machine",
            "swarm-inference doctor scenarios/llm_llama_cpp.yaml": "whether a scenario would run",
            "swarm-inference doctor scenarios/llm_batch_12.yaml "
            "--inference-config configs/managed_server.yaml": "the same with a configuration",
            "swarm-inference doctor --base-url http://127.0.0.1:8081/v1": "a server",
            "swarm-inference doctor --model models/demo.gguf": "a model file",
        },
    )
    doctor.add_argument(
        "scenario", type=Path, nargs="?", metavar="SCENARIO", help="a scenario that is to run"
    )
    doctor.add_argument(
        "--inference-config", type=Path, metavar="FILE", help="settings, as for swarm run"
    )
    doctor.add_argument("--base-url", metavar="URL", help="the server to look at")
    doctor.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file to look at")
    doctor.add_argument(
        "--fix",
        action="store_true",
        help="do what is safe: put our `swarm` script back, make missing folders",
    )
    return doctor


def report_options(commands: Any) -> argparse.ArgumentParser:
    """Add `report`."""
    report = add_command(
        commands,
        "report",
        "show a run, or several side by side, and write an HTML page of it",
        "Prints tables of a run and writes one page that opens without network: queue and service "
        "times, a timeline of every slot, tokens per second, actions, failures. Several "
        "directories are compared.",
        {
            "swarm-inference report runs/try": "tables, and the page runs/try/report.html",
            "swarm-inference report runs/one runs/two": "two runs side by side",
            "swarm-inference report runs/try --trace trace.json": "a trace for ui.perfetto.dev",
        },
    )
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="DIR", help="a run's directory")
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: DIR/report.html; for several runs comparison.html in the first)",
    )
    report.add_argument("--no-html", action="store_true", help="write no page")
    report.add_argument("--png", type=Path, metavar="FILE", help="also a picture for papers")
    report.add_argument(
        "--trace", type=Path, metavar="FILE", help="also a trace for ui.perfetto.dev"
    )
    return report


def certify_parser(commands: Any) -> argparse.ArgumentParser:
    """Add `certify`."""
    certify = add_command(
        commands,
        "certify",
        "measure what a backend's arithmetic promises, or whether a run repeats itself",
        "Asks a backend the same prompts alone and in batches, in shuffled order, with cold and "
        "warm prefixes, and counts different answers. The verdict is invariant, repeatable or "
        "ordered, and runs on that backend quote it. With --run a whole scenario is repeated in "
        "many ways, and its trace hashes are compared.",
        {
            "swarm-inference certify --inference-config configs/managed_server.yaml": (
                "a llama-server that is started and stopped for it"
            ),
            "swarm-inference certify --base-url http://127.0.0.1:8080/v1 --quick": (
                "your own llama-server, a shorter measurement"
            ),
            "swarm-inference certify --run scenarios/llm_batch_12.yaml "
            "--inference-config configs/fake.yaml": "one trace hash, whatever the slots?",
        },
    )
    add_certify_options(certify)
    return certify
