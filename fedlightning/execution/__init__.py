"""Where and how local steps run; README.md draws it."""
