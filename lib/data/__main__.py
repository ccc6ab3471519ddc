"""`python -m lib.data NAME`, which `make data DATASET=NAME` calls: download a data set, check
it.
"""

from lib.data import main

if __name__ == "__main__":
    main()
