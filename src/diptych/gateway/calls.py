"""One tool call, read while the model writes it: its name as soon as it is known, its arguments as they come. Pure."""

from __future__ import annotations

import re
import secrets
import string

import msgspec

_HEADER = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,'
    r'\s*"(?:arguments|parameters|input)"\s*:\s*(?=\{)'
)
_ALPHABET = string.ascii_letters + string.digits


class CallBegan(msgspec.Struct, frozen=True):
    """A call of the tool ``name``; ``id`` is what its result will refer to."""

    id: str
    name: str


class CallInput(msgspec.Struct, frozen=True):
    """The next piece of the call's arguments, a JSON object when all are put together."""

    json: str


class CallEnded(msgspec.Struct, frozen=True):
    """The arguments are complete."""


CallPart = str | CallBegan | CallInput | CallEnded


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    parameters: msgspec.Raw | None = None
    input: msgspec.Raw | None = None


class CallReader:
    """Takes the text of one call. What turns out to be no call comes back as text."""

    def __init__(self, id_prefix: str) -> None:
        self._id_prefix = id_prefix
        self._text = ""
        self._out: list[CallPart] = []
        self._streaming = False
        self._scan = _Object()
        self.ended = False

    def push(self, text: str) -> str:
        """Takes text; returns what follows the call's end."""
        if self.ended:
            return text
        self._text += text
        if not self._streaming and not self._began():
            return self._whole()
        return self._arguments()

    def parts(self) -> list[CallPart]:
        """The parts made so far, once."""
        made, self._out = self._out, []
        return made

    def finish(self) -> list[CallPart]:
        """The parts that were left when the text ended. A call that was cut off ends where it was cut."""
        if self._streaming and not self._scan.closed:
            self._out.append(CallEnded())
        elif not self._streaming and not self.ended and self._text.strip():
            self._complete(self._text)
        self.ended = True
        return self.parts()

    def _began(self) -> bool:
        header = _HEADER.match(self._text)
        if header is None:
            return False
        name = msgspec.json.decode(f'"{header[1]}"', type=str)
        self._out.append(CallBegan(new_call_id(self._id_prefix), name))
        self._streaming = True
        self._text = self._text[header.end() :]
        return True

    def _arguments(self) -> str:
        text, self._text = self._text, ""
        if not self._scan.closed:
            end = self._scan.push(text)
            piece = text if end is None else text[:end]
            if piece:
                self._out.append(CallInput(piece))
            if end is None:
                return ""
            self._out.append(CallEnded())
            text = text[end:]
        return self._closing(text)

    def _closing(self, text: str) -> str:
        """The brace that ends the call, after its arguments."""
        text = text.lstrip()
        self.ended = bool(text)
        return text.removeprefix("}")

    def _whole(self) -> str:
        """A call whose members come in another order is read once its object is closed."""
        end = _Object().push(self._text)
        if end is None:
            return ""
        rest = self._text[end:]
        self._complete(self._text[:end])
        self.ended = True
        return rest

    def _complete(self, text: str) -> None:
        try:
            call = msgspec.json.decode(text, type=_Call)
        except msgspec.DecodeError:
            self._out.append(text)
            return
        arguments = bytes(call.parameters or call.input or call.arguments).decode()
        self._out += [CallBegan(new_call_id(self._id_prefix), call.name), CallInput(arguments), CallEnded()]


class _Object:
    """Finds the end of a JSON object."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.closed = False

    def push(self, text: str) -> int | None:
        """The index after the object's last character; None while it is open."""
        for at, char in enumerate(text):
            if self._in_string:
                self._string(char)
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.closed = True
                    return at + 1
        return None

    def _string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False


def new_call_id(prefix: str) -> str:
    """An id for a call, as random as Bedrock's and OpenAI's."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(22))
