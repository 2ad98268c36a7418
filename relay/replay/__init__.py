"""Send published events again for an operator."""
