"""Drafts: what they save on real files, what they cost where nothing repeats, beside llama.cpp's.

    python tests/bench/drafts.py MODEL --gguf MODEL.gguf --rounds 3
    python tests/bench/drafts.py MODEL --gguf MODEL.gguf --writer developer

infill      a gap of some lines in a file, text before and after it.
repetitive  such a gap, half of whose runs of four words and signs stand in the text around it.
edit        a piece of a file, then the same with a name changed: its first lines are given, the
            model writes the rest; the piece is the prediction.
rewritten   the same, but with a word in ten of the prediction changed, so that it is often wrong.
continue    a file goes on.
foreign     sampled at temperature 1, with another file as the prediction: nothing in common. With
            --writer developer words of the text that goes on, shuffled.

Files are those of Python's own library, or of --files: a model should not have been trained on
them.

--writer model: the model writes. Each case is generated without and with drafts in turn, by two
servers on one model, once its prompt is in their caches. Drafts must not change a greedy text.
llama.cpp (`--gguf`, the same weights) does the same from the same ids, without and with its prompt
lookup, in this process. The model must have learnt to fill gaps and to copy, or ratios mean little.

--writer developer: an UPPER BOUND, for a model that writes what the developer wrote. Both engines
compute every pass in full, and then take the token of the file instead of the model's, so a draft
is accepted where the file says so. Speeds are those of the model's shape, whatever its weights.

Figures are the medians of the cases' ratios, by the clock and by CPU time, and of tokens a pass. On
a machine that does other things take `--threads 1` and the ratios by CPU time: the clock's mean
nothing there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import statistics
import sysconfig
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from serve import Server, codecria

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.drafting import Sources
from codecria.core.inference.engine import Engine
from codecria.core.inference.loading import Compute, load_runner
from codecria.core.inference.prefix_cache import PrefixCache
from codecria.core.inference.prompts import Prompt, Prompts
from codecria.core.inference.sampling import Sampling
from codecria.data.tokenizer.tokenizer import Tokenizer

KINDS = ("infill", "repetitive", "edit", "rewritten", "continue", "foreign")
GAP_LINES, BEFORE, AFTER, PIECE = 6, 40, 20, 24
REPETITIVE = 0.5  # share of a gap's runs of words and signs that stand around it
SHORTEST = 16  # tokens of a text; others end before there is anything to measure
LOOKUPS = (2, 10)  # tokens that llama-cpp-python's lookup drafts: its advice for a CPU, its default


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to generate.

    Attributes:
        kind: one of KINDS.
        path, body: of the request.
        prompt: what the server makes of it.
        written: ids of what the developer wrote there.
    """

    kind: str
    path: str
    body: dict[str, Any]
    prompt: Prompt
    written: tuple[int, ...]


@dataclass(slots=True)
class Found:
    """What was measured of a kind, a number a case."""

    ratios: list[float] = field(default_factory=list)  # by the clock
    cpu: list[float] = field(default_factory=list)  # by CPU time
    rates: list[float] = field(default_factory=list)
    per_pass: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)  # drafted and not accepted, a token


class Files:
    """Real files, and pieces of them at random.

    Args:
        folder: all below it are taken, but for tests and installed packages.
    """

    def __init__(self, folder: Path) -> None:
        self._rng = random.Random(1)
        self._texts = []
        for path in sorted(folder.rglob("*.py")):
            if SKIPPED.isdisjoint(path.relative_to(folder).parts):
                with contextlib.suppress(UnicodeDecodeError):
                    self._texts.append(path.read_text(encoding="utf-8").splitlines(True))

    def lines(self, least: int) -> list[str]:
        """The lines of a file from somewhere on."""
        while True:
            lines = self._rng.choice(self._texts)
            if len(lines) > least:
                return lines[self._rng.randrange(len(lines) - least) :]

    def gap(self, *, repetitive: bool) -> tuple[str, str, str]:
        """(before, middle, after) of a gap of whole lines."""
        while True:
            lines = self.lines(BEFORE + GAP_LINES + 2)
            after = lines[BEFORE + GAP_LINES : BEFORE + GAP_LINES + AFTER]
            middle = lines[BEFORE : BEFORE + GAP_LINES]
            gap = "".join(lines[:BEFORE]), "".join(middle), "".join(after)
            if not repetitive or _repeats(gap) >= REPETITIVE:
                return gap

    def edit(self) -> tuple[str, str, str, str]:
        """(text, what follows it, a good and a worse prediction): a piece with a name changed."""
        lines = self.lines(PIECE)[:PIECE]
        names = re.findall(r"\b[a-z_]{4,}\b", "".join(lines[:3])) or ["self"]
        old = self._rng.choice(names)
        changed = [re.sub(rf"\b{old}\b", f"{old}_new", line) for line in lines]
        rest = "".join(lines[3:])
        words = rest.split(" ")
        worse = " ".join(word if self._rng.randrange(10) else "changed" for word in words)
        text = "".join(lines) + "\n\n" + "".join(changed[:3])
        return text, "".join(changed[3:]), rest, worse


SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def _repeats(gap: tuple[str, str, str]) -> float:
    """The share of a middle's runs of four words and signs that stand in the text around it."""
    runs = []
    for text in gap:
        words = re.findall(r"\w+|[^\w\s]", text)
        runs.append(set(zip(words, words[1:], words[2:], words[3:], strict=False)))
    before, middle, after = runs
    return len(middle & (before | after)) / max(1, len(middle))


def cases(files: Files, prompts: Prompts, count: int, tokens: int) -> Iterator[Case]:
    """Cases of every kind."""
    rng = random.Random(1)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(prompts.tokenizer.encode(text, leading_space=False)[:tokens])

    def completion(kind: str, text: str, written: str, guess: str = "", **fields: Any) -> Case:
        prompt = prompts.completion(text, 1, truncate="left", prediction=guess)
        body = {"prompt": text, "truncate": "left", **fields}
        if guess:
            body["prediction"] = {"type": "content", "content": guess}
        path = "/v1/completions"
        return Case(kind=kind, path=path, body=body, prompt=prompt, written=ids(written))

    for _ in range(count):
        for kind in ("infill", "repetitive"):
            before, middle, after = files.gap(repetitive=kind == "repetitive")
            body = {"input_prefix": before, "input_suffix": after}
            prompt = prompts.infilling(before, after, tokens)
            yield Case(kind=kind, path="/infill", body=body, prompt=prompt, written=ids(middle))
        text, changed, good, worse = files.edit()
        yield completion("edit", text, changed, good)
        yield completion("rewritten", text, changed, worse)
        lines = files.lines(BEFORE + AFTER)
        text, follows = "".join(lines[:BEFORE]), "".join(lines[BEFORE : BEFORE + AFTER])
        yield completion("continue", text, follows)
        other = "".join(files.lines(80)[:80])
        sampled = {"temperature": 1.0, "seed": rng.randrange(1000)}
        foreign = completion("foreign", text, follows, other, **sampled)
        shuffled = rng.sample(foreign.written, len(foreign.written))
        yield replace(foreign, written=tuple(shuffled))


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
        prompts, files = Prompts(tokenizer, context), Files(arguments.files)
        chosen = list(cases(files, prompts, arguments.cases, arguments.tokens))
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
                if plain.timings["predicted_n"] < SHORTEST:
                    continue
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


