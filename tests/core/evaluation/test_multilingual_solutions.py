"""Ten problems in PHP, TypeScript, C#, Bash, Go and Rust, with right and wrong solutions.

Problems and solutions are written for this project, in the shape of the published files. Every
right one passes, and every wrong one fails at a test, not in the compiler.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("codecria.core.sandbox.sandbox")

from codecria.core.evaluation.benchmarks import braces
from codecria.core.evaluation.benchmarks.execution import Job, program_of, run_all
from codecria.core.evaluation.benchmarks.multilingual import parse_e, parse_x
from codecria.core.evaluation.benchmarks.problems import Problem
from codecria.core.sandbox import languages
from codecria.core.sandbox.sandbox import Sandbox, choose_tier
from codecria.core.sandbox.verdict import Limits, Outcome
from codecria.data.errors import UserError

pytestmark = pytest.mark.slow  # compilers run

# name: (types of the arguments, type of the result, cases)
PROBLEMS: dict[str, tuple[str, str, list[tuple[list[Any], Any]]]] = {
    "add": ("ii", "i", [([2, 3], 5), ([-4, 4], 0)]),
    "largest": ("iii", "i", [([1, 2, 3], 3), ([9, 2, 3], 9), ([1, 5, 3], 5)]),
    "even": ("i", "b", [([4], True), ([7], False), ([0], True)]),
    "factorial": ("i", "i", [([5], 120), ([0], 1)]),
    "reverse": ("s", "s", [(["abc"], "cba"), (["x y"], "y x")]),
    "vowels": ("s", "i", [(["education"], 5), (["xyz"], 0)]),
    "gcd": ("ii", "i", [([12, 18], 6), ([7, 3], 1)]),
    "repeat": ("si", "s", [(["ab", 3], "ababab"), (["z", 1], "z")]),
    "digits": ("i", "i", [([1234], 10), ([90], 9)]),
    "palindrome": ("s", "b", [(["level"], True), (["ab"], False)]),
}
# A right and a wrong body of each, by language. Arguments are a, b, c.
BODIES: dict[str, dict[str, tuple[str, str]]] = {
    "php": {
        "add": ("return $a + $b;", "return $a - $b;"),
        "largest": ("return max($a, $b, $c);", "return max($a, $b);"),
        "even": ("return $a % 2 === 0;", "return $a % 2 === 1;"),
        "factorial": ("return $a < 2 ? 1 : $a * factorial($a - 1);", "return $a * ($a - 1);"),
        "reverse": ("return strrev($a);", "return $a;"),
        "vowels": ("return preg_match_all('/[aeiou]/', $a);", "return substr_count($a, 'a');"),
        "gcd": ("while ($b) { [$a, $b] = [$b, $a % $b]; } return $a;", "return min($a, $b);"),
        "repeat": ("return str_repeat($a, $b);", "return $a . $a;"),
        "digits": ("return array_sum(str_split((string) $a));", "return strlen((string) $a);"),
        "palindrome": ("return strrev($a) === $a;", "return true;"),
    },
    "typescript": {
        "add": ("return a + b;", "return a - b;"),
        "largest": ("return Math.max(a, b, c);", "return Math.max(a, b);"),
        "even": ("return a % 2 === 0;", "return a % 2 === 1;"),
        "factorial": ("return a < 2 ? 1 : a * factorial(a - 1);", "return a * (a - 1);"),
        "reverse": ("return [...a].reverse().join('');", "return a;"),
        "vowels": ("return (a.match(/[aeiou]/g) || []).length;", "return a.length;"),
        "gcd": ("while (b) { [a, b] = [b, a % b]; } return a;", "return Math.min(a, b);"),
        "repeat": ("return a.repeat(b);", "return a + a;"),
        "digits": (
            "let n = 0; for (const d of String(a)) { n += Number(d); } return n;",
            "return String(a).length;",
        ),
        "palindrome": ("return [...a].reverse().join('') === a;", "return true;"),
    },
    "csharp": {
        "add": ("return a + b;", "return a - b;"),
        "largest": ("return Math.Max(a, Math.Max(b, c));", "return Math.Max(a, b);"),
        "even": ("return a % 2 == 0;", "return a % 2 == 1;"),
        "factorial": ("return a < 2 ? 1 : a * Factorial(a - 1);", "return a * (a - 1);"),
        "reverse": ("return new string(a.Reverse().ToArray());", "return a;"),
        "vowels": ('return a.Count(x => "aeiou".Contains(x));', "return a.Length;"),
        "gcd": ("while (b != 0) { var t = a % b; a = b; b = t; } return a;", "return b;"),
        "repeat": ("return string.Concat(Enumerable.Repeat(a, (int)b));", "return a + a;"),
        "digits": ("return a.ToString().Sum(x => x - '0');", "return a.ToString().Length;"),
        "palindrome": ("return a == new string(a.Reverse().ToArray());", "return true;"),
    },
    "bash": {
        "add": ("echo $(($1 + $2))", "echo $(($1 - $2))"),
        "largest": ("printf '%s\\n' \"$@\" | sort -n | tail -n 1", "echo $(($1 > $2 ? $1 : $2))"),
        "even": ("(($1 % 2)) && echo false || echo true", "(($1 % 2)) && echo true || echo false"),
        "factorial": (
            "local n=1 i; for ((i = 2; i <= $1; i++)); do n=$((n * i)); done; echo $n",
            "echo $(($1 * ($1 - 1)))",
        ),
        "reverse": ('echo "$1" | rev', 'echo "$1"'),
        "vowels": ("local v=${1//[^aeiou]/}; echo ${#v}", "echo ${#1}"),
        "gcd": (
            "local a=$1 b=$2 t; while ((b)); do t=$((a % b)); a=$b; b=$t; done; echo $a",
            "echo $2",
        ),
        "repeat": ('local i; for ((i = 0; i < $2; i++)); do printf %s "$1"; done', 'echo "$1$1"'),
        "digits": ("echo $(($(echo $1 | sed 's/./+&/g')))", "echo ${#1}"),
        "palindrome": ('[[ $(echo "$1" | rev) = "$1" ]] && echo true || echo false', "echo true"),
    },
    "go": {
        "add": ("return a + b", "return a - b"),
        "largest": (
            "if b > a {\n a = b\n}\nif c > a {\n a = c\n}\nreturn a",
            "if b > a {\n return b\n}\nreturn a",
        ),
        "even": ("return a%2 == 0", "return a%2 == 1"),
        "factorial": ("if a < 2 {\n return 1\n}\nreturn a * factorial(a-1)", "return a * (a - 1)"),
        "reverse": (
            'r := ""\nfor _, c := range a {\n r = string(c) + r\n}\nreturn r',
            "return a",
        ),
        "vowels": (
            'n := 0\nfor _, c := range a {\n if strings.ContainsRune("aeiou", c) {\n n++\n}\n}\n'
            "return n",
            "return len(a)",
        ),
        "gcd": ("for b != 0 {\n a, b = b, a%b\n}\nreturn a", "return b"),
        "repeat": ("return strings.Repeat(a, b)", "return a + a"),
        "digits": ("n := 0\nfor ; a > 0; a /= 10 {\n n += a % 10\n}\nreturn n", "return a % 10"),
        "palindrome": (
            "for i := range a {\n if a[i] != a[len(a)-1-i] {\n return false\n}\n}\nreturn true",
            "return true",
        ),
    },
    "rust": {
        "add": ("a + b", "a - b"),
        "largest": ("a.max(b).max(c)", "a.max(b)"),
        "even": ("a % 2 == 0", "a % 2 == 1"),
        "factorial": ("if a < 2 { 1 } else { a * factorial(a - 1) }", "a * (a - 1)"),
        "reverse": ("a.chars().rev().collect()", "a"),
        "vowels": (
            'a.chars().filter(|c| "aeiou".contains(*c)).count() as i64',
            "a.len() as i64",
        ),
        "gcd": ("if b == 0 { a } else { gcd(b, a % b) }", "b"),
        "repeat": ("a.repeat(b as usize)", "a.repeat(2)"),
        "digits": ("a.to_string().bytes().map(|d| (d - b'0') as i64).sum()", "a % 10"),
        "palindrome": ("a == a.chars().rev().collect::<String>()", "true"),
    },
}
NAMES = {"i": "long", "s": "string", "b": "bool"}


def problem(language: str, name: str) -> Problem:
    """A problem in the shape of MultiPL-E's files, or of HumanEval-X's for Go and Rust."""
    kinds, result, cases = PROBLEMS[name]
    letters = "abc"[: len(kinds)]
    text = json.dumps
    if language == "php":
        head = f"<?php\n// Do it.\nfunction {name}({', '.join(f'${x}' for x in letters)}) {{\n"
        tests = f"function candidate(...$args) {{\n    return {name}(...$args);\n}}\n\n"
        tests += "function test(): void {\n"
        for given, wanted in cases:
            call = f"candidate({', '.join(map(text, given))})"
            tests += (
                f'    if ({call} !== {text(wanted)}) {{ throw new Exception("Test failed!"); }}\n'
            )
        tests += "}\n\ntest();"
        stops = ["\nfunction"]
    elif language == "typescript":
        types = {"i": "number", "s": "string", "b": "boolean"}
        given_types = ", ".join(f"{x}: {types[k]}" for x, k in zip(letters, kinds, strict=True))
        head = f"//Do it.\nfunction {name}({given_types}): {types[result]} {{\n"
        tests = "declare var require: any;\nconst assert = require('node:assert');\n\n\n"
        tests += f"function test() {{\n  let candidate = {name};\n"
        for given, wanted in cases:
            tests += (
                f"  assert.deepEqual(candidate({', '.join(map(text, given))}),{text(wanted)});\n"
            )
        tests += "}\n\ntest();"
        stops = ["\nfunction "]
    elif language == "csharp":
        called = name.capitalize()
        given_types = ", ".join(f"{NAMES[k]} {x}" for x, k in zip(letters, kinds, strict=True))
        head = "using System;\nusing System.Diagnostics;\nusing System.Linq;\nclass Problem {\n"
        head += f"    // Do it.\n    public static {NAMES[result]} {called}({given_types}) {{\n"
        tests = "    }\n    public static void Main(string[] args) {\n"
        for given, wanted in cases:
            call = ", ".join(
                f"({text(v)}{'L' if k == 'i' else ''})" for v, k in zip(given, kinds, strict=True)
            )
            equal = f".Equals(({text(wanted)}))" if result == "s" else f" == ({text(wanted)})"
            tests += f"    Debug.Assert({called}({call}){equal});\n"
        tests += "    }\n\n}\n"
        stops = ["\n    }\n"]
    elif language == "bash":
        head = f"#!/bin/bash\n# Do it.\n{name}() {{\n"
        tests = f'}}\n\ncandidate() {{\n    {name} "$@"\n}}\n\nset -e\nrun_test() {{\n'
        for given, wanted in cases:
            shown = str(wanted).lower() if result == "b" else str(wanted)
            tests += (
                f"    [[ $(candidate {' '.join(text(str(v)) for v in given)}) = {text(shown)} ]]\n"
            )
        tests += "}\n\nrun_test\n"
        stops = ["\n}"]
    elif language == "go":
        types = {"i": "int", "s": "string", "b": "bool"}
        given_types = ", ".join(f"{x} {types[k]}" for x, k in zip(letters, kinds, strict=True))
        tests = f"func Test{name}(t *testing.T) {{\n    assert := assert.New(t)\n"
        for given, wanted in cases:
            tests += f"    assert.Equal({text(wanted)}, {name}({', '.join(map(text, given))}))\n"
        return parse_x(
            {
                "task_id": "Go/900",
                "prompt": 'import (\n    "strings"\n)\n\n// Do it.\n'
                f"func {name}({given_types}) {types[result]} {{\n",
                "canonical_solution": f"{BODIES['go'][name][0]}\n}}\n",
                "test": f"{tests}}}\n",
                "test_setup": 'package main\n\nimport (\n    "testing"\n'
                '    "github.com/stretchr/testify/assert"\n)\n',
            }
        )
    else:
        types = {"i": "i64", "s": "String", "b": "bool"}
        given_types = ", ".join(f"{x}: {types[k]}" for x, k in zip(letters, kinds, strict=True))

        def rust(value: Any) -> str:
            return f"String::from({text(value)})" if isinstance(value, str) else text(value)

        tests = "\n#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n"
        tests += f"    fn t_{name}() {{\n"
        for given, wanted in cases:
            tests += f"        assert_eq!({name}({', '.join(map(rust, given))}), {rust(wanted)});\n"
        return parse_x(
            {
                "task_id": "Rust/900",
                "prompt": "\n/*\n Do it.\n*/\n",
                "declaration": "\nuse std::{cmp::{max, self}};\nuse rand::Rng;\nuse regex::Regex;\n"
                f"use md5;\n\nfn {name}({given_types}) -> {types[result]} {{\n",
                "canonical_solution": f"{BODIES['rust'][name][0]}\n}}\n",
                "test": f"{tests}    }}\n\n}}\n",
            }
        )
    record = {"name": f"Own_{name}", "prompt": head, "tests": tests, "stop_tokens": stops}
    return parse_e({**record, "language": {"csharp": "cs", "bash": "sh"}.get(language, language)})


def completion(language: str, body: str) -> str:
    """A body as the suite's completions are: with the brace that the tests do not have."""
    return f"{body}\n" if language in ("csharp", "bash") else f"{body}\n}}\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        choose_tier()
    except UserError as error:
        pytest.skip(str(error))
    with Sandbox(limits=Limits(wall_s=20.0)) as opened:
        yield opened


