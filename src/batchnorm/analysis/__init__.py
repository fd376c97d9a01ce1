"""Records and arrays in, findings out."""
