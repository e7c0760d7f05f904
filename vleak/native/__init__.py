"""Everything that knows of csrc: operators and their PyTorch twins, build, loader."""
