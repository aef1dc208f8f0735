"""Write the files of a multipart request to disk while it arrives; nothing larger than a block is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from segwright.core.resources import resource_error
from segwright.deploy.serve.refusals import Refusal, refusal_of

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS: Final = 64
MAX_FIELD_BYTES: Final = 4096
"""Of a text field, and of the headers of a part."""


@dataclass(slots=True)
class UploadedFile:
    """A file of the request.

    Attributes:
        field: name of the form field.
        name: file name as the client gave it; not to be logged, since it may be that of a patient.
        path: where the content lies.
    """

    field: str
    name: str
    path: Path


@dataclass(slots=True)
class Form:
    """Content of a multipart request.

    Attributes:
        values: text fields.
        files: in the order of the request.
    """

    values: dict[str, str] = field(default_factory=dict)
    files: list[UploadedFile] = field(default_factory=list)


async def receive_form(
    stream: AsyncIterator[bytes], content_type: str, folder: Path, *, max_bytes: int, stall_s: float
) -> Form:
    """Read a multipart request and write its files into a folder, under names of our own.

    Args:
        stream: blocks of the body.
        content_type: header of the request.
        folder: gets the files `0`, `1` and so on.
        max_bytes: of the whole body.
        stall_s: seconds to wait for a block.

    Raises:
        Refusal: the body is no form (415, 400), too large (413), ends too early (400) or stalls (408).
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Refusal(
            415,
            f"the content type is '{content_type[:100]}'",
            expected="multipart/form-data with a boundary",
            remedy="send the images as form fields, as curl -F image=@FILE does",
        )
    receiver = _Receiver(folder)
    parser = MultipartParser(boundary, receiver.callbacks())
    received = 0
    blocks = aiter(stream)
    try:
        while (block := await _next_block(blocks, stall_s)) is not None:
            received += len(block)
            if received > max_bytes:
                raise too_large(received, max_bytes)
            if block:
                parser.write(block)
    except FormParserError as error:
        raise Refusal(400, f"the form is damaged ({error})", remedy="send it again") from error
    except OSError as error:
        known = resource_error(error)
        if known is None:
            raise
        raise refusal_of(known, 503, str(folder)) from error
    finally:
        receiver.close()
    if not receiver.is_complete:
        raise Refusal(400, f"the form is cut off after {received} bytes", remedy="send it again")
    return receiver.form


def too_large(found: int, max_bytes: int) -> Refusal:
    """Return the refusal of a body of `found` bytes or more."""
    return Refusal(
        413,
        f"the request has {found} bytes or more",
        expected=f"at most {max_bytes}",
        remedy="compress or crop the images, or ask for a higher --max-upload",
    )


async def _next_block(blocks: AsyncIterator[bytes], stall_s: float) -> bytes | None:
    """Return the next block; None at the end.

    Raises:
        Refusal: none arrives in time.
    """
    try:
        return await asyncio.wait_for(anext(blocks), stall_s)
    except StopAsyncIteration:
        return None
    except asyncio.TimeoutError as error:
        raise Refusal(408, f"no data arrived for {stall_s:.0f} s", remedy="send the request again") from error


class _Receiver:
    """Callbacks of the parser: collects headers and fields, writes files."""

    def __init__(self, folder: Path) -> None:
        self.form = Form()
        self.is_complete = False
        self._folder = folder
        self._headers: dict[str, bytes] = {}
        self._name, self._value = b"", b""
        self._field = ""
        self._text: bytearray | None = None
        self._file: IO[bytes] | None = None
        self._parts = 0

    def callbacks(self) -> MultipartCallbacks:
        """Return the callbacks by the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def close(self) -> None:
        """Close the file that is being written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Refusal(400, f"the form has more than {MAX_PARTS} parts", remedy="send one case in one request")
        self._headers, self._name, self._value = {}, b"", b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._require_short(len(self._name))

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._require_short(len(self._value))

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        name = options.get(b"name")
        if name is None:
            raise Refusal(400, "a part of the form has no name", remedy="name it image")
        self._field = name.decode("utf-8", "replace")
        if b"filename" in options:
            path = self._folder / str(len(self.form.files))
            uploaded = options[b"filename"].decode("utf-8", "replace")
            self.form.files.append(UploadedFile(self._field, uploaded, path))
            self._file = path.open("xb")
        else:
            self._text = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
        elif self._text is not None:
            self._text += data[start:end]
            self._require_short(len(self._text))

    def _end_part(self) -> None:
        if self._text is not None:
            self.form.values[self._field] = self._text.decode("utf-8", "replace").strip()
            self._text = None
        self.close()

    def _end(self) -> None:
        self.is_complete = True

    def _require_short(self, length: int) -> None:
        if length > MAX_FIELD_BYTES:
            raise Refusal(
                400,
                f"a field or header of the form has more than {MAX_FIELD_BYTES} bytes",
                remedy="send images as files, as curl -F image=@FILE does",
            )
