"""What text may yet become: each is fed in parts, and says False once no text that follows makes it a call."""

from __future__ import annotations

import re

from glm_export.tokenizers.chat.replies import LONGEST_NAME, NAME_CHARACTER

NAMES_ONE = re.compile(NAME_CHARACTER)
FENCE = "```"
FUNCTION = "tool_call"
# What json.loads skips.
JSON_BLANKS = " \t\n\r"
VALUE_BEGINS = '"{[-0123456789tfn'


class NamePrefix:
    """A tool's name with blanks around it: part of one line."""

    def __init__(self) -> None:
        self.name = ""
        self._closed = False

    def feed(self, text: str) -> bool:
        """Whether it may be a name yet."""
        for character in text:
            if character.isspace():
                self._closed = bool(self.name)
            elif self._closed or len(self.name) == LONGEST_NAME or not NAMES_ONE.match(character):
                return False
            else:
                self.name += character
        return True


class JsonObjectPrefix:
    """An object in JSON, and nothing else.

    Not all that is wrong is seen: words (``tru``), numbers (``1-``), keys said twice. What is seen is wrong for sure.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._expected = "start"
        self._in_string = self._escaped = self._in_word = False
        self._first = True

    def feed(self, text: str) -> bool:
        """Whether it may be an object yet."""
        return all(map(self._take, text))

    def _take(self, character: str) -> bool:
        if self._in_string:
            return self._take_in_string(character)
        first, self._first = self._first, False
        if first and character == "\ufeff":
            return True
        if self._in_word and (character.isalnum() or character in "+-."):
            return True
        self._in_word = False
        if character in JSON_BLANKS:
            return True
        return self._take_token(character)

    def _take_in_string(self, character: str) -> bool:
        if character < " ":
            return False
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
        return True

    def _take_token(self, character: str) -> bool:
        expected, closes = self._expected, character in "}]"
        if closes and expected in {"comma", "first " + character}:
            self._expected = "comma"
            opened = self._open.pop() if self._open else ""
            if not self._open:
                self._expected = "end"
            return opened + character in {"{}", "[]"}
        if expected == "start":
            return character == "{" and self._begin(character)
        if expected in {"key", "first }"}:
            self._in_string, self._expected = True, "colon"
            return character == '"'
        if expected == "colon":
            self._expected = "value"
            return character == ":"
        if expected == "comma":
            self._expected = "key" if self._open[-1] == "{" else "value"
            return character == ","
        return expected in {"value", "first ]"} and character in VALUE_BEGINS and self._begin(character)

    def _begin(self, character: str) -> bool:
        """A value."""
        self._expected = "comma"
        if character in "{[":
            self._open.append(character)
            self._expected = "first }" if character == "{" else "first ]"
        elif character == '"':
            self._in_string = True
        else:
            self._in_word = True
        return True


class FencedCallPrefix:
    """A call of ``tool_call`` below a line that begins with three backticks, as ChatGLM3 writes it.

    ``fenced``: whether the line is there, and something below it. ``callable``: whether there is a tool to call.
    """

    def __init__(self, *, is_tool: bool) -> None:
        self._is_tool = is_tool
        self._stage, self._matched = "fence", 0
        self.fenced = False

    def feed(self, text: str) -> bool:
        """Whether it may be a call yet."""
        return all(map(self._take, text)) if self._stage != "call" else True

    def _take(self, character: str) -> bool:
        if self._stage == "fence":
            if self._matched or not character.isspace():
                self._matched += 1
                if self._matched == len(FENCE):
                    self._stage = "line"
                return character == FENCE[0]
        elif self._stage == "line":
            if character == "\n":
                self._stage, self._matched = "body", 0
        elif self._stage == "body" and (self._matched or not character.isspace()):
            self.fenced = True
            return self._is_tool and self._take_in_body(character)
        return True

    def _take_in_body(self, character: str) -> bool:
        # Python reads letters of other widths as these, and skips comments, brackets and continued lines.
        if not character.isascii() or (not self._matched and character in "#(\\"):
            self._stage = "call"
            return True
        self._matched += 1
        if self._matched == len(FUNCTION):
            self._stage = "call"
        return character == FUNCTION[self._matched - 1]
