"""`python -m codecria.cli`, also under torchrun."""

from .quick import main

if __name__ == "__main__":
    main()
