"""Languages of the sandbox, one module and one entry each; `languages.py` puts them together."""
