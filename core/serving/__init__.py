"""`codecria serve`: one engine behind the protocols that editors and clients speak."""
