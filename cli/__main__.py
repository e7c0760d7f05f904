"""`python -m vleak.cli`."""

from vleak.cli import main

if __name__ == "__main__":
    main()
