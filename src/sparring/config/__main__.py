"""`python -m sparring.config > docs/recipe.md` writes the reference page."""

import sys

from sparring.config.reference import recipe_reference

sys.stdout.write(recipe_reference())
