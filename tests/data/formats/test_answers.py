"""Code in chat answers: whatever shape a right answer has, its program is found.

Oracle of most tests: the extracted program runs, and its function answers right.
"""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.formats.answers import extract, simple

PLAIN = "def f(x):\n    return x + 1\n"
PROGRAMS = {
    "plain": PLAIN,
    "with an import": "import math\n\n\ndef f(x):\n    return math.floor(x) + 1\n",
    "with a helper": "def g(x):\n    return x\n\n\ndef f(x):\n    return g(x) + 1\n",
    "from the future": (
        "from __future__ import annotations\n\n\ndef f(x: Never | int) -> int:\n    return x + 1\n"
    ),
    "blank lines and a comment": "# adds one\n\ndef f(x):\n\n    y = x\n\n    return y + 1\n",
    "a docstring with a fence": (
        'def f(x):\n    """Adds.\n\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n'
    ),
    "a text at the margin": 'TEXT = """\nNote: def f\n"""\n\n\ndef f(x):\n    return x + 1\n',
    "decorated": (
        "from functools import lru_cache\n\n\n@lru_cache(maxsize=None)\ndef f(x):\n"
        "    return x + 1\n"
    ),
    "a list over lines": "STEPS = [\n    1,\n]\n\n\ndef f(x):\n    return x + STEPS[0]\n",
    "a class": (
        "from typing import List\n\n\nclass Solution:\n    def f(self, x: int) -> int:\n"
        "        return x + 1\n"
    ),
    "a lambda": "f = lambda x: x + 1\n",
}


def works(code: str, name: str = "f") -> bool:
    space: dict[str, Any] = {"__name__": "solution"}
    exec(compile(code, "<found>", "exec", dont_inherit=True), space)
    return bool(space[name](1) == 2 and space[name](5) == 6)


def fenced(mark: str, info: str, indent: str = "", close: bool = True) -> Any:
    def wrap(code: str) -> str:
        inner = f"{mark}{info}\n{code}" + (f"{mark}\n" if close else "")
        return textwrap.indent(inner, indent, lambda _: True) if indent else inner

    return wrap


WRAPPERS = {
    "alone": lambda code: code,
    "a space before": lambda code: " " + code,
    "python fence": fenced("```", "python"),
    "bare fence": fenced("```", ""),
    "tilde fence": fenced("~~~", "py"),
    "long fence": fenced("````", "python"),
    "attributes": fenced("```", 'python title="a.py" linenums="1"'),
    "braces": fenced("```", "{.python .numberLines}"),
    "capital": fenced("```", "Python"),
    "indented": fenced("```", "python", "    "),
    "three spaces": fenced("~~~", "python", "   "),
    "in a list": lambda code: "1. Like this:\n\n" + fenced("```", "python", "   ")(code),
    "quoted": lambda code: textwrap.indent(fenced("```", "python")(code), "> ", lambda _: True),
    "unclosed": fenced("```", "python", close=False),
    "tags": lambda code: f"[PYTHON]\n{code}[/PYTHON]\n",
    "tags on a line": lambda code: f"[PYTHON] {code}[/PYTHON]\n",
    "fence in tags": lambda code: f"[PYTHON]\n```python\n{code}```\n[/PYTHON]\n",
    "tag never closed": lambda code: f"[PYTHON]\n{code}",
    "indented as code": lambda code: textwrap.indent(code, "    "),
}
BEFORE = {
    "nothing": "",
    "prose": "Sure! Here is a function f(x) that adds one:\n\n",
    "thinking": (
        "<think>\nThe user wants f.\n\n```python\ndef f(x):\n    return x\n```\n</think>\n\n"
    ),
    "thinking begun in the prompt": "So f returns x.\ndef f(x): return x\n</think>\n",
    "an example first": "Usage:\n\n```python\nprint(f(1))  # 2\n```\n\nThe function:\n\n",
    "a shell first": "```bash\npip install nothing\n```\n\n",
    "a wrong try first": "First:\n\n```python\ndef f(x):\n    return x\n```\n\nBetter:\n\n",
    "output first": "```\n>>> f(1)\n2\n```\nso:\n\n",
}
AFTER = {
    "nothing": "",
    "prose": "\nThis works because 1 is added. It's O(1).\n",
    "example": "\nExample:\n\n```python\nassert f(1) == 2\n```\n",
    "output": "\nOutput:\n\n```\n2\n```\n",
    "a shell": "\n```sh\npython a.py\n```\n",
}
UNENDING = {"unclosed", "tag never closed"}
UNMARKED = {"alone", "a space before", "indented as code"}


