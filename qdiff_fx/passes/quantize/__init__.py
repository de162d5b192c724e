"""What is quantized and how: planned, observed, decided, converted."""
