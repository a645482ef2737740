"""Why a candidate is not among the documents of a corpus."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why something found in a source is not among the documents."""

    # folders, not entered
    VERSION_CONTROL = "version-control"
    VENDORED = "vendored"
    CACHE = "cache"
    HIDDEN = "hidden"
    LINKED_FOLDER = "linked-folder"
    # folders and files
    IGNORED = "ignored"
    UNREADABLE = "unreadable"
    # files, by their names and sizes
    SPECIAL = "not-a-regular-file"
    LINKED_OUTSIDE = "linked-outside"
    RECORDS_AMONG_CODE = "records-among-code"
    MINIFIED = "minified"
    GENERATED = "generated"
    LANGUAGE_UNKNOWN = "language-unknown"
    LANGUAGE_UNWANTED = "language-unwanted"
    BESIDE_RECORDS = "beside-records"
    TOO_LARGE = "too-large"
    # by their content
    LFS_POINTER = "lfs-pointer"
    BINARY = "binary"
    UNDECODABLE = "undecodable"
    BAD_RECORD = "bad-record"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    TOO_SHORT = "too-short"
    LINE_TOO_LONG = "line-too-long"
    LINES_TOO_LONG = "lines-too-long-on-average"
    FEW_ALPHANUMERIC = "few-alphanumeric"
    LICENCE_UNKNOWN = "licence-unknown"
    LICENCE_UNWANTED = "licence-unwanted"
    BENCHMARK = "holds-a-benchmark-problem"
    EXACT_DUPLICATE = "exact-duplicate"
    NEAR_DUPLICATE = "near-duplicate"


# What `--strict` refuses: input that is damaged, as opposed to input that is unwanted.
DAMAGE = (
    Reason.BAD_RECORD,
    Reason.TRUNCATED,
    Reason.UNDECODABLE,
    Reason.BINARY,
    Reason.UNREADABLE,
)


class Verdict(NamedTuple):
    """Why a document is dropped: the reason, and what was measured against which limit."""

    reason: str  # of `Reason`, or a filter's own
    detail: str = ""