@pytest.mark.parametrize("language", BODIES)
def test_right_solutions_pass_and_wrong_ones_fail_at_a_test(
    sandbox: Sandbox, language: str
) -> None:
    if why := languages.missing(language):
        pytest.skip(why)
    jobs = []
    for name in PROBLEMS:
        asked = problem(language, name)
        for body in BODIES[language][name]:
            source = asked.source(completion(language, body))
            jobs.append(Job(program_of(asked, source), 20.0))
    found = [verdict for _, verdict in sorted(run_all(sandbox, jobs), key=lambda pair: pair[0])]
    for place, name in enumerate(PROBLEMS):
        right, wrong = found[2 * place : 2 * place + 2]
        assert right.outcome is Outcome.PASSED, (name, right)
        assert right.confirmed is (language == "bash")
        assert wrong.outcome is Outcome.FAILED, (name, wrong)
        assert any(word in wrong.detail for word in ("ssert", "Test failed")), (name, wrong)


# --- chat answers ---------------------------------------------------------------------------------

# How answers present the function `digits`; {head} is the prompt's signature, {body} its body, and
# {whole} the prompt with the function.
SHAPES = {
    "the function": "Sure:\n```{fence}\n{head}{body}\n}}\n```\nIt adds the digits.",
    "the body": "```{fence}\n{body}\n```",
    "the whole file": "```{fence}\n{whole}\n```",
    "an example ahead": "Call it so:\n```\n{call}\n```\n```{fence}\n{head}{body}\n}}\n```",
    "never closed": "```{fence}\n{head}{body}\n}}\n",
    "no fence": "{head}{body}\n}}\n",
}
HELPERS = {
    "php": "function helper($x) {\n    return $x; // it's }\n}\n",
    "typescript": "function helper(x: number): number {\n    return x; // it's }\n}\n",
    "csharp": "    static long Helper(long x) {\n        return x; // it's }\n    }\n",
    "bash": "helper() {\n    echo $1 # it's }\n}\n",
    "go": "func helper(x int) int {\n    return x // it's }\n}\n",
    "rust": "fn helper(x: i64) -> i64 {\n    x // it's }\n}\n",
    "java": "    static long helper(long x) {\n        return x; // it's }\n    }\n",
    "cpp": "long helper(long x) {\n    return x; // it's }\n}\n",
}
MAINS = {
    "csharp": "    public static void Main() {\n        Console.WriteLine(Digits(3));\n    }\n",
    "go": "func main() {\n    println(digits(3))\n}\n",
    "rust": 'fn main() {\n    println!("{}", digits(3));\n}\n',
    "php": "echo digits(3);\n",
    "typescript": "console.log(digits(3));\n",
    "bash": "digits 3\n",
    "java": "    public static void main(String[] a) {\n        digits(3);\n    }\n",
    "cpp": "int main() {\n    digits(3);\n}\n",
}


