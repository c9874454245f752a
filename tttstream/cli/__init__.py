"""The program `tttstream`: one module for each subcommand, imported only when it runs."""
