"""A private benchmark from a git history: code of later commits, infilled at its place."""
