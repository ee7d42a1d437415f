"""What knows runtime numbers: recipes, and how weights are quantized by them."""
