"""Published test protocols that rank and score in their own way."""
