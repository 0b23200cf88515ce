"""``python -m hatcli``, so that ``torchrun -m hatcli train ...`` works."""

from hatcli.cli import main

if __name__ == "__main__":
    main()
