"""The program, as `segwright`, `python -m segwright`, and so `torchrun -m segwright`."""

from segwright.cli.search_path import remove_current_folder

remove_current_folder(is_module=__name__ == "__main__")

from segwright.cli.main import main  # noqa: E402  what it imports must not be found in the current folder

if __name__ == "__main__":
    main()
