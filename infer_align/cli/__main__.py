"""``python -m infer_align.cli`` is ``infer-align``."""

from infer_align.cli import app

app(prog_name="infer-align")
