"""Pull and Push messages, written and read in protobuf's wire format without a copy of their arrays.

Byte-compatible with ``protos/embedstore/v1/store.proto``: an ordinary generated client or server is a valid other side.
Writers join the caller's arrays into one ``bytes`` (the only copy); readers return read-only numpy views into the
message. Whatever the bytes are, a reader returns sound columns (lengths agree, dtypes known) or raises
:class:`InvalidArgumentError` naming the field, or :class:`LimitError`. Pure functions, usable from any thread.
"""

from __future__ import annotations

from embedstore.wire_columns import (
    FLOAT16,
    FLOAT32,
    MESSAGE_BYTES_MAX,
    NONE,
    ORIGINS_PER_CALL_MAX,
    TABLES_PER_CALL_MAX,
    check_message,
    dtype_code,
)
from embedstore.wire_pull import (
    PullRequest,
    PullResponseWriter,
    PullShape,
    TablePull,
    TableRows,
    decode_pull_request,
    decode_pull_response,
    encode_pull_request,
    known_pull_request,
    match_rows,
    own_rows,
    request_head,
    rows_head,
)
from embedstore.wire_push import PushRequest, TablePart, decode_push_request, encode_push_request

__all__ = [
    "FLOAT16",
    "FLOAT32",
    "MESSAGE_BYTES_MAX",
    "NONE",
    "ORIGINS_PER_CALL_MAX",
    "TABLES_PER_CALL_MAX",
    "PullRequest",
    "PullResponseWriter",
    "PullShape",
    "PushRequest",
    "TablePart",
    "TablePull",
    "TableRows",
    "check_message",
    "decode_pull_request",
    "decode_pull_response",
    "decode_push_request",
    "dtype_code",
    "encode_pull_request",
    "encode_push_request",
    "known_pull_request",
    "match_rows",
    "own_rows",
    "request_head",
    "rows_head",
]
