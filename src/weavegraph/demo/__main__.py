import sys

from weavegraph.demo import main

sys.exit(main())
