"""torchrun's rendezvous, which names the calling method in each of its log records.

For the name it collects the stack, and looks for the file of each frame in all modules. With all libraries imported,
that takes most of the seconds of two ranks that start.
"""

from torch.distributed.elastic.rendezvous import dynamic_rendezvous


def leave_names_out() -> None:
    """Let the records of this process name no method."""
    dynamic_rendezvous.get_method_name = lambda depth=2: "no_method_name"
