"""The settings of the scheduler and its backends, and how they are read.

pydantic models mirror the YAML files in `configs/`. Unknown keys, wrong types
and impossible combinations become one `ConfigError` that names the key, the
value and what is allowed. What belongs to SWARM is in `swarm_integration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlparse

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from scheduler.errors import ConfigError
from scheduler.yaml_text import load_yaml

Count = Annotated[int, Field(ge=1, strict=True)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """One part of a configuration file; keys that it does not know are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), validate_default=True
    )


class SchedulerConfig(Section):
    """How requests are packed, retried and given up."""

    max_batch: Count = Field(16, description="Most requests ordered and handed over together.")
    slots: Literal["auto"] | Count = Field(
        "auto",
        description="How many run at once, per backend; auto takes what the server has. A managed "
        "server has 4, on the CPU as many as the scenario's prompts have different prefixes, from "
        "4 to 16, if that much memory is there; a batched model in this process 16 if half of the "
        "memory stays free, else the most of 8, 4, 2 and 1 that fits.",
    )
    prefix_copies: Literal["auto"] | Count = Field(
        "auto",
        description="Most slots that hold the same prompt prefix; a slot stays free rather than "
        "read one once more. auto: for a managed server on the CPU the slots divided by the "
        "prefixes of the scenario, else no limit.",
    )
    on_failure: Literal["abort", "noop"] = Field(
        "abort", description="End the run when a request fails for good, or go on and count it."
    )
    structured_output: bool = Field(
        True, description="Send the output schema and check each answer against it."
    )
    max_reasks: Annotated[int, Field(ge=0, le=10, strict=True)] = Field(
        2, description="How often an answer that breaks its schema is asked for again."
    )
    retry_budget: Annotated[int, Field(ge=0, strict=True)] = Field(
        1000, description="Retries that the whole run may spend; when they are gone it ends."
    )
    retry_base_s: Seconds = Field(0.5, description="First pause before a retry, in seconds.")
    retry_cap_s: Seconds = Field(30.0, description="Longest pause before a retry, in seconds.")
    queue_limit: Count = Field(
        4096, description="Most requests waiting at once; who brings more waits for room."
    )


class FakeConfig(Section):
    """The fake backend: answers made from the request alone, for tests and dry runs."""

    slots: Count = Field(4, description="How many requests it takes at once.")
    context_per_slot: Count = Field(32768, description="Tokens that a slot holds.")
    latency_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="Longest time an answer takes, in seconds; each draws its own."
    )
    fault_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Share of attempts that fail; which ones follows from the request's seed and "
        "the attempt, and the last attempt that a request has always succeeds.",
    )


class OpenAIConfig(Section):
    """An OpenAI-compatible endpoint: what it can't be asked for."""

    slots: Literal["auto"] | Count = Field(
        "auto",
        description="How many requests it is sent at once; auto: scheduler.slots where that is a "
        "number, else 8 for a cloud and 4 for any other endpoint.",
    )
    context_per_slot: Count | None = Field(
        None, description="Tokens of a prompt and its answer together; null: not checked."
    )
    model: str | None = Field(
        None, description="Model asked for with kind: openai; null: the one that each agent names."
    )
    requests_per_minute: Count | None = Field(
        None, description="Spaces the starts of requests by this rate; null: no limit of our own."
    )
    send_seed: bool = Field(True, description="Send each request's seed.")
    send_schema: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Send the output schema: until the server refuses it, always (a refusal is an "
        "error), or never. The answer is checked here all the same.",
    )


