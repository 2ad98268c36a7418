"""Take orders over HTTP and announce what became of them."""
