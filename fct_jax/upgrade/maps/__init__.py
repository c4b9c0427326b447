"""Maps from the old model's space to the new model's: methods, fitting, export."""