@given(
    program=st.sampled_from(sorted(PROGRAMS)),
    wrapper=st.sampled_from(sorted(WRAPPERS)),
    before=st.sampled_from(sorted(BEFORE)),
    after=st.sampled_from(sorted(AFTER)),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
)
@settings(max_examples=600, deadline=None)
def test_a_right_program_is_found_in_any_wrapping(
    program: str, wrapper: str, before: str, after: str, ends: str
) -> None:
    tail = "" if wrapper in UNENDING else AFTER[after]
    if wrapper in UNMARKED and (AFTER[after] or before != "nothing"):
        # Nothing marks the code: prose around it, and no other block.
        if "```" in BEFORE[before] + tail or "docstring with a fence" in program:
            return
        if "margin" in program:
            return  # prose and code at the margin cannot be told apart
    answer = BEFORE[before] + WRAPPERS[wrapper](PROGRAMS[program]) + tail
    found = extract(answer.replace("\n", ends), wanted=("f",))
    assert works(found.code), (found, answer)


TRICKY = {
    "a helper's block first": (
        "The helper:\n```python\ndef add(a, b):\n    return a + b\n```\n"
        "And f:\n```python\ndef f(x):\n    return add(x, 1)\n```\n"
    ),
    "imports in a block of their own": (
        "```python\nimport math\nfrom math import floor as low\n```\n"
        "```python\ndef f(x):\n    return low(x) + int(math.cos(0))\n```"
    ),
    "the helper behind": (
        "```python\ndef f(x):\n    return add(x)\n```\nwith\n"
        "```python\nONE = 1\ndef add(x):\n    return x + ONE\n```"
    ),
    "tests in the last block define a name": (
        "```python\ndef f(x):\n    return x + 1\n```\nTests:\n"
        "```python\nresult = f(1)\nassert result == 2\n```"
    ),
    "a future import in the helper's block": (
        "```python\nfrom __future__ import annotations\ndef g(x: Later):\n    return x\n```\n"
        "```python\nfrom __future__ import annotations\ndef f(x):\n    return g(x) + 1\n```"
    ),
    "a method of a class with another": (
        "```python\nclass Solution:\n    def g(self, x):\n        return x\n"
        "    def f(self, x):\n        return self.g(x) + 1\n```"
    ),
    "a static method": (
        "```python\nclass Tools:\n    @staticmethod\n    def f(x):\n        return x + 1\n```"
    ),
    "cut in an example": "```python\ndef f(x):\n    return x + 1\n\nprint(f(1), f(",
    "cut in a second definition": "```python\ndef f(x):\n    return x + 1\n\ndef main(:\n",
    "one line": "Just ```python f = lambda x: x + 1```.",
    "inline words before": "Use `f(x)`:\n\ndef f(x):\n    return x + 1\n\nHope that helps!",
    "an interactive session": (
        "```python\n>>> def f(x):\n...     return x + 1\n...\n>>> f(1)\n2\n```"
    ),
    "a language in the second place": (
        "```text\nf adds 1\n```\n```python\ndef f(x):\n  return x + 1\n```"
    ),
    "tags in a thought": (
        "<think>[PYTHON]def f(x): return 0[/PYTHON]</think>[PYTHON]\n" + PLAIN + "[/PYTHON]"
    ),
    "a tag named in the code": "```python\ndef f(x):\n    '''</think>'''\n    return x + 1\n```",
    "a think tag in a text": (
        "```python\nOPEN = '''\n<think>'''\ndef f(x):\n    return x + 1\n```\nDone."
    ),
    "invisible marks": "\ufeff```python\ndef f(x):\n\u00a0\u00a0\u00a0\u00a0return x + 1\n```",
    "a star list": "* Code:\n  ```python\n  def f(x):\n      return x + 1\n  ```",
    "a numbered fence": "2. ```python\n   def f(x):\n       return x + 1\n   ```",
    "a fence that closes longer": "```python\ndef f(x):\n    return x + 1\n`````\nDone.",
    "a heading between": "# Solution\n\ndef f(x):\n    return x + 1\n\n# Why\n\nBecause.",
    "defined under a condition": (
        "```python\nimport sys\nif sys.version_info > (3,):\n    def f(x):\n"
        "        return x + 1\n```"
    ),
}


