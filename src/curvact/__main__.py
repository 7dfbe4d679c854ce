"""`python -m curvact` is the `curvact` command."""

from curvact.lab.cli.main import main

if __name__ == "__main__":
    main()
