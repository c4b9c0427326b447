"""The verdict before money is spent: measured options and a recommendation."""
