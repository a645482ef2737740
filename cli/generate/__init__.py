"""`codecria generate`: its command, the prompts, the output and the chat session."""

from .command import register

__all__ = ["register"]
