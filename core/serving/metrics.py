"""Counters of a server, and their text for Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from codecria.core.inference.decoding import Completion

PREFIX = "codecria_"
HELP = {
    "requests_total": ("counter", "Requests by path and HTTP status."),
    "completions_total": ("counter", "Completions that ended, by reason."),
    "prompt_tokens_total": ("counter", "Tokens of prompts."),
    "prompt_tokens_cached_total": ("counter", "Tokens of prompts that the prefix cache held."),
    "prompt_seconds_total": ("counter", "Seconds spent reading prompts."),
    "generated_tokens_total": ("counter", "Tokens generated."),
    "generated_seconds_total": ("counter", "Seconds spent generating, summed over sequences."),
    "draft_tokens_total": ("counter", "Tokens drafted."),
    "draft_tokens_accepted_total": ("counter", "Drafted tokens that were right."),
    "requests_in_progress": ("gauge", "Requests that are not answered yet."),
    "sequences_in_progress": ("gauge", "Sequences in the engine, those that wait included."),
    "prefix_cache_bytes": ("gauge", "Memory held by the prefix cache."),
}


@dataclass(slots=True)
class Metrics:
    """What was counted. Threads may share it."""

    _totals: Counter[str] = field(default_factory=Counter)
    _requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    _reasons: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def request(self, path: str, status: int) -> None:
        """Count a response."""
        with self._lock:
            self._requests[path, status] += 1

    def finished(self, completion: Completion) -> None:
        """Count a completion."""
        with self._lock:
            self._reasons[completion.finish_reason] += 1
            self._totals.update(
                {
                    "prompt_tokens_total": completion.prompt_tokens,
                    "prompt_tokens_cached_total": completion.cached_tokens,
                    "generated_tokens_total": len(completion.ids),
                    "draft_tokens_total": completion.drafted,
                    "draft_tokens_accepted_total": completion.accepted,
                }
            )
            for name, seconds in (
                ("prompt_seconds_total", completion.prefill_s),
                ("generated_seconds_total", completion.decode_s),
            ):
                self._totals[name] += seconds  # type: ignore[assignment]

    def text(self, gauges: dict[str, int]) -> str:
        """All of it in Prometheus's text format.

        Args:
            gauges: values of now, by name.
        """
        with self._lock:
            values: dict[str, list[tuple[str, float]]] = {
                name: [("", total)] for name, total in self._totals.items()
            }
            values["requests_total"] = [
                (f'{{path="{path}",status="{status}"}}', count)
                for (path, status), count in sorted(self._requests.items())
            ]
            values["completions_total"] = [
                (f'{{reason="{reason}"}}', count) for reason, count in sorted(self._reasons.items())
            ]
        values |= {name: [("", value)] for name, value in gauges.items()}
        lines = []
        for name, (kind, help) in HELP.items():
            lines += [f"# HELP {PREFIX}{name} {help}", f"# TYPE {PREFIX}{name} {kind}"]
            lines += [
                f"{PREFIX}{name}{labels} {value:.10g}"
                for labels, value in values.get(name, [("", 0)])
            ]
        return "\n".join(lines) + "\n"
