"""Visual experts that put images into words for a language model (Visual Med-Alpaca)."""
