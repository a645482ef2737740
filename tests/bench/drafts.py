"""Drafts: what they save on real files, what they cost where nothing repeats, beside llama.cpp's.

    python tests/bench/drafts.py MODEL --gguf MODEL.gguf --rounds 3

infill      a gap of some lines in one of this project's files, text before and after it.
repetitive  the third of these gaps whose lines stand nearly so elsewhere in the file.
edit        a piece of a file, then the same with a name changed: its first lines are given, the
            model writes the rest; the piece is the prediction.
rewritten   the same, but with a word in ten of the prediction changed, so that it is often wrong.
continue    a file goes on.
foreign     sampled at temperature 1, with another file as the prediction: nothing in common.

Each case is generated without and with drafts in turn, by two servers on one model, once its prompt
is in their caches; figures are the medians of the cases' ratios, by the clock and by the servers'
CPU time, and of tokens a pass. Drafts must not change a greedy text. llama.cpp (`--gguf`, the same
weights) does the same from the same ids, without and with its prompt lookup, in this process. The
model must have learnt to fill gaps and to copy, or ratios mean little. On a machine that does other
things take `--threads 1` and the ratios by CPU time: the clock's mean nothing there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serve import FILES, Server, codecria

from codecria.core.inference.prompts import Prompts
from codecria.data.tokenizer.tokenizer import Tokenizer

KINDS = ("infill", "repetitive", "edit", "rewritten", "continue", "foreign")
GAP_LINES, BEFORE, AFTER, PIECE = 6, 40, 20, 24
LOOKUPS = (2, 10)  # tokens that llama-cpp-python's lookup drafts: its advice for a CPU, its default


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to generate.

    Attributes:
        kind: one of KINDS.
        path, body: of the request.
        ids: of its prompt, for llama.cpp.
    """

    kind: str
    path: str
    body: dict[str, Any]
    ids: tuple[int, ...]


@dataclass(slots=True)
class Found:
    """What was measured of a kind, a number a case."""

    ratios: list[float] = field(default_factory=list)  # by the clock
    cpu: list[float] = field(default_factory=list)  # by CPU time
    rates: list[float] = field(default_factory=list)
    per_pass: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)  # drafted and not accepted, a token


def cases(prompts: Prompts, count: int, tokens: int) -> Iterator[Case]:
    """Cases of every kind, from files of this project."""
    rng = random.Random(1)
    gaps = sorted((_gap(rng) for _ in range(3 * count)), key=_repeats)
    for number, (before, _, after) in enumerate(gaps):
        kind = "repetitive" if number >= 2 * count else "infill"
        if kind == "infill" and number % 2:
            continue
        body = {"input_prefix": before, "input_suffix": after}
        ids = prompts.infilling(before, after, tokens).ids
        yield Case(kind=kind, path="/infill", body=body, ids=ids)
    for _ in range(count):
        yield from _edits(rng, prompts)
        lines = _lines(rng, BEFORE + 1)
        text = "".join(lines[:BEFORE])
        yield _completion("continue", text, prompts)
        other = {"type": "content", "content": "".join(_lines(rng, 80)[:80])}
        sampled = {"temperature": 1.0, "seed": rng.randrange(1000), "prediction": other}
        yield _completion("foreign", text, prompts, **sampled)


def _lines(rng: random.Random, least: int) -> list[str]:
    """The lines of a file from somewhere on."""
    while True:
        lines = rng.choice(FILES).read_text(encoding="utf-8").splitlines(True)
        if len(lines) > least:
            return lines[rng.randrange(len(lines) - least) :]


def _gap(rng: random.Random) -> tuple[str, str, str]:
    """(before, middle, after) of a gap of whole lines."""
    lines = _lines(rng, BEFORE + GAP_LINES + 2)
    after = lines[BEFORE + GAP_LINES : BEFORE + GAP_LINES + AFTER]
    middle = lines[BEFORE : BEFORE + GAP_LINES]
    return "".join(lines[:BEFORE]), "".join(middle), "".join(after)


