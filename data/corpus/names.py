"""What the names of files and folders say: records, vendored code, caches, generated files."""

from __future__ import annotations

import re
from typing import Literal

from codecria.data.compressed import COMPRESSIONS, Compression

Kind = Literal["text", "notebook", "jsonl", "parquet"]
PACKINGS: dict[str, Compression | None] = {"": None, **COMPRESSIONS}

RECORD_SUFFIXES: dict[str, tuple[Kind, Compression | None]] = {
    **{
        suffix + packed: ("jsonl", compression)
        for suffix in (".jsonl", ".ndjson", ".json")
        for packed, compression in PACKINGS.items()
        if suffix + packed != ".json"  # one value, often a configuration file
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
GENERATED_ENDINGS = (
    *("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi", "_pb.rb", "_pb.js", "_pb.ts"),
    *("_pb.d.ts", "_grpc_web_pb.js", ".pb.go", ".pb.gw.go", ".pb.validate.go", ".pb.cc", ".pb.h"),
    *(".pb.c", ".pb.swift", ".pb.dart", ".pbenum.dart", ".pbgrpc.dart", ".pbjson.dart"),
    *(".pbserver.dart", ".pbobjc.h", ".pbobjc.m", ".connect.go"),
    *(".g.dart", ".freezed.dart", ".mocks.dart", ".gr.dart"),
    *(".designer.cs", ".designer.vb", ".g.cs", ".g.i.cs", ".generated.cs", ".generated.ts"),
    *(".generated.js", "_generated.go", "_generated.h", ".js.map", ".css.map"),
)
# Compared in lower case. What tools resolve and write again at every change.
GENERATED_NAMES = frozenset(
    [
        *("package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock"),
        *("bun.lockb", "deno.lock", ".pnp.cjs", ".pnp.loader.mjs"),  # JavaScript
        *("poetry.lock", "pipfile.lock", "uv.lock", "pdm.lock", "pixi.lock", "pylock.toml"),
        *("conda-lock.yml", "conda-lock.yaml", "requirements.lock"),  # Python
        *("cargo.lock", "go.sum", "go.work.sum", "gopkg.lock", "glide.lock", "composer.lock"),
        *("symfony.lock", "gemfile.lock", "gems.locked", "mix.lock", "rebar.lock", "shard.lock"),
        *("pubspec.lock", "podfile.lock", "package.resolved", "cartfile.resolved"),
        *("packages.lock.json", "project.assets.json", "paket.lock", "gradle.lockfile"),
        *("buildscript-gradle.lockfile", "flake.lock", "devenv.lock", "module.bazel.lock"),
        *(".terraform.lock.hcl", "chart.lock", "buf.lock", "renv.lock", "packrat.lock"),
        *("stack.yaml.lock", "cabal.project.freeze", "dub.selections.json"),
        *("nimble.lock", "spago.lock", "pack.lock", "opam.locked"),
    ]
)
LOCKED_PYTHON = re.compile(r"pylock\.[^.]+\.toml$")  # PEP 751


def record_kind(name: str) -> tuple[Kind, Compression | None] | None:
    """How a file of records is read, by its name; None for anything else."""
    lower = name.lower()
    for suffix, found in RECORD_SUFFIXES.items():
        if lower.endswith(suffix):
            return found
    return None


def is_generated_name(name: str) -> bool:
    """Whether a file's name says that a program writes it: lock files, protocol buffers, maps."""
    lower = name.lower()
    return (
        lower in GENERATED_NAMES
        or lower.endswith(GENERATED_ENDINGS)
        or LOCKED_PYTHON.match(lower) is not None
    )
