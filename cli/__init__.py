"""The command line: parses, calls the core, renders. It holds no arithmetic of its own."""
