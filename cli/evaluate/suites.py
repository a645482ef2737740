"""The benchmarks of `codecria evaluate TASK`: help, prompt forms, and which options each has."""

from __future__ import annotations

from typing import Any, Literal

HELPS = {
    "humaneval": """Score functions completed from their heads: HumanEval, or problems like it.

The prompt is continued as published, greedily unless --preset says otherwise. --also-chat asks as a
question too, for models tuned on instructions. Reference solutions run first.

Example: codecria evaluate humaneval --problems HumanEval.jsonl.gz --model run --out he.jsonl
""",
    "mbpp": """Score small programs written from a sentence and three tests: MBPP.

Tasks 11 to 510 with three others shown; --prompt-form tagged asks without any.

Example: codecria evaluate mbpp --problems mbpp.jsonl --model run --out mbpp.out.jsonl
""",
    "infilling": """Score what is filled into functions: HumanEval infilling.

Example: codecria evaluate infilling --problems HumanEval-SingleLineInfilling.jsonl.gz --model run
""",
    "humaneval-x": """Score functions in C++, Go, Java, JavaScript, Python or Rust: HumanEval-X.

Example: codecria evaluate humaneval-x --problems humaneval_java.jsonl.gz --model run
""",
    "multipl-e": """Score functions in many languages: MultiPL-E. It has no reference solutions.

Example: codecria evaluate multipl-e --problems humaneval-cpp.jsonl --model run
""",
    "apps": """Score programs for contest problems: APPS.

Two examples are shown; --prompt-form chat asks zero-shot, for models tuned on instructions. pass@5,
10 and 100 of 200 samples, by level. A folder in the original's layout is read too.

Example: codecria evaluate apps --problems test.jsonl --level introductory --model run -o apps.jsonl
""",
    "gsm8k-programs": """Score word problems of grade school, answered by a Python function: GSM8K.

Example: codecria evaluate gsm8k-programs --problems test.jsonl --model run
""",
    "humaneval-plus": """Score functions against many more inputs: HumanEval+ of EvalPlus.

Example: codecria evaluate humaneval-plus --problems HumanEvalPlus.jsonl.gz --model run
""",
    "mbpp-plus": """Score small programs against many more inputs: MBPP+ of EvalPlus.

Example: codecria evaluate mbpp-plus --problems MbppPlus.jsonl.gz --model run
""",
    "cruxeval-o": """Score predictions of what a function returns: CRUXEval, output.

Example: codecria evaluate cruxeval-o --problems cruxeval.jsonl --model run
""",
    "cruxeval-i": """Score inputs for which a function returns a given value: CRUXEval, input.

Example: codecria evaluate cruxeval-i --problems cruxeval.jsonl --model run
""",
    "livecodebench": """Score programs for contest problems of a span of dates: LiveCodeBench.

Example: codecria evaluate livecodebench --problems test.jsonl --since 2024-08-01 --model run
""",
    "safim": """Score blocks, conditions and API calls filled into programs: SAFIM.

Programs with unit tests run, in C++, Java, C# and Python; API calls must be the original's.

Example: codecria evaluate safim --problems block_completion.jsonl.gz --model run --form both
""",
    "exercises": """Score exercises of your own: questions with tests, as self-instruct writes them.

Their heads are completed; --prompt-form chat asks the questions.

Example: codecria evaluate exercises --problems made/dialogs.jsonl --prompt-form chat --model run
""",
}
# Options that only some tasks have.
ASKED_IN_CHAT = (
    *("mbpp", "humaneval", "exercises", "apps", "humaneval-plus", "mbpp-plus"),
    *("cruxeval-o", "cruxeval-i", "livecodebench", "humaneval-x", "multipl-e"),
)
ONLY = {
    "prompt_form": ASKED_IN_CHAT,
    "also_chat": ASKED_IN_CHAT,
    "extract": (
        "mbpp",
        "humaneval",
        "exercises",
        "apps",
        "humaneval-plus",
        "mbpp-plus",
        "livecodebench",
    ),
    "level": ("apps", "livecodebench"),
    "since": ("livecodebench",),
    "until": ("livecodebench",),
    "split": ("mbpp",),
    "form": ("infilling", "safim"),
    "strip_prompt": (
        *("humaneval", "humaneval-x", "multipl-e", "exercises", "humaneval-plus", "mbpp-plus"),
    ),
}
FORMS: dict[str, Any] = {
    "mbpp": Literal["few-shot", "tagged", "chat"],
    "humaneval": Literal["completion", "chat"],
    "exercises": Literal["completion", "chat"],
    "humaneval-plus": Literal["completion", "chat"],
    "humaneval-x": Literal["completion", "chat"],
    "multipl-e": Literal["completion", "chat"],
    "mbpp-plus": Literal["completion", "chat"],
    "apps": Literal["few-shot", "chat"],
    "cruxeval-o": Literal["few-shot", "chat"],
    "cruxeval-i": Literal["few-shot", "chat"],
    "livecodebench": Literal["few-shot", "chat"],
}
PresetName = Literal[
    "paper-greedy",
    "paper-sampled",
    "table5",
    "apps",
    "cruxeval",
    "livecodebench",
    "sweep-0.1",
    "sweep-0.4",
    "sweep-0.6",
    "sweep-0.8",
]