@pytest.mark.parametrize("answer", TRICKY.values(), ids=TRICKY)
def test_a_right_program_is_found_where_an_answer_is_hard_to_read(answer: str) -> None:
    found = extract(answer, wanted=("f",))
    assert works(found.code), found


def test_of_two_blocks_that_define_the_function_the_last_that_parses_counts() -> None:
    answer = "```python\ndef f(x):\n    return x\n```\n```python\n" + PLAIN + "```\n"
    assert works(extract(answer, wanted=("f",)).code)
    broken = answer + "```python\ndef f(x):\n    return (\n```\n"
    found = extract(broken, wanted=("f",))
    assert works(found.code)
    assert found.chosen == "fence 2"


HEAD = 'def f(x):\n    """Adds one."""\n'
BODIES = {
    "as it stands": "    return x + 1\n",
    "undented": "return x + 1\n",
    "undented, of several lines": "y = x\nif y:\n    y += 1\nelse:\n    y = 1\nreturn y\n",
    "first line alone undented": "y = x\n    if True:\n        y += 1\n    return y\n",
    "in a fence": "```python\nreturn x + 1\n```\n",
    "in a fence, indented": "The body:\n```python\n    y = x\n    return y + 1\n```\nDone.\n",
    "between prose": "The body is:\n\n    return x + 1\n\nAs you see.\n",
    "deeper than the head's": "        return x + 1\n",
    "in tags": "[PYTHON]\nreturn x + 1\n[/PYTHON]",
    "with a comment": "# add one\nreturn x + 1",
}


@pytest.mark.parametrize("answer", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_body_alone_completes_the_head(answer: str, ends: str) -> None:
    found = extract(answer.replace("\n", ends), wanted=("f",), head=HEAD)
    assert found.is_body, found
    assert works(HEAD + found.code), found


@pytest.mark.parametrize("answer", ["", "I cannot do that.", "Sorry", "```\n```", "[PYTHON]"])
def test_an_answer_without_code_stays_without_a_function(answer: str) -> None:
    found = extract(answer, wanted=("f",), head=HEAD)
    assert not found.is_body
    assert "def f" not in found.code


@given(
    st.text(alphabet=st.sampled_from("`~[]PYTHON/<>think\n def f(x):\\'\"#=.1\t\r"), max_size=80)
)
@settings(max_examples=300, deadline=None)
def test_any_answer_yields_some_text(answer: str) -> None:
    assert isinstance(extract(answer, wanted=("f",), head=HEAD).code, str)


def test_a_long_answer_is_read_in_little_time() -> None:
    import time

    prose = "Some words about f(x), which is x = 1 and more.\n"
    for answer in (prose * 3_000, "def f(x):\n" * 5_000, "```python\n" * 4_000, "x = (\n" * 9_000):
        start = time.perf_counter()
        extract(answer, wanted=("f",))
        assert time.perf_counter() - start < 5.0


def test_the_papers_rule_takes_the_first_fence() -> None:
    answer = "```python\nprint(f(1))\n```\n```python\n" + PLAIN + "```\n"
    assert simple(answer) == "print(f(1))"
