"""Ways of serving a gallery that is only partly re-embedded."""
