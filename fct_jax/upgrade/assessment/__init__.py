"""The verdict before the spend: measured options and a recommendation."""
