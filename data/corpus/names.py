"""What the names of files and folders say: records, vendored code, caches, generated files."""

from __future__ import annotations

from typing import Literal

Kind = Literal["text", "notebook", "jsonl", "parquet"]
Compression = Literal["gzip", "zstd", "bz2", "xz", "lz4"] | None
COMPRESSIONS: dict[str, Compression] = {
    "": None,
    ".gz": "gzip",
    ".zst": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
    ".lz4": "lz4",
}

RECORD_SUFFIXES: dict[str, tuple[Kind, Compression]] = {
    **{
        suffix + packed: ("jsonl", compression)
        for suffix in (".jsonl", ".ndjson", ".json")
        for packed, compression in COMPRESSIONS.items()
        if suffix + packed != ".json"  # one value, and often somebody's settings
    },
    ".parquet": ("parquet", None),
}

VERSION_CONTROL = frozenset({".git", ".hg", ".svn", "CVS", ".bzr", "_darcs"})
VENDORED = frozenset(
    [
        "site-packages",
        "dist-packages",
        "node_modules",
        "bower_components",
        "vendor",
        "vendored",
        "_vendor",
        "third_party",
        "third-party",
        "thirdparty",
        "3rdparty",
        "Godeps",
        "Pods",
        "Carthage",
    ]
)
CACHES = frozenset({"__pycache__"})
MINIFIED_ENDINGS = (".min.js", ".min.css", "-min.js", "-min.css", ".bundle.js", ".min.mjs")
GENERATED_ENDINGS = [
    "_pb2.py",
    "_pb2.pyi",
    "_pb2_grpc.py",
    ".pb.go",
    ".pb.gw.go",
    ".pb.cc",
    ".pb.h",
    ".pb.swift",
    ".pb.dart",
    ".g.dart",
    ".freezed.dart",
    ".designer.cs",
    ".g.cs",
    ".generated.cs",
    ".generated.ts",
    ".generated.js",
    "_generated.go",
    ".js.map",
    ".css.map",
]
GENERATED_NAMES = frozenset(
    [
        "package-lock.json",
        "npm-shrinkwrap.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "Cargo.lock",
        "poetry.lock",
        "composer.lock",
        "Gemfile.lock",
        "mix.lock",
        "go.sum",
        "uv.lock",
        "flake.lock",
        "Pipfile.lock",
    ]
)


def record_kind(name: str) -> tuple[Kind, Compression] | None:
    """How a file of records is read, by its name; None for anything else."""
    lower = name.lower()
    for suffix, found in RECORD_SUFFIXES.items():
        if lower.endswith(suffix):
            return found
    return None
