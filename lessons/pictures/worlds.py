"""The pictures of lessons 08, 09, 13 and 14."""
