"""`python -m segwright`, and so `torchrun -m segwright`."""

from __future__ import annotations

from segwright.cli.main import main

if __name__ == "__main__":
    main()
