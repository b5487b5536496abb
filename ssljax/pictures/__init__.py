"""The tables, figures and pages of `ssljax report`, and the data of a run that they are drawn from."""
