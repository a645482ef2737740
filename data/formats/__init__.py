"""Text formats shared by training and prompts: infilling, chat, dialogs, cursors."""
