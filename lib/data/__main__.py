"""`python -m lib.data NAME`: download a data set, check it.

It is what `make data DATASET=NAME` calls.
"""

from lib.data import main

if __name__ == "__main__":
    main()
