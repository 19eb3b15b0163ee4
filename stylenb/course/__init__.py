"""What the lessons need beside stylenb itself: figures, and their exercises with checks."""
