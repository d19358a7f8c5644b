"""Local steps as machine code; README.md says why each part is there."""
