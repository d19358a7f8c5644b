"""The command line of the recipes.

Nothing is imported here, since `cli.early` reads a command line before torch is imported; recipes take `cli.recipe`.
"""
