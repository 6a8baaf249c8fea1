"""A trained model is asked, scored beside controls, and drawn."""
