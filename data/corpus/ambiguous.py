"""Extensions that several languages share: which one a file is in, by what it says.

A rule is a pattern that one language writes and the others do not; the first that is found in the
beginning of the file decides, and where none is found, the reader met most often in public code
(`languages.json`) stays. The facts are those that GitHub linguist's heuristics rest on, in our own
words.
"""

from __future__ import annotations

import functools
import re

HEAD_CHARACTERS = 20_000

# extension -> (language, what only it writes), in the order in which they are asked
_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    ".h": (
        ("Objective-C", r"^\s*(?:@(?:interface|protocol|class|property|end|import)\b|#import\b)"),
        (
            "C++",
            r"^\s*(?:class\s+\w+[^;=()]*[{:]|(?:template|namespace)\b|using\s+(?:namespace|\w+\s*=)"
            r"|(?:public|private|protected)\s*:|#include\s*<(?:c?string|vector|map|memory|utility"
            r"|iostream|functional|algorithm|type_traits|optional|tuple|unordered_\w+)>)"
            r"|\bstd::|\b(?:constexpr|noexcept|nullptr|static_cast|reinterpret_cast)\b",
        ),
    ),
    ".m": (
        (
            "Objective-C",
            r"^\s*(?:@(?:interface|implementation|protocol|class|property|end|import|autoreleasepool)"
            r"\b|#(?:import|include|define|pragma)\b)|\bNS(?:String|Array|Object|Log)\b",
        ),
        ("Mathematica", r"\(\*|^\s*(?:BeginPackage|Begin|Needs)\[|:=\s*(?:Module|Block|With)\["),
        (
            "MATLAB",
            r"^\s*%|^\s*(?:function\b[^{;]*$|classdef\b|end\s*[;%]?\s*$|clear\b|close\s+all)"
            r"|\.\*|\bzeros\(|\.\.\.\s*$",
        ),
    ),
    ".pl": (
        ("Prolog", r"^\s*:-\s*(?:module|use_module|dynamic|initialization)\b|^[a-z]\w*\(.*\)\s*:-"),
        ("Raku", r"^\s*(?:use\s+v6|my\s+class\b|(?:multi|proto)\s+(?:sub|method)\b)"),
        (
            "Perl",
            r"^\s*(?:use\s+(?:strict|warnings|[A-Z]\w*)|package\s|sub\s|my\s*[$@%(])|^#!.*perl",
        ),
    ),
    ".pm": (
        ("Raku", r"^\s*(?:use\s+v6|unit\s+(?:module|class)|(?:multi|proto)\s+(?:sub|method)\b)"),
    ),
    ".t": (
        ("Raku", r"^\s*(?:use\s+v6|unit\s+module|(?:multi|proto)\s+sub\b)"),
        ("Perl", r"^\s*(?:use\s+[\w:]+|plan\b|(?:ok|is|like)\b)|^#!.*perl"),
    ),
    ".ts": (("XML", r"\A\ufeff?\s*(?:<\?xml|<!DOCTYPE\s+TS|<TS\b)"),),
    ".tsx": (("XML", r"\A\ufeff?\s*<\?xml[\s\S]*<tileset\b"),),
    ".v": (
        (
            "Coq",
            r"\(\*|^\s*(?:Require\s+(?:Import|Export)|From\s+\w+\s+Require|Theorem|Lemma|Proof|Qed"
            r"|Definition|Fixpoint|Inductive|Section|Module\s+\w+\s*\.)\b",
        ),
        (
            "Verilog",
            r"^\s*(?:module\s+\w+\s*[#(;]|endmodule|`(?:define|include|timescale)|always\s*@)",
        ),
        ("V", r"^\s*(?:(?:pub\s+)?fn\s+(?:\(\w|\w+\s*\()|module\s+\w+\s*$|import\s+\w[\w.]*\s*$)"),
    ),
    ".d": (
        ("Makefile", r"\A(?:[^\s:#]+\s*:\s*(?:[^\s:]+[ \t]*(?:\\\r?\n[ \t]*)?)*\s*)+\Z"),
        ("D", r"^\s*(?:module|import)\s+[\w.]+\s*[;:]|^\s*(?:unittest|version)\b"),
    ),
    ".cl": (
        ("OpenCL", r"\b__?(?:kernel|global|local)\b|^\s*kernel\s+void\b|#pragma\s+OPENCL"),
        ("Common Lisp", r"^\s*\((?:defun|defpackage|in-package|defmacro|defvar|defclass)\b"),
    ),
    ".pp": (
        ("Pascal", r"^\s*(?:program|unit|uses|procedure|begin|implementation)\b|\bend\.\s*$"),
        ("Puppet", r"^\s*(?:class|define|node|include)\s+[\w:'\"]|=>"),
    ),
    ".gd": (("GAP", r"^\s*(?:Declare(?:Operation|Attribute|Property)|BindGlobal|Install\w+)\("),),
    ".cls": (
        ("TeX", r"^\s*\\(?:NeedsTeXFormat|ProvidesClass|LoadClass|documentclass|RequirePackage)"),
        ("VBA", r"^\s*(?:VERSION\s+1\.0\s+CLASS|Attribute\s+VB_)|^\s*(?:Public|Private)\s+Sub\b"),
    ),
    ".fs": (
        ("GLSL", r"^\s*(?:#version\s+\d|precision\s+\w+|uniform\s|varying\s|(?:in|out)\s+vec\d)"),
        ("Forth", r"^\s*(?::\s+\S+.*(?:;|\()|\\\s|variable\s)"),
        ("F#", r"^\s*(?:open|module|namespace|let|type)\s|^\s*#light|^\s*//"),
    ),
    ".hh": (("Hack", r"\A<\?hh\b"),),
    ".php": (("Hack", r"\A<\?hh\b"),),
    ".cs": (("Smalltalk", r"![\w\s]+methodsFor: "),),
    ".ml": (
        ("Standard ML", r"^\s*(?:structure|signature|functor)\s+\w+\s*[=:(]|=>\s|\bcase\b.*\bof\b"),
        ("OCaml", r"\b(?:module|let\s+rec|match\b.*\bwith)\b|->"),
    ),
    ".rs": (("XML", r"\A\s*<\?xml"),),
}


@functools.cache
def _compiled(extension: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    rules = _RULES.get(extension, ())
    return tuple((language, re.compile(pattern, re.MULTILINE)) for language, pattern in rules)


def decide(extension: str, text: str, default: str) -> str:
    """The language of a file whose extension says `default`.

    Args:
        extension: in lower case, with its dot.
        text: of the file.
        default: what the extension says by itself.

    >>> decide(".h", "class A { public: int x; };", "C")
    'C++'
    """
    head = text[:HEAD_CHARACTERS]
    for language, pattern in _compiled(extension):
        if pattern.search(head):
            return language
    return default


def possible(extension: str) -> frozenset[str]:
    """The languages, besides the default, that a file with this extension can be in."""
    return frozenset(language for language, _ in _RULES.get(extension, ()))