class Dictated:
    """A runner that computes as another does, and whose scores say what the developer wrote.

    Args:
        runner: computes, one sequence at a time.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._written: tuple[int, ...] = ()
        self._start = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def dictate(self, start: int, written: tuple[int, ...]) -> None:
        """These ids stand from position `start` on."""
        self._start, self._written = start, written

    def prefill(self, row: int, prompts: list[list[int]]) -> Any:
        """The scores behind a prompt."""
        scores = self._runner.prefill(row, prompts)
        self._say(scores, self._runner.lengths[row])
        return scores

    def decode(self, row: int, tokens: list[list[int]]) -> Any:
        """The scores behind each token."""
        first = self._runner.lengths[row] + 1
        scores = self._runner.decode(row, tokens)
        self._say(scores, first)
        return scores

    def _say(self, scores: Any, first: int) -> None:
        for place, token in enumerate(self._written[max(0, first - self._start) :][: len(scores)]):
            scores[place, token] = 1e9


def dictated(arguments: argparse.Namespace) -> tuple[dict[tuple[str, str], Found], list[Case]]:
    """What drafts save where the model writes what the developer wrote; and the cases."""
    checkpoint = Checkpoint.open(arguments.model)
    threads = arguments.threads
    compute = Compute(engine="native", device="cpu", dtype=arguments.dtype, threads=threads)
    runner = Dictated(load_runner(checkpoint, compute, print))
    tokenizer = Tokenizer.load(arguments.model / "tokenizer.model")
    prompts, files = Prompts(tokenizer, checkpoint.config.max_context), Files(arguments.files)
    chosen = [
        case
        for case in cases(files, prompts, arguments.cases, arguments.tokens)
        if len(case.written) >= SHORTEST
    ]
    cache, found = PrefixCache(), dict[tuple[str, str], Found]()
    engine = Engine(runner, tokenizer.stream, cache=cache)

    def answer(case: Case, sources: Sources | None) -> Answer:
        runner.dictate(len(case.prompt.ids), case.written)
        number = engine.add(
            case.prompt.ids,
            sampling=Sampling(),
            limits=Limits(max_tokens=len(case.written)),
            ends=frozenset(),
            sources=sources,
        )
        while engine.first_at(number) is None:
            engine.step()
        began = time.process_time()
        [done] = [event for _, event in engine.run() if isinstance(event, Completion)]
        cpu_s = time.process_time() - began
        assert done.ids == case.written, "the runner did not say what was dictated"
        timings = {
            "predicted_n": len(done.ids),
            "predicted_per_second": (len(done.ids) - 1) / done.decode_s,
            "draft_n": done.drafted,
            "draft_n_accepted": done.accepted,
        }
        return Answer(done.text, timings, cpu_s)

    for round_ in range(arguments.rounds):
        for number, case in enumerate(chosen):
            answers = {}
            for drafts in (True, False) if (round_ + number) % 2 else (False, True):
                answers[drafts] = answer(case, case.prompt.sources if drafts else None)
            _note(found.setdefault((case.kind, "codecria"), Found()), answers[False], answers[True])
    return found, chosen


def llama(arguments: argparse.Namespace, chosen: list[Case]) -> dict[tuple[str, str], Found]:
    """llama.cpp with its prompt lookup beside itself without; what is sampled is left out."""
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    class Writer(Llama):  # type: ignore[misc]
        """Draws as ever, and takes what the developer wrote instead where that is dictated."""

        dictated: tuple[int, tuple[int, ...]] | None = None

        def sample(self, *args: Any, idx: int | None = None, **options: Any) -> int:
            token = super().sample(*args, idx=idx, **options)
            if self.dictated is None:
                return int(token)
            start, written = self.dictated
            assert idx is not None
            return written[min(idx + 1 - start, len(written) - 1)]

    def loaded(drafted: int) -> Any:
        draft = LlamaPromptLookupDecoding(num_pred_tokens=drafted) if drafted else None
        return Writer(
            str(arguments.gguf),
            n_ctx=0,  # the model's own
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
            draft_model=draft,
            logits_all=bool(drafted),
            verbose=False,
        )

    infill = Tokenizer.load(arguments.model / "tokenizer.model").infill
    models = {drafted: loaded(drafted) for drafted in (0, *LOOKUPS)}
    found: dict[tuple[str, str], Found] = {}
    for _, case in itertools.product(range(arguments.rounds), chosen):
        tokens, ends = arguments.tokens, {models[0].token_eos(), infill and infill.end}
        if arguments.writer == "developer":
            tokens, ends = len(case.written), set()
            for model in models.values():
                model.dictated = len(case.prompt.ids), case.written
        elif case.kind == "foreign":
            continue
        rates = {n: _rates(model, case.prompt.ids, tokens, ends) for n, model in models.items()}
        if any(rate[0] == 0 for rate in rates.values()):
            continue
        for drafted in LOOKUPS:
            noted = found.setdefault((case.kind, f"llama.cpp, {drafted}"), Found())
            noted.rates.append(rates[drafted][0])
            noted.ratios.append(rates[drafted][0] / rates[0][0])
            noted.cpu.append(rates[drafted][1] / rates[0][1])
    return found


def _rates(
    model: Any, ids: tuple[int, ...], tokens: int, ends: Collection[int | None]
) -> tuple[float, float]:
    """Tokens a second after the first, and a second of CPU time; zero where there are too few."""
    model.reset()
    stamps = []
    for token, _ in zip(model.generate(list(ids), temp=0), range(tokens), strict=False):
        stamps.append((time.perf_counter(), time.process_time()))
        if token in ends:
            break
    if len(stamps) < SHORTEST:
        return 0.0, 0.0
    clock, cpu = (stamps[-1][n] - stamps[0][n] for n in (0, 1))
    return (len(stamps) - 1) / clock, (len(stamps) - 1) / cpu


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--writer", choices=("model", "developer"), default="model")
    library = Path(sysconfig.get_path("stdlib"))
    parser.add_argument("--files", type=Path, default=library, help="a folder of Python files")
    parser.add_argument("--dtype", default="auto", help="of the weights, as in the GGUF")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found, chosen = (dictated if arguments.writer == "developer" else measure)(arguments)
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
