"""Rust: rustc alone, without cargo: the standard library and no crates.

The tests' functions are called one after the other by a main of ours, so the key is a local
variable of that. What could run ahead of it, or read the source, is refused. Lines that import the
crates rand, regex and md5, which every prompt of HumanEval-X has, are left out.
"""

from __future__ import annotations

import re

from ..guards import KEY_CHARACTERS
from ..language import GIB, Language, Step, Suite

_CRATES = re.compile(r"^use (?:rand::Rng|regex::Regex|md5);[ \t]*$", re.MULTILINE)
_TEST = re.compile(r"#\[test\]\s*(?:pub\s+)?fn\s+(\w+)")
_MODULE = re.compile(r"#\[cfg\(test\)\]\s*(?:pub\s+)?mod\s+(\w+)")
_ASSERTION = re.compile(r"(?<![\w:])(assert|assert_eq|assert_ne|panic)!")
_MAIN = """
fn main() {
    use std::io::{Read, Write};
    let mut key = [0u8; SIZE];
    std::io::stdin().read_exact(&mut key).unwrap();
    program::codecria_run();
    std::io::stdout().write_all(&key).unwrap();
    std::io::stdout().flush().unwrap();
}
""".replace("SIZE", str(KEY_CHARACTERS))
_REFUSED = re.compile(
    r"\b(?:link_section|no_mangle|export_name|include_str|include_bytes|include|global_asm|asm"
    r"|naked|no_main|proc_macro|env)\b(?=\s*[!=\](])|\bextern\s+(?:\"|crate)|#\s*!\s*\[|\bpath\s*="
)


def _files(source: str, tests: str) -> dict[str, str]:
    tests = _ASSERTION.sub(r"::std::\1!", tests)  # whatever macros the solution has
    text = _CRATES.sub("", f"{source}\n{tests}")
    names = _TEST.findall(text)
    module = _MODULE.search(text)
    text = _TEST.sub(r"pub fn \1", text)
    text = _MODULE.sub(r"pub mod \1", text)
    within = f"{module[1]}::" if module else ""
    calls = " ".join(f"{within}{name}();" for name in names) or "main();"
    run = f"\npub fn codecria_run() {{ {calls} }}\n"
    return {"main.rs": f"mod program {{\n{text}\n{run}}}\n{_MAIN}"}


RUST = Language(
    name="rust",
    title="Rust",
    tools=("rustc", "cc"),
    version=("--version",),
    aliases=("rs",),
    files=_files,
    kept=(("program", "program"),),
    compile=(
        Step(
            argv=(
                *("{rustc}", "--edition", "2021", "--cap-lints", "allow", "-C", "debuginfo=0"),
                *("-C", "linker={cc}", "-C", "overflow-checks=on", "-C", "codegen-units=1"),
                *("-o", "{build}/program", "{build}/main.rs"),
            ),
            wall_s=30.0,
            address_bytes=4 * GIB,
            processes=True,
        ),
    ),
    run=Step(argv=("{run}/program",)),
    refusal=lambda source: (
        f"the sandbox does not allow {found[0]}" if (found := _REFUSED.search(source)) else ""
    ),
    suite=Suite(end="\n}", closer="\n}\n"),
    sample=(
        "fn one() -> i32 {\n    1\n}\n",
        "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn test_one() {\n"
        "        assert_eq!(one() + one(), 2);\n    }\n}\n",
    ),
)
