"""What is right in each exercise, and what plausible mistakes would have given instead.

The graders of lessons 01 to 03 are in ground.py, of 04 and 12 in backward.py, of 05 to 07 in
methods.py, of 10 and 11 in guesses.py, of 08, 09 and 13 in worlds.py, and that of 14, which judges
a whole method, is in yours.py. A grader has the name of the function in mine.py that it judges;
14's is `method`.
"""
