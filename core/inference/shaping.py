"""What is shown of a completion's text as it streams."""

from __future__ import annotations


class Stripper:
    """Leaves out white space at both ends of a text; the rest is shown once it is certain."""

    ended = False

    def __init__(self) -> None:
        self._began = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to be shown after the next piece."""
        text = self._held + text
        if not self._began:
            text = text.lstrip()
        shown = text.rstrip()
        self._began = self._began or bool(shown)
        self._held = text[len(shown) :]
        return shown

    def finish(self) -> str:
        """Nothing: what was held back is white space."""
        return ""


class LineEnds:
    """Writes the lines of a completion as those around it end."""

    ended = False

    def push(self, text: str) -> str:
        """The text with carriage returns."""
        return text.replace("\n", "\r\n")

    def finish(self) -> str:
        """Nothing."""
        return ""


class Indented:
    """Ends a text before the first line that is indented less than a minimum.

    A completion inside a block ends with the block. The first line is not counted, as it continues
    what stands before it; nor are empty lines.

    Args:
        least: white space at a line's start, in characters.
    """

    def __init__(self, least: int) -> None:
        self.ended = False
        self._least = least
        self._line: str | None = None  # white space of a line that has not come to its text yet

    def push(self, text: str) -> str:
        """The text before such a line."""
        shown = ""
        for character in text:
            if self.ended:
                break
            if self._line is None:
                if character == "\n":
                    self._line = ""
                shown += character
            elif character == "\n":
                shown += self._line + character
                self._line = ""
            elif character.isspace():
                self._line += character
            elif len(self._line) < self._least:
                self.ended = True
            else:
                shown += self._line + character
                self._line = None
        return shown

    def finish(self) -> str:
        """The white space that was held back."""
        held, self._line = self._line, None
        return "" if self.ended or held is None else held
