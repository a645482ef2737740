"""C#: mcs compiles, mono runs; a guard loads the program from memory and calls its Main.

Mono's Debug.Assert prints and goes on, and a program could take its listeners away: in the tests it
becomes a call of a class whose name a solution does not know. Names that lead to reflection, and
with it to the tests' code, are refused.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from pathlib import Path

from ..guards import KEY_CHARACTERS, LENGTH_CHARACTERS
from ..language import GIB, Language, Step

_ASSERT = """\
static class FAILED {
    public static void Assert(bool ok, string told = "") {
        if (ok) return;
        System.Console.Error.WriteLine("Assertion failed: test " + (count + 1) + " " + told);
        for (;;) System.Environment.Exit(1);
    }
    public static void Count() { count++; }
    static int count;
}
"""
_GUARD = """\
using System;
using System.IO;
using System.Reflection;

static class CodecriaGuard {
    static byte[] Take(Stream from, int size) {
        var taken = new byte[size];
        for (int have = 0; have < size;) {
            int got = from.Read(taken, have, size - have);
            if (got <= 0) Environment.Exit(71);
            have += got;
        }
        return taken;
    }

    static byte[] Part(Stream from) {
        var size = System.Text.Encoding.ASCII.GetString(Take(from, LENGTH));
        return Take(from, int.Parse(size.Trim()));
    }

    static int Main() {
        var input = Console.OpenStandardInput();
        var key = Take(input, SIZE);
        var output = Console.OpenStandardOutput();
        MethodInfo entry = null;
        byte[] code = null;
        int left = int.Parse(System.Text.Encoding.ASCII.GetString(Part(input)));
        for (; left > 0; left -= 2) {
            var file = System.Text.Encoding.UTF8.GetString(Part(input));
            var held = Part(input);
            if (file == "program.dll") code = held;
        }
        var program = Assembly.Load(code);
        Array.Clear(code, 0, code.Length);
        var flags = BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic;
        string[] used = {USED};
        string[] homes = {"System.", "System.Linq.", "System.Text.", "System.Diagnostics.",
            "System.Numerics.", "System.Collections.", "System.Collections.Generic."};
        foreach (var type in program.GetTypes()) {
            var name = type.Name.Split('`')[0];
            foreach (var known in used) {
                if (known != name) continue;
                foreach (var loaded in new[] {typeof(object), typeof(Uri),
                        typeof(System.Linq.Enumerable)})
                    foreach (var home in homes)
                        for (int n = 0; n < 5; n++) {
                            var full = home + name + (n == 0 ? "" : "`" + n);
                            if (loaded.Assembly.GetType(full) == null) continue;
                            Console.Error.WriteLine("the solution replaces the class " + name);
                            return 1;
                        }
            }
            var main = type.GetMethod("Main", flags);
            if (main != null && (entry == null || type.Name == "ENTRY")) entry = main;
        }
        if (entry == null) {
            Console.Error.WriteLine("error: there is no Main");
            return 1;
        }
        try {
            entry.Invoke(null, entry.GetParameters().Length == 0
                ? null : new object[] {new string[0]});
        } catch (TargetInvocationException raised) {
            var cause = raised.GetBaseException();
            Console.Error.WriteLine(cause.GetType().Name + ": " + cause.Message);
            return 1;
        }
        Console.Out.Flush();
        output.Write(key, 0, key.Length);
        output.Flush();
        return 0;
    }
}
""".replace("SIZE", str(KEY_CHARACTERS)).replace("LENGTH", str(LENGTH_CHARACTERS))
_NAME = re.compile(r"[A-Za-z_]\w*")
# What leads to reflection, to other code and to raw memory.
_REFUSED = re.compile(
    r"\b(?:Reflection|GetMethods?|GetMembers?|GetFields?|GetPropert(?:y|ies)|GetConstructors?"
    r"|InvokeMember|Invoke|Assembly|AppDomain|Activator|Expressions|CodeDom|InteropServices"
    r"|DllImport|Marshal|GCHandle|StackTrace|StackFrame|CompilerServices|__makeref|__refvalue"
    r"|__arglist|StructLayout|extern)\b"
)


def _files(source: str, tests: str) -> dict[str, str]:
    failed = f"Failed{secrets.token_hex(8)}"
    words = sorted({word for word in _NAME.findall(tests) if word[0].isupper()})
    found = re.search(r"\bclass\s+(\w+)", source)
    guard = _GUARD.replace("USED", ", ".join(f'"{word}"' for word in words))
    judged = re.sub(r"\bDebug\.Assert\(", f"{failed}.Assert(", tests)
    judged = re.sub(
        rf"({failed}\.Assert\(.*\);)[ \t]*$", rf"\1 {failed}.Count();", judged, flags=re.M
    )
    return {
        "main.cs": f"{source}\n{judged}",
        "assert.cs": _ASSERT.replace("FAILED", failed),
        "guard.cs": guard.replace("ENTRY", found[1] if found else "Problem"),
        "classes/none": "",
    }


def refusal(source: str) -> str:
    """What in a solution leads to the code of the tests; empty where nothing does."""
    text = "".join(c for c in source if unicodedata.category(c) != "Cf")
    text = re.sub(r"\\[uU](?:0000)?([0-9A-Fa-f]{4})", lambda m: chr(int(m[1], 16)), text)
    found = _REFUSED.search(text)
    return f"the sandbox does not allow {found[0]}" if found else ""


def _resolve(path: str) -> str:
    """The program behind a command: mcs is a script that has mono run it."""
    real = Path(path).resolve()
    compiler = real.parent.parent / "lib/mono/4.5/mcs.exe"
    return str(compiler if real.name == "mcs" and compiler.is_file() else real)


def _compile(*words: str) -> Step:
    return Step(
        argv=("{mono}", "{mcs}", "-nologo", "-langversion:latest", *words),
        wall_s=30.0,
        address_bytes=4 * GIB,
        maps=True,
    )


CSHARP = Language(
    name="csharp",
    title="C#",
    tools=("mono", "mcs"),
    version=("--version",),
    aliases=("c#", "cs"),
    files=_files,
    kept=(("guard.exe", "guard.exe"),),
    fed_folder="classes",
    compile=(
        _compile("-warn:0", "-out:{build}/guard.exe", "{build}/guard.cs"),
        _compile(
            *("-warn:0", "-target:library", "-d:DEBUG", "-r:System.Numerics.dll"),
            *("-out:{build}/classes/program.dll", "{build}/main.cs", "{build}/assert.cs"),
        ),
    ),
    run=Step(
        argv=("{mono}", "{run}/guard.exe"),
        address_bytes=4 * GIB,
        maps=True,
    ),
    refusal=refusal,
    resolve=_resolve,
    readable=("/etc/mono", "/usr/share/mono"),
    sample=(
        "using System.Diagnostics;\nclass Problem {\n    static int One() {\n        return 1;\n",
        "    }\n    public static void Main(string[] args) {\n"
        "    Debug.Assert(One() + One() == 2);\n    }\n}\n",
    ),
)