def chat_case(language: str) -> tuple[Problem, str]:
    """The problem `digits` and a right body; Java and C++ as MultiPL-E has them."""
    if language == "java":
        head = "import java.util.*;\nclass Problem {\n    // Do it.\n"
        head += "    public static long digits(long a) {\n"
        tests = "    }\n    public static void main(String[] args) {\n"
        tests += "    assert(digits((1234L)) == (10L));\n    }\n\n}\n"
        body = "long n = 0; for (; a > 0; a /= 10) { n += a % 10; } return n;"
    elif language == "cpp":
        head = "#include<assert.h>\n#include<bits/stdc++.h>\n// Do it.\nlong digits(long a) {\n"
        tests = "}\nint main() {\n    auto candidate = digits;\n"
        tests += "    assert(candidate((1234)) == (10));\n}\n"
        body = "long n = 0; for (; a > 0; a /= 10) { n += a % 10; } return n;"
    else:
        return problem(language, "digits"), BODIES[language]["digits"][0]
    record = {"name": "Own_digits", "language": language, "prompt": head, "tests": tests}
    return parse_e({**record, "stop_tokens": []}), body


def answers_of(language: str) -> dict[str, str]:
    """Answers in each shape, all of them right."""
    asked, body = chat_case(language)
    signature = asked.before.rstrip().rpartition("\n")[2] + "\n"
    before = asked.before.rstrip()
    opened = braces._depth(before, hashes=language in ("bash", "php"))
    head, name = signature, "Digits" if language == "csharp" else "digits"
    call = f"{name} 3" if language == "bash" else f"{name}(3)"
    filled = {"fence": language, "head": head, "body": body, "call": call}
    filled["whole"] = f"{before}\n{body}\n" + "}\n" * opened
    found = {shape: text.format(**filled) for shape, text in SHAPES.items()}
    ahead = before[: before.rfind("\n") + 1]
    helper, main = HELPERS[language], MAINS[language]
    inner = f"{ahead}{helper}{head}{body}\n}}\n{main}" + "}\n" * (opened - 1)
    found["others beside it"] = f"```\n{inner}\n```"
    return found


@pytest.mark.parametrize("language", [*BODIES, "java", "cpp"])
def test_chat_answers_in_any_shape_are_right_and_no_head_stands_twice(
    sandbox: Sandbox, language: str
) -> None:
    if why := languages.missing(language):
        pytest.skip(why)
    asked, _ = chat_case(language)
    found = {shape: braces.answer_to(asked, text) for shape, text in answers_of(language).items()}
    signature = asked.before.rstrip().rpartition("\n")[2]
    for shape, (text, _) in found.items():
        assert text.count(signature.strip()) == 1, (shape, text)
    if language == "typescript":  # a compiler's start takes seconds
        found = {shape: found[shape] for shape in ("the whole file", "others beside it")}
    jobs = [Job(program_of(asked, asked.whole(text)), 20.0) for text, _ in found.values()]
    for place, verdict in run_all(sandbox, jobs):
        shape, (text, _) = list(found.items())[place]
        assert verdict.outcome is Outcome.PASSED, (shape, verdict, text)
