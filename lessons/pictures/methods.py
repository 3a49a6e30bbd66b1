"""The pictures of lessons 05 to 07, 10 and 11."""