def _repeats(gap: tuple[str, str, str]) -> float:
    """The share of a middle's runs of four words and signs that stand in the text around it."""
    runs = []
    for text in gap:
        words = re.findall(r"\w+|[^\w\s]", text)
        runs.append(set(zip(words, words[1:], words[2:], words[3:], strict=False)))
    before, middle, after = runs
    return len(middle & (before | after)) / max(1, len(middle))


def _edits(rng: random.Random, prompts: Prompts) -> Iterator[Case]:
    """A piece of a file written again with a name changed, by a good and by a worse prediction."""
    lines = _lines(rng, PIECE)[:PIECE]
    names = re.findall(r"\b[a-z_]{4,}\b", "".join(lines[:3])) or ["self"]
    old = rng.choice(names)
    changed = [re.sub(rf"\b{old}\b", f"{old}_new", line) for line in lines]
    text = "".join(lines) + "\n\n" + "".join(changed[:3])
    rest = "".join(lines[3:])
    words = rest.split(" ")
    worse = " ".join(word if rng.randrange(10) else "changed" for word in words)
    for kind, guess in (("edit", rest), ("rewritten", worse)):
        yield _completion(kind, text, prompts, prediction={"type": "content", "content": guess})


def _completion(kind: str, text: str, prompts: Prompts, **fields: Any) -> Case:
    ids = prompts.completion(text, 1, truncate="left").ids
    body = {"prompt": text, "truncate": "left", **fields}
    return Case(kind=kind, path="/v1/completions", body=body, ids=ids)


def measure(arguments: argparse.Namespace) -> tuple[dict[tuple[str, str], Found], list[Case]]:
    """What `serve` does with drafts, by (kind, "codecria"); and the cases."""
    found: dict[tuple[str, str], Found] = {}
    quiet = ("--threads", str(arguments.threads), "--cache-disk", "0")
    tokenizer = Tokenizer.load(arguments.model / "tokenizer.model")
    differing = total = 0
    with (
        codecria(arguments.model, *quiet, "--dtype", arguments.dtype) as on,
        codecria(arguments.model, *quiet, "--dtype", arguments.dtype, "--draft", "off") as off,
    ):
        context = off.post("/props", {})["default_generation_settings"]["n_ctx"]
        chosen = list(cases(Prompts(tokenizer, context), arguments.cases, arguments.tokens))
        for round_ in range(arguments.rounds):
            for number, case in enumerate(chosen):
                servers = (off, on) if (round_ + number) % 2 else (on, off)
                if not round_:
                    for server in servers:
                        _asked(server, case, 0)
                answers = {s.port: _asked(s, case, arguments.tokens) for s in servers}
                plain, drafted = answers[off.port], answers[on.port]
                total += 1
                differing += plain.text != drafted.text
                if plain.timings["predicted_n"] < 16:
                    continue  # it ended before there was anything to measure
                _note(found.setdefault((case.kind, "codecria"), Found()), plain, drafted)
    print(f"{differing} of {total} texts differ from those without drafts")
    return found, chosen


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sent, and the CPU time that it took, in seconds."""

    text: str
    timings: dict[str, Any]
    cpu_s: float


def _asked(server: Server, case: Case, tokens: int) -> Answer:
    limits = {"n_predict": tokens, "max_tokens": tokens}
    before = _cpu_s(server)
    answer = server.post(case.path, {"temperature": 0} | case.body | limits)
    text = answer["content"] if case.path == "/infill" else answer["choices"][0]["text"]
    return Answer(text, answer["timings"], _cpu_s(server) - before)


def _cpu_s(server: Server) -> float:
    """CPU time of a server's threads so far."""
    parts = Path(f"/proc/{server.pid}/task").glob("*/schedstat")
    return sum(int(part.read_text().split()[0]) for part in parts) / 1e9


