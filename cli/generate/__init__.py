"""`codecria generate`: its command, the prompts, the output and the chat session."""
