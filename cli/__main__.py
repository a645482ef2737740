"""`python -m codecria.cli`, also under torchrun."""

from .app import main

if __name__ == "__main__":
    main()