def _note(found: Found, plain: Answer, drafted: Answer) -> None:
    before, after = plain.timings, drafted.timings
    count, right = after["predicted_n"], after.get("draft_n_accepted", 0)
    found.rates.append(after["predicted_per_second"])
    found.ratios.append(after["predicted_per_second"] / before["predicted_per_second"])
    found.cpu.append(plain.cpu_s / drafted.cpu_s)
    found.per_pass.append((count - 1) / max(1, count - 1 - right))
    found.wrong.append((after.get("draft_n", 0) - right) / count)


def llama(arguments: argparse.Namespace, chosen: list[Case]) -> dict[tuple[str, str], Found]:
    """llama.cpp with its prompt lookup beside itself without; greedy cases alone."""
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    def loaded(drafted: int) -> Any:
        draft = LlamaPromptLookupDecoding(num_pred_tokens=drafted) if drafted else None
        return Llama(
            str(arguments.gguf),
            n_ctx=0,  # the model's own
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
            draft_model=draft,
            logits_all=bool(drafted),
            verbose=False,
        )

    models = {drafted: loaded(drafted) for drafted in (0, *LOOKUPS)}
    found: dict[tuple[str, str], Found] = {}
    for _, case in itertools.product(range(arguments.rounds), chosen):
        if case.kind == "foreign":
            continue
        rates = {n: _rates(model, case.ids, arguments.tokens) for n, model in models.items()}
        if any(rate[0] == 0 for rate in rates.values()):
            continue
        for drafted in LOOKUPS:
            noted = found.setdefault((case.kind, f"llama.cpp, {drafted}"), Found())
            noted.rates.append(rates[drafted][0])
            noted.ratios.append(rates[drafted][0] / rates[0][0])
            noted.cpu.append(rates[drafted][1] / rates[0][1])
    return found


def _rates(model: Any, ids: tuple[int, ...], tokens: int) -> tuple[float, float]:
    """Tokens a second after the first, and a second of CPU time; zero where there are too few."""
    model.reset()
    stamps = []
    for token, _ in zip(model.generate(list(ids), temp=0), range(tokens), strict=False):
        stamps.append((time.perf_counter(), time.process_time()))
        if token in (model.token_eos(), *ENDS):
            break
    if len(stamps) < 16:
        return 0.0, 0.0
    clock, cpu = (stamps[-1][n] - stamps[0][n] for n in (0, 1))
    return (len(stamps) - 1) / clock, (len(stamps) - 1) / cpu


ENDS: list[int] = []


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--dtype", default="float32", help="of the weights, as in the GGUF")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    infill = Tokenizer.load(arguments.model / "tokenizer.model").infill
    if infill is not None:
        ENDS.append(infill.end)
    found, chosen = measure(arguments)
    show(found)
    if arguments.gguf is not None:
        theirs = llama(arguments, chosen)
        show(theirs)
        found |= theirs
    if arguments.json is not None:
        document = {f"{kind}, {name}": asdict(values) for (kind, name), values in found.items()}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def show(found: dict[tuple[str, str], Found]) -> None:
    """Print a line a kind."""
    print(
        f"{'kind':11} {'by':14} {'times':>6} {'CPU':>6} {'lowest':>6} {'tokens/s':>9} {'a pass':>7}"
        " wrong"
    )
    for (kind, name), values in sorted(found.items(), key=lambda e: (KINDS.index(e[0][0]), e[0])):
        clock, cpu, rate = map(statistics.median, (values.ratios, values.cpu, values.rates))
        line = f"{kind:11} {name:14} {clock:6.2f} {cpu:6.2f} {min(values.cpu):6.2f} {rate:9.0f}"
        if values.per_pass:
            passes, wrong = statistics.median(values.per_pass), statistics.mean(values.wrong)
            line += f" {passes:7.2f} {wrong:5.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
