"""What a run will need: memory and traffic per rank, from the declarations of its method."""
from __future__ import annotations
def warnings(config, fed, comm): return []
def show(config, fed, comm): pass