class BackendConfig(Section):
    """Who answers the requests."""

    kind: Literal["auto", "llama_server", "llama_inproc", "openai", "fake"] = Field(
        "auto",
        description="auto: each agent's own `llm:` block says where its model is. Any other kind "
        "serves all LLM agents of the run: llama_inproc with model_path in this process, openai "
        "with any OpenAI-compatible endpoint.",
    )
    base_url: str | Annotated[tuple[str, ...], Field(strict=False)] = Field(
        "http://127.0.0.1:8080/v1",
        description="Address of the llama-server or the endpoint, http or https; with kind: "
        "llama_server also a list of equal servers, which share the work.",
    )
    allow_different_servers: bool = Field(
        False,
        description="Take servers of a list that differ in model, build or settings; an answer "
        "then depends on which one gave it.",
    )
    api_key_env: str | None = Field(
        None,
        description="Name of the environment variable that holds the server's API key; for a "
        "cloud that SWARM knows (OpenAI, ...), null takes the usual one.",
    )
    api_key_file: Path | None = Field(
        None,
        strict=False,
        description="File that holds the API key and that nobody else may read (mode 600); "
        "instead of api_key_env.",
    )
    managed: bool = Field(
        False, description="Start a llama-server with model_path for the run and stop it after."
    )
    model_path: Path | None = Field(
        None, strict=False, description="GGUF file that a managed server or this process loads."
    )
    engine: Literal["auto", "locked", "batched"] = Field(
        "auto",
        description="How a model in this process answers: one prompt after another (locked), or "
        "several at once in steps whose sizes were found to give the same bits (batched). auto: "
        "batched where such sizes are found, else locked.",
    )
    flash_attention: Literal["auto"] | bool = Field(
        "auto",
        description="How a model in this process attends: in one pass over keys and values (true) "
        "or with all scores at once (false), which gives other bits. auto: true on a CPU whose "
        "build of llama-cpp-python has AVX-512, where it is faster, else false.",
    )
    n_gpu_layers: Annotated[int, Field(ge=0, strict=True)] = Field(
        0, description="Layers put on the GPU by a managed server or a model in this process."
    )
    threads: Count | None = Field(
        None,
        description="CPU threads of a managed server or a model in this process; null: one per "
        "physical core, of more than 4 one less.",
    )
    context_per_slot: Literal["auto"] | Count = Field(
        "auto",
        description="Tokens per slot of a managed server or a model in this process; auto fits "
        "the scenario.",
    )
    thinking: bool | None = Field(
        None, description="Let a thinking model think first; null leaves the template's default."
    )
    ready_timeout_s: Seconds = Field(
        120.0, description="How long a server may take to get ready, in seconds."
    )
    max_restarts: Annotated[int, Field(ge=0, strict=True)] = Field(
        3,
        description="How often a managed server that has died or hangs is started again in a run.",
    )
    openai: OpenAIConfig = OpenAIConfig()
    fake: FakeConfig = FakeConfig()

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The addresses, one or more."""
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url

    @field_validator("base_url")
    @classmethod
    def _plain_http(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return check_base_url(value)
        urls = tuple(check_base_url(url) for url in value)
        if not urls or len(set(urls)) != len(urls):
            raise ValueError("must name one server or more, each once")
        return urls[0] if len(urls) == 1 else urls

    @field_validator("model_path")
    @classmethod
    def _plain_path(cls, value: Path | None) -> Path | None:
        if value is not None and ".." in value.parts:
            raise ValueError("must not contain '..'")
        if value is not None and value.suffix.lower() != ".gguf":
            raise ValueError("must name a .gguf file")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> BackendConfig:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("give api_key_env or api_key_file, not both")
        if not isinstance(self.base_url, str) and (self.kind != "llama_server" or self.managed):
            raise ValueError("a list as base_url needs kind: llama_server, and managed: false")
        if self.managed and self.kind != "llama_server":
            raise ValueError("managed: true needs kind: llama_server")
        if self.managed and self.model_path is None:
            raise ValueError("managed: true needs model_path, the GGUF file to serve")
        if self.kind == "llama_inproc" and self.model_path is None:
            raise ValueError("kind: llama_inproc needs model_path, the GGUF file to load")
        if self.kind not in ("auto", "llama_inproc"):
            for key in ("engine", "flash_attention"):
                if getattr(self, key) != "auto":
                    raise ValueError(
                        f"{key} is for a model in this process (kind: llama_inproc or auto)"
                    )
        return self


class LoggingConfig(Section):
    """What is written about a run."""

    format: Literal["json"] = Field(
        "json", description="How inference.jsonl is written: one JSON object a line."
    )
    prompts: bool = Field(
        False, description="Write prompts and answers into inference.jsonl as well."
    )


def check_base_url(value: str) -> str:
    """Return `value` without a trailing slash.

    Raises:
        ValueError: It is not an http or https address with a host.
    """
    parsed = urlparse(value)
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise ValueError("must be an http or https address such as http://127.0.0.1:8080/v1")
    return value.rstrip("/")


C = TypeVar("C", bound=Section)


def load_config(model: type[C], path: Path | None, overrides: Mapping[str, Any]) -> C:
    """Read a YAML file into `model`; `overrides` beat the file, the file the defaults.

    Args:
        model: The configuration class.
        path: The file, or None for defaults alone.
        overrides: Values by dotted key (`scheduler.slots`); None means not given.

    Raises:
        ConfigError: The file can't be read, or a value is not allowed.
    """
    data = {} if path is None else _read_yaml(path)
    for key, value in overrides.items():
        if value is not None:
            _put(data, key, value)
    return validate(model, data, source=str(path or "the command line"))


def validate(model: type[C], data: Mapping[str, Any], *, source: str) -> C:
    """Return `data` as a `model`.

    Raises:
        ConfigError: Each key that is wrong, its value and what is allowed.
    """
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise ConfigError(
            f"{source}: {'; '.join(_explain(exc, model))}. See docs/configuration.md"
        ) from exc


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"configuration {path} can't be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(
            f"configuration {path} is not YAML: {' '.join(str(exc).split())}"
        ) from exc
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"configuration {path} must be a mapping with keys such as scheduler:")
    return data


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{section} must be a mapping, got {inner!r}")
        data = inner
    data[name] = value


_LONGEST_QUOTE = 200
_ALTERNATIVES = ("literal['auto']", "constrained-int", "bool", "str", "tuple[str, ...]")
"""What pydantic adds to a key's place where a value may be of several kinds."""


def _explain(exc: ValidationError, model: type[Section]) -> list[str]:
    """Return one text for each key that is wrong; a key may break several rules."""
    reasons: dict[str, list[str]] = {}
    for error in exc.errors():
        place = [part for part in map(str, error["loc"]) if part not in _ALTERNATIVES]
        key = ".".join(place) or "the configuration"
        if error["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(model, place[:-1]))
            reasons[f"unknown key {key!r} (known here: {known})"] = []
            continue
        reason = error["msg"].removeprefix("Value error, ")
        given = "" if isinstance(error["input"], dict) else f" = {_quoted(error['input'])}"
        reasons.setdefault(f"{key}{given}", []).append(f"{reason[:1].lower()}{reason[1:]}")
    return [
        f"{key}: {' or '.join(dict.fromkeys(of))}" if of else key for key, of in reasons.items()
    ]


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


def _known_keys(model: type[BaseModel], place: list[str]) -> list[str]:
    for part in place:
        if part.isdecimal():  # a place in a list
            continue
        annotation = model.model_fields[part].annotation
        model = next(
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    return sorted(model.model_fields)
