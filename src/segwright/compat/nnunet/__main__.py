"""nnU-Net's commands, as `python -m segwright.compat.nnunet COMMAND ...`."""

from segwright.cli.search_path import remove_current_folder

remove_current_folder(is_module=__name__ == "__main__")

from segwright.cli.nnunet.program import main  # noqa: E402  what it imports must not be found in the current folder

if __name__ == "__main__":
    main()
