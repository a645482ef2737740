"""Languages that share an extension, by small pieces of each."""

from __future__ import annotations

import pytest

from codecria.data.corpus import ambiguous, languages

SAMPLES = [
    ("a.h", "int f(int x);\n#define A 1\n", "C"),
    ("a.h", "#include <vector>\nstd::vector<int> f();\n", "C++"),
    ("a.h", "class Shape {\npublic:\n  virtual void draw();\n};\n", "C++"),
    ("a.h", "#import <Foundation/Foundation.h>\n@interface A : NSObject\n@end\n", "Objective-C"),
    ("a.m", "#import <UIKit/UIKit.h>\n@implementation A\n@end\n", "Objective-C"),
    ("a.m", "function y = f(x)\n% doubles\ny = 2 .* x;\nend\n", "MATLAB"),
    ("a.m", '(* ::Package:: *)\nBeginPackage["A`"]\n', "Mathematica"),
    ("a.pl", "#!/usr/bin/perl\nuse strict;\nmy $x = 1;\n", "Perl"),
    ("a.pl", ":- module(a, [b/1]).\nb(X) :- c(X).\n", "Prolog"),
    ("a.pl", "parent(tom, bob).\ngrand(X, Z) :- parent(X, Y), parent(Y, Z).\n", "Prolog"),
    ("a.pm", "use v6;\nunit class A;\n", "Raku"),
    ("a.pm", "package A;\nuse strict;\n1;\n", "Perl"),
    ("a.ts", "export const x: number = 1;\n", "TypeScript"),
    ("a.ts", '<?xml version="1.0"?>\n<!DOCTYPE TS>\n<TS></TS>\n', "XML"),
    ("a.v", "module top(input clk);\nendmodule\n", "Verilog"),
    ("a.v", "Require Import List.\nTheorem a : True.\nProof. exact I. Qed.\n", "Coq"),
    ("a.v", "module main\n\nfn main() {\n\tprintln('hi')\n}\n", "V"),
    ("a.d", "module a;\nimport std.stdio;\nvoid main() {}\n", "D"),
    ("a.d", "out/a.o: src/a.c \\\n  src/a.h\n", "Makefile"),
    ("a.cl", "__kernel void add(__global float *a) {}\n", "OpenCL"),
    ("a.cl", "(in-package :a)\n(defun f (x) x)\n", "Common Lisp"),
    ("a.pp", "class apache {\n  package { 'httpd': ensure => present }\n}\n", "Puppet"),
    ("a.pp", "program Hello;\nbegin\n  writeln('hi');\nend.\n", "Pascal"),
    ("a.cls", "public class A {\n}\n", "Apex"),
    ("a.cls", "\\NeedsTeXFormat{LaTeX2e}\n\\ProvidesClass{a}\n", "TeX"),
    ("a.cls", 'VERSION 1.0 CLASS\nAttribute VB_Name = "A"\n', "VBA"),
    ("a.fs", "module A\nlet x = 1\n", "F#"),
    ("a.fs", "#version 330\nout vec4 colour;\nvoid main() {}\n", "GLSL"),
    ("a.ml", "let rec f x = match x with [] -> 0 | _ -> 1\n", "OCaml"),
    ("a.ml", "structure A = struct\n  fun f x = x\nend\n", "Standard ML"),
    ("a.php", "<?php echo 1;\n", "PHP"),
    ("a.php", "<?hh // strict\n", "Hack"),
    ("a.rs", "fn main() {}\n", "Rust"),
    ("tool", "#!/usr/bin/env ruby\n", "Ruby"),
]


@pytest.mark.parametrize(("name", "text", "expected"), SAMPLES)
def test_the_text_tells_which(name: str, text: str, expected: str) -> None:
    assert languages.by_content(name, text) == expected
    if "." in name:
        assert expected in languages.possible_by_path(name)


def test_every_language_a_rule_names_is_in_the_table() -> None:
    for extension in ambiguous._RULES:
        assert ambiguous.possible(extension) <= languages.table().classes.keys(), extension
        assert extension in languages.table().by_extension, extension


def test_endless_lines_take_no_endless_time() -> None:
    for extension in ambiguous._RULES:
        for text in ("a" * 100_000, ": " * 50_000, "( " * 50_000, "a:\\\n" * 25_000):
            ambiguous.decide(extension, text, "C")
