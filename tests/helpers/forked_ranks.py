"""`python -m helpers.forked_ranks COUNT TASK…` runs the tasks of helpers/processes.py on ranks that are forks.

Agent and rendezvous are those of torchrun. torchrun itself starts a new Python for each rank.
"""

import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from helpers.processes import run_tasks
from helpers.rendezvous import leave_names_out

if __name__ == "__main__":
    leave_names_out()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=int(sys.argv[1]), rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", max_restarts=0, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, run_tasks)(sys.argv[2:])
